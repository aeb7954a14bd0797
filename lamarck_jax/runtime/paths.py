"""Paths as people type them: `~` is expanded, what cannot be opened is refused.

Everything is read and written through the operating system, to which `gs://bucket/run`
is a folder named `gs:` in the current one.
"""

import contextlib
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
  """Returns a path with `~` expanded; nothing need exist there yet.

  Args:
    field: What the path is given for; it begins the message of an error.
    path: The path.

  Raises:
    UserError: If it is a URL, begins with the home folder of an unknown user, or cannot
      be looked at: a name that is too long, a folder without permission.
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
  try:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
      os.stat(os.path.join(expanded, '.'))  # Needs permission for the folder itself.
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise UserError(
      f'{field}: got {reason} opening {text!r}, want a path that can be opened'
    ) from error
  return expanded
