"""The lock that keeps a run directory to one process."""

from collections.abc import Iterator
import contextlib
import os
import pathlib

import filelock

from lamarck_jax.errors import UserError

FILE_NAME = '.lock'


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
  """Keeps other processes out of a run directory; makes it if it does not exist.

  The lock is a file created exclusively, which is atomic on NFS too (version 3 and
  later). It names its host and process, and is taken over if that process has died on
  this host.

  Args:
    path: The directory.

  Raises:
    UserError: If another process holds the lock, or the directory cannot be made.
  """
  path = pathlib.Path(path)
  lock_path = path / FILE_NAME
  lock = filelock.SoftFileLock(lock_path, timeout=0)
  try:
    path.mkdir(parents=True, exist_ok=True)
    _acquire(lock)
  except filelock.Timeout:
    raise UserError(
      f'workdir: got {path}, in use by {_holder(lock_path)}, want a directory that is'
      f' not; if the process has ended, remove {lock_path}'
    ) from None
  except OSError as error:
    raise UserError(
      f'workdir: got {error.strerror} opening {path}, want a writable directory'
    ) from error
  try:
    yield
  finally:
    # If the file cannot be removed, the next process takes it over, since this one
    # has ended by then.
    with contextlib.suppress(OSError):
      lock.release()


def break_lock(path: str | os.PathLike[str]) -> None:
  """Removes the lock of a process that is known to have died, on whatever host."""
  (pathlib.Path(path) / FILE_NAME).unlink(missing_ok=True)


def _acquire(lock: filelock.SoftFileLock) -> None:
  try:
    lock.acquire()
  except filelock.Timeout:
    lock.acquire()  # The first attempt may only have removed a dead process's lock.


def _holder(lock_path: pathlib.Path) -> str:
  """Returns the process and host that a lock file names."""
  try:
    process, host, *_ = lock_path.read_text().split()
  except (OSError, ValueError):
    return 'another process'
  return f'process {process} on {host}'
