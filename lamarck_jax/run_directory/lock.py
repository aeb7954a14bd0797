"""The lock of a run directory, and the fence against a process that has lost it.

The lock is the file `.lock`, on disk before anything else is written. Two lines name
its holder: the process; the host, its boot, the time, and a random token. It is taken
over once its holder is gone, which is told::

  on one host, or where hosts share locks   by `flock`, which ends with the process;
  after the host has started anew           by the host's name and its boot;
  from another host                         by a lease: the holder touches the file
                                            every `HEARTBEAT_SECONDS`, and has lost the
                                            lock after `LEASE_SECONDS` without.

A process that was stopped, or cut off, for so long does not know that it has lost the
lock. So before every change `Folder.check` looks whether the lock is still its own.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import datetime
import fcntl
import os
import pathlib
import re
import socket
import stat
import threading
import time
import uuid

from absl import logging

from lamarck_jax.errors import StorageError, UserError
from lamarck_jax.run_directory import durable

FILE_NAME = '.lock'

HEARTBEAT_SECONDS = 10.0
# Above the time for which NFS may show an old time of change, 60 s by default.
LEASE_SECONDS = 120.0

_BOOT_ID = pathlib.Path('/proc/sys/kernel/random/boot_id')
_MAX_BYTES = 1024
# A named pipe does not make it wait, a symbolic link is not followed.
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[durable.Folder]:
  """Keeps other processes out of a run directory; makes it if it does not exist.

  Where a process of another host holds the lock, this waits for its next heartbeat, or
  for the end of its lease.

  Args:
    path: The directory.

  Yields:
    The directory, held open; its `check` raises StorageError once the lock is lost.

  Raises:
    UserError: If another process holds the lock, or the directory cannot be made.
  """
  path = pathlib.Path(path)
  token = uuid.uuid4().hex
  try:
    durable.make_directory(path)
    folder = durable.Folder.open(path, f'.{token[:8]}')
    lock = _acquire(folder, token)
  except OSError as error:
    raise UserError(
      f'workdir: got {error.strerror} opening {path}, want a writable directory'
    ) from error
  folder.checks.append(lock.check)
  try:
    yield folder
  finally:
    lock.release()


def revoke(path: str | os.PathLike[str]) -> None:
  """Takes the lock away from a process that was given up, on whatever host.

  If the process lives all the same, it stops before its next change.
  """
  with contextlib.suppress(OSError):
    os.unlink(pathlib.Path(path) / FILE_NAME)
    durable.sync_directory(pathlib.Path(path))


class _Lock:
  """A lock that this process has taken."""

  def __init__(self, folder: durable.Folder, descriptor: int, content: bytes):
    self._folder, self._descriptor, self._content = folder, descriptor, content
    self._place = os.path.abspath(folder.path)
    self._released = threading.Event()
    self._heart = threading.Thread(target=self._beat, daemon=True, name='heartbeat')
    self._heart.start()

  def check(self) -> None:
    """Raises StorageError if the lock is lost."""
    with durable.storing(self._folder.path):
      reason = self._lost()
    if reason == 'deleted':
      raise StorageError(
        f'workdir: got {self._folder.path} deleted, want it kept until the search ends'
      )
    if reason:
      raise StorageError(
        f'workdir: got {self._folder.path} {reason}, want this process as its only'
        ' writer; nothing was written since, and earlier records are kept'
      )

  def release(self) -> None:
    """Removes the lock unless it is lost. If that fails, the next process takes it."""
    self._released.set()
    self._heart.join(timeout=5)
    with contextlib.suppress(OSError):
      if not self._lost():
        os.unlink(FILE_NAME, dir_fd=self._folder.descriptor)
    if not self._heart.is_alive():  # It hangs where a file server does not answer.
      with contextlib.suppress(OSError):
        os.close(self._descriptor)

  def _lost(self) -> str | None:
    """Returns how the lock was lost, or None."""
    own = os.fstat(self._folder.descriptor)
    try:
      if not os.path.samestat(os.stat(self._place), own):
        return 'replaced by another folder'
    except FileNotFoundError:
      if not own.st_nlink:
        return 'deleted'
      # The folder was moved, and nothing has taken its place.
    try:
      content, status = _look(self._folder)
    except FileNotFoundError:
      return 'without the lock of this process'
    if content != self._content:
      return f'taken over by {_describe(_Holder.parse(content))}'
    own = os.fstat(self._descriptor)
    if not os.path.samestat(status, own) or _flock(self._descriptor) is False:
      return 'locked anew'
    return None

  def _beat(self) -> None:
    """Touches the lock until it is released or lost."""
    while not self._released.wait(HEARTBEAT_SECONDS):
      with contextlib.suppress(OSError):
        if self._lost():
          return
        os.utime(self._descriptor)


@dataclasses.dataclass(frozen=True)
class _Holder:
  """The process that a lock names.

  Attributes:
    process: Its number.
    host: Its host's name.
    boot: What tells one start of the host from another; None in a lock of a version
      without heartbeats.
    since: When it took the lock, UTC.
  """

  process: int
  host: str
  boot: str | None = None
  since: str = ''

  @classmethod
  def parse(cls, content: bytes) -> '_Holder | None':
    """Returns the holder, or None if the content is torn or something else."""
    text = content.decode(errors='replace')
    match = re.fullmatch(r'(\d{1,10})\n(\S+)(?: (\S+) (\S+) \S+)?\n(?:\d+\n)?', text)
    return cls(int(match[1]), match[2], match[3], match[4] or '') if match else None


def _describe(holder: _Holder | None) -> str:
  if holder is None:
    return 'another process'
  text = f'process {holder.process} on {holder.host}'
  if holder.since:
    text += f' since {holder.since}'
  # What a file says must not control the terminal.
  return ''.join(
    c if c.isprintable() else c.encode('unicode_escape').decode() for c in text
  )


def _acquire(folder: durable.Folder, token: str) -> _Lock:
  """Takes the lock; raises UserError if another process holds it."""
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
  content = f'{os.getpid()}\n{_host()} {_boot()} {now} {token}\n'.encode()
  while True:
    _check_kind(folder)
    flags = _FLAGS | os.O_RDWR | os.O_CREAT
    descriptor = os.open(FILE_NAME, flags, 0o666, dir_fd=folder.descriptor)
    try:
      flocked = _flock(descriptor)
      found = os.pread(descriptor, _MAX_BYTES, 0)
      if flocked is False:
        raise _in_use(folder, _Holder.parse(found))
      if _is_current(folder, descriptor) and _is_free(folder, found, flocked):
        # Not replaced: another host that looks meanwhile must find this very file.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
        os.fsync(descriptor)
        os.fsync(folder.descriptor)
        return _Lock(folder, descriptor, content)
    except BaseException:
      os.close(descriptor)
      raise
    os.close(descriptor)  # Its holder has removed it meanwhile.


def _is_free(folder: durable.Folder, found: bytes, flocked: bool | None) -> bool:
  """Waits until it is known whether a lock's holder lives.

  Args:
    folder: The run directory.
    found: What the lock says.
    flocked: Whether no process of this host has it locked; None if that is unknown.

  Returns:
    Whether the lock can be taken; otherwise it has been removed.

  Raises:
    UserError: If the holder lives.
  """
  holder = _Holder.parse(found)
  if holder is None:
    return True  # Torn by a crash while it was written, or just made.
  on_this_host = holder.host == _host() or holder.boot == _boot()
  if holder.boot is None:
    if on_this_host and not _is_alive(holder.process):
      return True
    raise _in_use(
      folder, holder, f' without heartbeats; if it has ended, remove {FILE_NAME} there'
    )
  if flocked and on_this_host:
    return True
  start, first = time.monotonic(), None
  while True:
    try:
      content, status = _look(folder)
    except FileNotFoundError:
      return False
    # The clocks of hosts may differ; what was waited for is certain.
    age = max(time.time() - status.st_mtime, time.monotonic() - start)
    if content != found or first not in (None, status.st_mtime_ns):
      raise _in_use(folder, _Holder.parse(content), f', heard of {age:.0f} s ago')
    if age >= LEASE_SECONDS:
      return True
    if first is None:
      first = status.st_mtime_ns
      logging.warning(
        'workdir: got %s in use by %s, last heard of %.0f s ago; waiting until it is'
        ' heard of, or has been silent for %.0f s',
        folder.path,
        _describe(holder),
        age,
        LEASE_SECONDS,
      )
    time.sleep(min(1.0, LEASE_SECONDS / 10))


def _in_use(
  folder: durable.Folder, holder: _Holder | None, detail: str = ''
) -> UserError:
  return UserError(
    f'workdir: got {folder.path}, in use by {_describe(holder)}{detail}, want a'
    ' directory that is not'
  )


def _check_kind(folder: durable.Folder) -> None:
  """Raises UserError if the lock is no regular file."""
  with contextlib.suppress(FileNotFoundError):
    status = os.stat(FILE_NAME, dir_fd=folder.descriptor, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
      raise UserError(
        f'workdir: got {folder.path / FILE_NAME} with mode'
        f' {stat.filemode(status.st_mode)}, want a regular file, or none'
      )


def _look(folder: durable.Folder) -> tuple[bytes, os.stat_result]:
  """Returns what the lock says, and its status.

  It is opened even for the status alone, since this makes NFS ask the server.
  """
  flags = _FLAGS | os.O_RDONLY
  with durable.opened(FILE_NAME, flags, folder.descriptor) as descriptor:
    return os.pread(descriptor, _MAX_BYTES, 0), os.fstat(descriptor)


def _is_current(folder: durable.Folder, descriptor: int) -> bool:
  """Returns whether an open file is the lock, and not one that was removed."""
  try:
    return os.path.samestat(_look(folder)[1], os.fstat(descriptor))
  except FileNotFoundError:
    return False


def _flock(descriptor: int) -> bool | None:
  """Returns whether a file is locked by this process; None if it cannot be."""
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:
    return None  # Some network file systems have no locks.
  return True


def _host() -> str:
  return ''.join(socket.gethostname().split()) or 'localhost'


def _boot() -> str:
  """Returns what tells this start of the host from others; containers share it."""
  try:
    return _BOOT_ID.read_text().strip()
  except OSError:
    return _host()


def _is_alive(process: int) -> bool:
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except (OSError, OverflowError):
    return True
  return True
