"""JAX's persistent compilation cache, shared by all searches of a user.

Programs that are read from it are executed, in native code that no exception leaves. So
only a folder that nobody else can write to is used, each entry carries a digest, and an
entry during whose loading a process ended is removed by the next one to start.

JAX's own file cache has none of this, and one damaged entry ends its writes for good
(jax-ml/jax#39880). `DiskCache` takes its place.
"""

from collections.abc import Callable, Iterator
import contextlib
import fcntl
import grp
import hashlib
import os
import pathlib
import pwd
import stat
import threading
import time
from typing import Any
import uuid
import warnings

from absl import logging
import jax
from jax._src import compilation_cache as jax_cache
from jax.experimental.compilation_cache import compilation_cache as public_jax_cache

from lamarck_jax.errors import UserError

_current: 'DiskCache | None' = None

_MAX_BYTES = 4 * 2**30
_ENTRY = '.program'
_MARKER = '.loading'
_TEMPORARY = '.tmp'
# Writing an entry takes milliseconds.
_TEMPORARY_SECONDS = 3600
_DIGEST_BYTES = hashlib.sha256().digest_size


def default_directory() -> str:
  """Returns the user's cache directory, `~/.cache/lamarck_jax/xla` by default."""
  cache_home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return os.path.join(cache_home, 'lamarck_jax', 'xla')


def enable(directory: str | None = None) -> None:
  """Makes JAX keep compiled programs in a directory.

  The cache is bounded in size and evicts the least recently used programs. If the
  directory cannot be used, a warning is logged and programs are compiled every time.

  Args:
    directory: The directory, created if missing; None for `default_directory()`, empty
      for no cache.
  """
  global _current
  _current = None
  if directory is None:
    directory = default_directory()
  if not directory:
    jax.config.update('jax_enable_compilation_cache', False)
    return
  try:
    path = _private_directory(directory)
    cache = DiskCache(path, _MAX_BYTES)
    _install(cache, path)
    _current = cache
  except (UserError, OSError) as error:
    jax.config.update('jax_enable_compilation_cache', False)
    reason = f'{directory}: {error.strerror}' if isinstance(error, OSError) else error
    logging.warning('no compilation cache: %s', reason)


def current() -> 'DiskCache | None':
  """Returns the cache that `enable` has made JAX use, if there is one."""
  return _current


def _install(programs: 'DiskCache', path: pathlib.Path) -> None:
  """Makes JAX use a cache; there is no public way to give it one of another kind.

  Raises:
    UserError: If this version of JAX makes its cache in another way.
  """
  if not hasattr(jax_cache, 'get_file_cache'):
    raise UserError(f'jax: got {jax.__version__}, want one whose cache can be replaced')
  replacement = programs, str(path)
  jax_cache.get_file_cache = lambda _: replacement  # type: ignore[assignment, return-value]
  public_jax_cache.reset_cache()
  jax.monitoring.register_event_listener(programs.on_event)
  jax.config.update('jax_compilation_cache_dir', str(path))
  # JAX's default omits programs that compile within a second; many of ours do.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  # A line per program; `put` says it once.
  warnings.filterwarnings('ignore', 'Error reading persistent compilation cache')


# ------------------------------------------------------------------------------
# The folder
# ------------------------------------------------------------------------------


def _private_directory(directory: str) -> pathlib.Path:
  """Returns the path of a directory that only the user can write to, made if missing.

  Raises:
    UserError: If others can write to it or replace it.
    OSError: If it cannot be made.
  """
  path = pathlib.Path(directory).expanduser().absolute()
  # `mkdir` applies its mode to the last folder alone.
  for folder in (*reversed(path.parents), path):
    folder.mkdir(mode=0o700, exist_ok=True)
  resolved = path.resolve()
  status = resolved.stat()
  if status.st_uid != os.geteuid():
    raise UserError(
      f'xla_cache_dir: got {resolved}, which belongs to another user, want a folder of'
      ' your own: its programs are executed'
    )
  unsafe = [resolved] if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else []
  # Whoever can rename a folder above can put another in its place.
  unsafe += filter(_lets_others_rename, {*path.parents, *resolved.parents})
  if unsafe:
    raise UserError(
      f'xla_cache_dir: got {resolved}, where other users can write to {unsafe[0]}, want'
      ' a folder that only you can write to: its programs are executed'
    )
  return resolved


def _lets_others_rename(folder: pathlib.Path) -> bool:
  """Returns whether other users can rename what is in a folder."""
  status = folder.stat()
  if status.st_mode & stat.S_ISVTX:
    return False
  if status.st_mode & stat.S_IWOTH:
    return True
  return bool(status.st_mode & stat.S_IWGRP) and not _is_of_one(status.st_gid)


def _is_of_one(group_id: int) -> bool:
  """Returns whether a group is the user's own, as many systems make one for each."""
  try:
    group, user = grp.getgrgid(group_id), pwd.getpwuid(os.geteuid()).pw_name
  except KeyError:
    return False
  return group.gr_name == user and not set(group.gr_mem) - {user}


# ------------------------------------------------------------------------------
# The entries
# ------------------------------------------------------------------------------


class _Thread(threading.local):
  """What a cache knows of the thread that calls it."""

  requested_key: str | None = None
  is_hidden = False


class DiskCache:
  """Compiled programs on disk by key, with the interface of JAX's caches.

  Any number of processes may share a folder, and be killed at any time: an entry is
  written beside its place and renamed, and not used unless its digest is right. An
  error is never the caller's: it is logged once, and the program is compiled.

  While a process loads an entry, the entry's key is in a file of the process, its
  marker, which is locked for as long as the process lives. So a process that starts
  finds what ended another one.
  """

  def __init__(self, path: pathlib.Path, max_bytes: int):
    """Opens a folder, and removes what ended processes have left in it.

    Args:
      path: The folder, to which nobody else can write.
      max_bytes: Size of all entries above which the least recently used are removed.

    Raises:
      OSError: If files cannot be made in it.
    """
    self._path = path  # JAX logs it.
    self._max_bytes = max_bytes
    self._lock = threading.Lock()
    self._thread = _Thread()
    self._loading: dict[int, str] = {}  # The key that a thread loads.
    self._room = 0  # Bytes to write until the folder's size is looked at again.
    self._has_warned = False
    self._clear()
    self._marker = self._make_marker()

  def get(self, key: str) -> bytes | None:
    """Returns a program, or None if there is none that is as it was written."""
    self._thread.requested_key = key
    if self._thread.is_hidden:
      return None
    self._set_loading(None)
    path = self._entry(key)
    try:
      value = _read(path, key, self._max_bytes)
      os.utime(path)  # What was used last is evicted last.
    except FileNotFoundError:
      return None
    except (OSError, ValueError) as error:
      self._warn(f'got {error} in {path}, want it as written; it is replaced')
      with contextlib.suppress(OSError):
        path.unlink()
      return None
    self._set_loading(key)
    return value

  def put(self, key: str, value: bytes) -> None:
    """Adds a program, or replaces it."""
    if self._thread.is_hidden:
      return
    path = self._entry(key)
    if self._set_loading(None) == key:
      self._warn(f'got a program that cannot be loaded in {path}; it is replaced')
    temporary = self._path / f'.{uuid.uuid4().hex}{_TEMPORARY}'
    try:
      self._make_room(len(value))
      # Not waited for: what a power cut damages has another digest.
      with open(temporary, 'xb', opener=_open_private) as file:
        file.write(_digest(key, value) + value)
      os.replace(temporary, path)
    except OSError as error:
      self._warn(f'got {error.strerror} writing {path}')
      with contextlib.suppress(OSError):
        temporary.unlink()

  def is_loaded(self) -> None:
    """Notes that the program that `get` returned last in this thread is loaded."""
    self._set_loading(None)

  def on_event(self, event: str, **_: Any) -> None:
    """Notes it where JAX says so."""
    if event == '/jax/compilation_cache/cache_hits':
      self.is_loaded()

  @contextlib.contextmanager
  def hidden(self) -> Iterator[None]:
    """Hides all programs from this thread; what it adds is dropped."""
    self._thread.is_hidden = True
    try:
      yield
    finally:
      self._thread.is_hidden = False

  def requested_key(self, function: Callable[[], Any]) -> str | None:
    """Returns the key that a function makes this thread get last; None if none."""
    self._thread.requested_key = None
    function()
    return self._thread.requested_key

  def _entry(self, key: str) -> pathlib.Path:
    return self._path / f'{key}{_ENTRY}'

  def _warn(self, message: str) -> None:
    if not self._has_warned:
      self._has_warned = True
      logging.warning('compilation cache: %s (further problems are not told)', message)

  def _make_room(self, num_bytes: int) -> None:
    """Removes the least recently used entries where another may not fit."""
    self._room -= num_bytes
    if self._room >= 0:
      return
    entries = []
    with os.scandir(self._path) as files:
      for file in files:
        if file.name.endswith(_ENTRY):
          with contextlib.suppress(FileNotFoundError):  # Another process removed it.
            status = file.stat(follow_symlinks=False)
            entries.append((status.st_mtime_ns, status.st_size, file.path))
    total = num_bytes + sum(size for _, size, _ in entries)
    if total > self._max_bytes:
      for _, size, path in sorted(entries):
        if total <= 0.9 * self._max_bytes:
          break
        with contextlib.suppress(OSError):
          os.unlink(path)
        total -= size
    # A scan of thousands of entries takes as long as compiling a small program. Other
    # processes fill the same room until the next one.
    self._room = (self._max_bytes - total) // 16

  def _set_loading(self, key: str | None) -> str | None:
    """Records what this thread loads from now on; returns what it was until now."""
    thread = threading.get_ident()
    with self._lock:
      before = self._loading.pop(thread, None)
      if key is not None:
        self._loading[thread] = key
      if self._marker is not None and (before or key):
        with contextlib.suppress(OSError):  # A full disk.
          os.ftruncate(self._marker, 0)
          os.pwrite(self._marker, '\n'.join(self._loading.values()).encode(), 0)
    return before

  def _make_marker(self) -> int | None:
    """Returns the descriptor of this process's marker; None where there are no locks.

    It stays open, and is removed by another process once this one has ended.
    """
    path = self._path / f'.{uuid.uuid4().hex}{_MARKER}'
    marker = _open_private(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
      fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return marker
    except OSError:
      os.close(marker)
      path.unlink(missing_ok=True)
      return None

  def _clear(self) -> None:
    """Removes what ended processes have left, and entries that may have ended them."""
    suspects: list[str] = []
    with os.scandir(self._path) as files:
      for file in files:
        path = pathlib.Path(file.path)
        with contextlib.suppress(OSError):
          if path.suffix == _MARKER:
            suspects += _take_marker(path)
          elif path.suffix == _TEMPORARY and _age(path) > _TEMPORARY_SECONDS:
            path.unlink()
    for name in {f'{key}{_ENTRY}' for key in suspects} & set(os.listdir(self._path)):
      self._warn(f'got {name}, during whose loading a process ended; it is replaced')
      with contextlib.suppress(OSError):
        (self._path / name).unlink()


def _age(path: pathlib.Path) -> float:
  """Returns the seconds since a file was changed."""
  return time.time() - path.lstat().st_mtime


def _take_marker(path: pathlib.Path) -> list[str]:
  """Removes a marker; returns what its process was loading.

  Raises:
    OSError: If its process is alive.
  """
  marker = _open_private(path, os.O_RDWR)
  try:
    fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
    keys = os.read(marker, 2**16).decode(errors='replace').splitlines()
    path.unlink()
    return keys
  finally:
    os.close(marker)


def _read(path: pathlib.Path, key: str, max_bytes: int) -> bytes:
  """Returns the program of an entry; raises OSError or ValueError."""
  with open(path, 'rb', opener=_open_private) as file:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
      raise ValueError('no file of a program')
    content = file.read()
  digest, value = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
  if digest != _digest(key, value):
    raise ValueError('a damaged program')
  return value


def _digest(key: str, value: bytes) -> bytes:
  # With the key, so that an entry under another's name is found out.
  return hashlib.sha256(b'%b\0%b' % (key.encode(), value)).digest()


def _open_private(path: str | os.PathLike[str], flags: int) -> int:
  """Opens a file for the user alone; neither follows a link nor waits for a pipe."""
  return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
