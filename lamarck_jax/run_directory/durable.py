"""Durable writes: once a call returns, its content survives a crash of the machine.

A file is either replaced as a whole or appended to, so that a reader never sees half of
the new content in place of the old. Failures to write become one-line `StorageError`.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
import os
import pathlib
from typing import Any
import uuid

from lamarck_jax.errors import DamagedError, StorageError, UserError

# Far above what a search writes. Reading takes several times the size of a file in
# memory, so a larger one, which something else has written, is refused.
MAX_BYTES = 2**28


def write(
  path: pathlib.Path, content: bytes | memoryview, *, shared: bool = False
) -> None:
  """Replaces a file as a whole, or makes it.

  After a crash at any moment the file has either its old or its new content.

  Args:
    path: The file; its folder exists.
    content: The new content.
    shared: Whether several processes may write the file at the same time. Each then
      writes a temporary file of its own, which a crash leaves behind; otherwise the
      next write replaces what a crash has left.

  Raises:
    StorageError: If it cannot be written; the old file is kept.
  """
  temporary = temporary_path(path)
  if shared:
    temporary = temporary.with_suffix(f'.{uuid.uuid4().hex}.tmp')
  with storing(path):
    try:
      _write_through(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, content)
      os.replace(temporary, path)
      # Without this a crash of the machine can undo the renaming.
      sync_directory(path.parent)
    except OSError:
      with contextlib.suppress(OSError):
        os.unlink(temporary)  # It may fill what is left of the disk.
      raise


def append(path: pathlib.Path, line: bytes) -> None:
  """Appends a line to a file, or makes it.

  After a crash the file may end in a part of the line.

  Args:
    path: The file; its folder exists.
    line: The line with its line break.

  Raises:
    StorageError: If it cannot be written; a part of the line may have been.
  """
  with storing(path):
    is_new = not path.exists()
    _write_through(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, line)
    if is_new:
      sync_directory(path.parent)


def truncate(path: pathlib.Path, num_bytes: int) -> None:
  """Cuts a file to its first bytes.

  Raises:
    StorageError: If it cannot be written.
  """
  with storing(path), path.open('r+b') as file:
    file.truncate(num_bytes)
    os.fsync(file.fileno())


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Replaces a file by a JSON object, indented for people to read; see `write`."""
  write(path, json.dumps(content, indent=2).encode() + b'\n')


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
  """Returns the JSON object of a file, or None if there is no file.

  Raises:
    DamagedError: If it is not a JSON object, or has more than `MAX_BYTES`.
    UserError: If it cannot be read.
  """
  if not path.exists():
    return None
  try:
    content = json.loads(read_bytes(path))
    if not isinstance(content, dict):
      raise ValueError(f'a {type(content).__name__}')
    return content
  # Deep nesting exceeds Python's stack.
  except (ValueError, RecursionError) as error:
    raise DamagedError(f'file: got {path} with {error}, want a JSON object') from error


def read_bytes(path: pathlib.Path) -> bytes:
  """Returns the content of a file.

  Raises:
    DamagedError: If it has more than `MAX_BYTES`.
    UserError: If it cannot be read.
  """
  try:
    if not path.is_file():
      raise DamagedError(f'file: got {path}, want a regular file')
    num_bytes = path.stat().st_size
    if num_bytes > MAX_BYTES:
      raise DamagedError(
        f'file: got {path} of {num_bytes} bytes, want at most {MAX_BYTES}'
      )
    return path.read_bytes()
  except OSError as error:
    raise UserError(
      f'file: got {error.strerror} reading {path}, want a readable file'
    ) from error


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


def sync_directory(path: pathlib.Path) -> None:
  """Waits until the names in a folder are on disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def temporary_path(path: pathlib.Path) -> pathlib.Path:
  """Returns where `write` puts the content of a file before it replaces the file."""
  return path.with_name(f'.{path.name}.tmp')


def _write_through(path: pathlib.Path, flags: int, content: bytes | memoryview) -> None:
  """Writes to a file and waits until the content is on disk."""
  descriptor = os.open(path, flags, 0o666)
  try:
    rest = memoryview(content)
    while rest:
      # On a disk that is almost full, a call may write a part alone.
      rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
