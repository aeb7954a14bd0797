"""Files of unknown origin: which are listed, and how they are opened."""

from collections.abc import Iterator
import errno
import io
import os
import pathlib
import stat

# What operating systems, servers and editors leave in folders, in lower case. Every
# hidden name is litter as well: .DS_Store, ._a.png, .ipynb_checkpoints, .git.
_LITTER_NAMES = frozenset(
  (
    '$recycle.bin',
    '#recycle',
    '@eadir',
    '@recycle',
    '__macosx',
    '__pycache__',
    'desktop.ini',
    'ehthumbs.db',
    'icon\r',
    'lost+found',
    'system volume information',
    'thumbs.db',
    'thumbs.db:encryptable',
  )
)
_LITTER_PREFIXES = ('.', '~$')
# `a.png~`, `#a.png#` and `a.png.bak` are older versions of an image.
_LITTER_SUFFIXES = ('~', '#', '.bak', '.swp', '.tmp')


def is_litter(name: str) -> bool:
  """Returns whether a file or folder is one that no user has put there as data.

  Args:
    name: Its name, without the folder that it is in.
  """
  name = name.lower()
  return (
    name in _LITTER_NAMES
    or name.startswith(_LITTER_PREFIXES)
    or name.endswith(_LITTER_SUFFIXES)
  )


def walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields all files below a folder, at any depth, in order of their names.

  Links are followed, a folder that is reached twice is listed once, and litter is
  skipped. What is no folder counts as a file: broken links and pipes too.

  Raises:
    OSError: If a folder cannot be listed.
  """
  seen = set()
  waiting = [folder]
  while waiting:
    folder = waiting.pop()
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:
      continue  # A link to a folder above it would never end.
    seen.add((status.st_dev, status.st_ino))
    entries = sorted(path for path in folder.iterdir() if not is_litter(path.name))
    yield from (path for path in entries if not path.is_dir())
    waiting += reversed([path for path in entries if path.is_dir()])


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
  """Opens a regular file, or a link to one, for reading.

  Opening a pipe would wait for its writer, and a device may have no end.

  Raises:
    OSError: If the file cannot be opened, or is not a regular one.
  """
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  try:
    check_regular(path, os.fstat(descriptor))
    return open(descriptor, 'rb')
  except BaseException:
    os.close(descriptor)
    raise


def check_regular(
  path: str | os.PathLike[str], status: os.stat_result | None = None
) -> None:
  """Raises OSError unless a path is a regular file, or a link to one.

  Args:
    path: The file; for code that opens it by its name.
    status: What is known about it already.
  """
  mode = (os.stat(path) if status is None else status).st_mode
  if stat.S_ISDIR(mode):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
  if not stat.S_ISREG(mode):
    raise OSError(errno.EINVAL, 'Not a regular file', os.fspath(path))


def printable(text: object) -> str:
  """Returns a name or path for a message: in one line, without control characters."""
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
