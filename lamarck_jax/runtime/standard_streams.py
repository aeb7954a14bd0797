"""Standard output and standard error that never end a program.

A closed pipe, a full device or a terminal that is gone makes `print` raise, and with it
would end a search. What cannot be printed is dropped instead: a program's files hold
all that it computes, and its exit status says how it ended.
"""

import contextlib
import io
import os
import sys
from typing import Any


class _Descriptor(io.FileIO):
  """A file descriptor that drops what it cannot write."""

  def write(self, content: Any) -> int:
    with contextlib.suppress(OSError):
      written = super().write(content)
      # None: it does not block, and is full.
      return len(content) if written is None else written
    return len(content)


def protect() -> None:
  """Makes `sys.stdout` and `sys.stderr` drop what they cannot write.

  Programs call it once at their start. It opens the standard descriptors that are
  closed, onto the null device: the next file to be opened would get such a number, and
  what native libraries print would go into that file.
  """
  while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
    os.set_inheritable(descriptor, True)  # By the workers of a study too.
  os.close(descriptor)
  for name, descriptor in (('stdout', 1), ('stderr', 2)):
    stream = getattr(sys, name)
    # What a test or a notebook has put in their place is left alone.
    if stream is not None and stream is not getattr(sys, f'__{name}__'):
      continue
    if stream is not None:
      with contextlib.suppress(OSError):
        stream.flush()
    robust = io.TextIOWrapper(
      io.BufferedWriter(_Descriptor(descriptor, 'wb', closefd=False)),
      encoding=getattr(stream, 'encoding', None),
      # A path may have characters that the terminal's encoding has not.
      errors='backslashreplace',
      line_buffering=name == 'stderr' or os.isatty(descriptor),
    )
    setattr(sys, name, robust)
