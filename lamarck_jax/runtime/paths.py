"""Paths as people type them: `~` is expanded, and a URL is refused.

Everything is read and written through the operating system, to which `gs://bucket/run`
is a folder named `gs:` in the current one.
"""

import os
import re

from lamarck_jax.errors import UserError

# `scheme:/`, even where `pathlib` has joined the slashes, and schemes that need none.
# A single letter may be a drive of Windows.
_URL = re.compile(r'(?:[a-z][a-z0-9+.-]+:/|(?:data|file|memory):)', re.IGNORECASE)


def is_url(path: str) -> bool:
  """Returns whether a path is a URL, such as `gs://bucket/run`."""
  return bool(_URL.match(path))


def local(field: str, path: str | os.PathLike[str]) -> str:
  """Returns a path with `~` expanded.

  Args:
    field: What the path is given for; it begins the message of an error.
    path: The path.

  Raises:
    UserError: If it is a URL, or begins with the home folder of an unknown user.
  """
  text = os.fspath(path)
  if is_url(text):
    raise UserError(
      f'{field}: got {text!r}, want a path of the file system; URLs are not supported'
      f' (./{text} is a local path)'
    )
  expanded = os.path.expanduser(text)
  if expanded.startswith('~'):
    raise UserError(
      f'{field}: got {text!r}, want a home folder that is known (./{text} is a local'
      ' path)'
    )
  return expanded
