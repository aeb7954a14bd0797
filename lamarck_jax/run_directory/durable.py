"""Durable writes: once a call returns, its content survives a crash of the machine.

A file is either replaced as a whole or appended to, so that a reader never sees half of
the new content in place of the old. Failures to write become one-line `StorageError`.

`Folder` is for code that writes many files to one folder; `write` and `read_bytes` are
for a single file.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import re
import stat
from typing import Any
import uuid
import weakref

from lamarck_jax.errors import DamagedError, StorageError, UserError

# Far above what a search writes. Reading takes several times the size of a file in
# memory, so a larger one, which something else has written, is refused.
MAX_BYTES = 2**28


# Device, number and length of a file.
Identity = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
  """A folder that is held open.

  Its files are found by its descriptor. Where it is moved, and another folder takes its
  place, a write still goes to this one.

  Attributes:
    path: Where it was when it was opened; for messages.
    descriptor: Its descriptor.
    suffix: Part of the names of temporary files. Where two processes may write the same
      file, each needs its own, so that it replaces the file by its own content alone.
      Without one, the next write replaces what a crash has left.
    parent: The folder in which it was opened, if it was opened in one.
    checks: Called before every change; they raise if this process may not write.
    left: Files that this process alone may change, as it has left them; None for a file
      that is not there.
  """

  path: pathlib.Path
  descriptor: int
  suffix: str = ''
  parent: 'Folder | None' = None
  checks: list[Callable[[], None]] = dataclasses.field(default_factory=list)
  left: dict[str, Identity | None] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    weakref.finalize(self, _close, self.descriptor)

  @classmethod
  def open(cls, path: pathlib.Path, suffix: str = '') -> 'Folder':
    """Opens a folder.

    Raises:
      OSError: If it cannot be opened.
    """
    return cls(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY), suffix)

  def child(self, name: str) -> 'Folder':
    """Returns a folder inside this one, and makes it if it does not exist.

    Raises:
      StorageError: If it cannot be made or opened.
    """
    with storing(self.path / name):
      with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=self.descriptor)
        os.fsync(self.descriptor)
      flags = os.O_RDONLY | os.O_DIRECTORY
      descriptor = os.open(name, flags, dir_fd=self.descriptor)
    return Folder(self.path / name, descriptor, self.suffix, self)

  def check(self) -> None:
    """Raises StorageError if this process may not write here any more."""
    if self.parent:
      self.parent.check()
    for check in self.checks:
      check()
    for name, left in self.left.items():
      found = self.identity(name)
      if found != left:
        raise StorageError(
          f'file: got {self.path / name} changed by another process, from'
          f' {_size(left)} to {_size(found)}, want it as this one left it; nothing was'
          ' written since'
        )

  def identity(self, name: str) -> Identity | None:
    """Returns what tells a file from another state of it, or None if it is not there.

    Raises:
      DamagedError: If it is a symbolic link that leads nowhere, or to itself.
      StorageError: If it cannot be told.
    """
    with storing(self.path / name):
      try:
        status = os.stat(name, dir_fd=self.descriptor)
      except OSError as error:
        if not os.path.islink(self.path / name):
          if isinstance(error, FileNotFoundError):
            return None
          raise
        raise DamagedError(
          f'file: got {self.path / name}, a link without a file, want a regular file'
        ) from error
    return status.st_dev, status.st_ino, status.st_size

  def write(self, name: str, content: bytes | memoryview) -> None:
    """Replaces a file as a whole, or makes it.

    After a crash at any moment the file has either its old or its new content.

    Raises:
      StorageError: If it cannot be written; the old file is kept.
    """
    self.check()
    temporary = f'.{name}{self.suffix}.tmp'
    own = self.descriptor
    with storing(self.path / name):
      try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with opened(temporary, flags, own) as descriptor:
          write_through(descriptor, content)
        # Writing takes long enough for another process to take over.
        self.check()
        os.replace(temporary, name, src_dir_fd=own, dst_dir_fd=own)
        # Without this a crash of the machine can undo the renaming.
        os.fsync(own)
      except (OSError, StorageError):
        with contextlib.suppress(OSError):
          os.unlink(temporary, dir_fd=own)  # It may fill what is left of the disk.
        raise
      if name in self.left:
        self.left[name] = self.identity(name)

  def append(self, name: str, line: bytes) -> None:
    """Appends a line to a file, or makes it.

    After a crash the file may end in a part of the line.

    Args:
      name: The file; `left` has it.
      line: The line with its line break.

    Raises:
      StorageError: If it cannot be written; a part of the line may have been.
    """
    self.check()
    is_new = self.left[name] is None
    flags = os.O_WRONLY | os.O_APPEND | (os.O_CREAT | os.O_EXCL if is_new else 0)
    with (
      storing(self.path / name),
      opened(name, flags, self.descriptor) as descriptor,
    ):
      if not is_new:
        # Again, now that it is open: a process that takes over later replaces the file,
        # and this one then writes to a file without a name, wherever it was stopped.
        self.check()
      status = os.fstat(descriptor)
      write_through(descriptor, line)
      if is_new:
        os.fsync(self.descriptor)
    length = status.st_size + len(line)
    self.left[name] = (status.st_dev, status.st_ino, length)

  def write_json(self, name: str, content: Mapping[str, Any]) -> None:
    """Replaces a file by a JSON object, indented for people to read; see `write`."""
    self.write(name, json.dumps(content, indent=2).encode() + b'\n')

  def read_bytes(self, name: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns the content of a file; raises as the function `read_bytes` does."""
    with _reading(self.path / name):
      return _read(self.path / name, name, self.descriptor, max_bytes)

  def read_json(self, name: str) -> dict[str, Any] | None:
    """Returns the JSON object of a file; see the function `read_json`."""
    return _read_json(self.path / name, name, self.descriptor)

  def names(self) -> list[str]:
    """Returns the names of what the folder contains, sorted.

    Raises:
      StorageError: If it cannot be read.
    """
    with storing(self.path):
      return sorted(os.listdir(self.descriptor))

  def remove(self, name: str) -> None:
    """Removes a file if it is there.

    Raises:
      StorageError: If it cannot be removed.
    """
    self.check()
    # A folder of such a name is somebody else's.
    with (
      storing(self.path / name),
      contextlib.suppress(FileNotFoundError, IsADirectoryError),
    ):
      os.unlink(name, dir_fd=self.descriptor)

  def move(self, name: str, folder: 'Folder', new_name: str | None = None) -> None:
    """Moves a file to another folder of the same file system.

    Raises:
      StorageError: If it cannot be moved.
    """
    self.check()
    source, target = self.descriptor, folder.descriptor
    with storing(self.path / name):
      os.rename(name, new_name or name, src_dir_fd=source, dst_dir_fd=target)
      os.fsync(target)
      os.fsync(source)

  def remove_temporary_files(self) -> None:
    """Removes the files that crashed writers with a suffix have left behind."""
    for name in self.names():
      if re.fullmatch(r'\..+\.[0-9a-f]{8}\.tmp', name):
        self.remove(name)


def write(
  path: pathlib.Path, content: bytes | memoryview, *, shared: bool = False
) -> None:
  """Replaces a file as a whole, or makes it; see `Folder.write`.

  Args:
    path: The file; its folder exists.
    content: The new content.
    shared: Whether several processes may write the file at the same time. Each then
      writes a temporary file of its own, which a crash leaves behind.

  Raises:
    StorageError: If it cannot be written; the old file is kept.
  """
  with storing(path):
    folder = Folder.open(path.parent, f'.{uuid.uuid4().hex}' if shared else '')
  folder.write(path.name, content)


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Replaces a file by a JSON object, indented for people to read; see `write`."""
  write(path, json.dumps(content, indent=2).encode() + b'\n')


@contextlib.contextmanager
def opened(name: str, flags: int, dir_fd: int) -> Iterator[int]:
  """Opens a file by its name in an open folder, and closes it."""
  descriptor = os.open(name, flags, 0o666, dir_fd=dir_fd)
  try:
    yield descriptor
  finally:
    os.close(descriptor)


def write_through(descriptor: int, content: bytes | memoryview) -> None:
  """Writes to an open file, and waits until the content is on disk."""
  rest = memoryview(content)
  while rest:
    # On a disk that is almost full, a call may write a part alone.
    rest = rest[os.write(descriptor, rest) :]
  os.fsync(descriptor)


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
  """Returns the JSON object of a file, or None if there is no file.

  Raises:
    DamagedError: If it is not a JSON object, or has more than `MAX_BYTES`.
    UserError: If it cannot be read.
  """
  return _read_json(path, path)


def read_bytes(path: pathlib.Path) -> bytes:
  """Returns the content of a file.

  Raises:
    DamagedError: If it is no regular file, or has more than `MAX_BYTES`.
    UserError: If it cannot be read.
  """
  with _reading(path):
    return _read(path, path, None, MAX_BYTES)


@contextlib.contextmanager
def storing(path: pathlib.Path) -> Iterator[None]:
  """Turns an `OSError` of its body into a `StorageError` that names the path."""
  try:
    yield
  except OSError as error:
    if not path.parent.exists():
      raise StorageError(
        f'file: got {path.parent} moved or removed, want it to stay during a search;'
        ' what it held has gone with it'
      ) from error
    raise StorageError(
      f'file: got {error.strerror} writing {path}, want a writable file;'
      ' earlier records are kept, and the same command resumes'
    ) from error


def make_directory(path: pathlib.Path) -> None:
  """Makes a folder and its parents; their names are on disk when this returns.

  Raises:
    OSError: If it cannot be made.
  """
  missing = [folder for folder in (path, *path.parents) if not folder.exists()]
  path.mkdir(parents=True, exist_ok=True)
  for folder in missing:
    with contextlib.suppress(PermissionError):  # It may be writable and not readable.
      sync_directory(folder.parent)


def sync_directory(path: pathlib.Path) -> None:
  """Waits until the names in a folder are on disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def temporary_of(name: str) -> str | None:
  """Returns the file that a temporary file of `write` would replace, by their names."""
  match = re.fullmatch(r'\.(.+?)(?:\.[0-9a-f]{8})?\.tmp', name)
  return match[1] if match else None


def _size(identity: Identity | None) -> str:
  return f'{identity[2]} bytes' if identity else 'none'


def _close(descriptor: int) -> None:
  with contextlib.suppress(OSError):
    os.close(descriptor)


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    # A link that leads to itself is no matter of permissions.
    kind = DamagedError if error.errno == errno.ELOOP else UserError
    raise kind(
      f'file: got {error.strerror} reading {path}, want a readable file'
    ) from error


def _read(
  path: pathlib.Path, name: str | pathlib.Path, dir_fd: int | None, max_bytes: int
) -> bytes:
  """Returns the content of a file, found by its name in an open folder."""
  # Without O_NONBLOCK, opening a named pipe waits for a writer.
  descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=dir_fd)
  try:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
      kind = stat.filemode(status.st_mode)
      raise DamagedError(f'file: got {path} with mode {kind}, want a regular file')
    if status.st_size > max_bytes:
      raise DamagedError(
        f'file: got {path} of {status.st_size} bytes, want at most {max_bytes}'
      )
    with open(descriptor, 'rb', closefd=False) as file:
      return file.read()
  finally:
    os.close(descriptor)


def _read_json(
  path: pathlib.Path, name: str | pathlib.Path, dir_fd: int | None = None
) -> dict[str, Any] | None:
  try:
    with _reading(path):
      try:
        content = json.loads(_read(path, name, dir_fd, MAX_BYTES))
      except FileNotFoundError:
        return None
    if not isinstance(content, dict):
      raise ValueError(f'a {type(content).__name__}')
    return content
  # Deep nesting exceeds Python's stack.
  except (ValueError, RecursionError) as error:
    raise DamagedError(f'file: got {path} with {error}, want a JSON object') from error
