"""The run directory: everything a search writes, and reads to go on.

  config.json    the configuration
  events.jsonl   one JSON object per evaluation, append-only; the single truth
  weights/       safetensors, only of individuals that are still needed
  completed/     one JSON object per individual trained to completion
  environment.json  the data set, and on what each start of the search ran
  result.json    the outcome, once there is one

Weights are on disk before the event that names them. Every other file is replaced as a
whole, so a reader never sees half of one. Events and weights carry checksums. Nothing
that is read is ever run: there is JSON and safetensors alone.
"""

from collections.abc import Collection, Iterator, Mapping
import contextlib
import json
import os
import pathlib
from typing import Any
import zlib

import filelock
from flax import traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from lamarck_jax import config as config_lib
from lamarck_jax.errors import DamagedError, StorageError, UserError
from lamarck_jax.genotype import Block, Genotype

# Version 1 had no checksums.
FORMAT_VERSION = 2
_KNOWN_VERSIONS = (1, 2)
_LOCK = '.lock'
# More than any search writes; what is larger is not read.
_MAX_JSON_BYTES = 2**28


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
  """Keeps other processes from a run directory; makes it if it is not there.

  The lock is a file that only one process can create, on NFS too. It names its host and
  process, and is taken over where that process has died on this host.

  Args:
    path: The directory.

  Raises:
    UserError: If another process has it, or the directory cannot be made.
  """
  path = pathlib.Path(path)
  lock = filelock.SoftFileLock(path / _LOCK, timeout=0)
  try:
    path.mkdir(parents=True, exist_ok=True)
    _acquire(lock)
  except filelock.Timeout:
    raise UserError(
      f'workdir: {path} is in use by {_holder(path / _LOCK)}; if that is no more,'
      f' remove {path / _LOCK}'
    ) from None
  except OSError as error:
    raise UserError(f'workdir: {path}: {error.strerror}') from error
  try:
    yield
  finally:
    # One that cannot be removed is that of a dead process once this one ends.
    with contextlib.suppress(OSError):
      lock.release()


def break_lock(path: str | os.PathLike[str]) -> None:
  """Removes the lock of a process that is known to have died, on whatever host."""
  (pathlib.Path(path) / _LOCK).unlink(missing_ok=True)


def check(path: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
  """Checks, without writing, that a directory is of a run or can become one.

  Args:
    path: The directory; it need not be there.
    config: The configuration as nested dictionaries.

  Raises:
    UserError: If it holds a run with another configuration, or other files.
  """
  path = pathlib.Path(path)
  config_path = path / 'config.json'
  try:
    if not config_path.exists():
      # A crash while config.json was written leaves its temporary file.
      known = {_temporary(config_path), path / _LOCK}
      if path.exists() and set(path.iterdir()) - known:
        raise UserError(f'workdir: {path} has files but no config.json')
      return
  except OSError as error:
    raise UserError(f'workdir: {path}: {error.strerror}') from error
  config = json.loads(json.dumps(config))  # As JSON has it: tuples become lists.
  differing = config_lib.differing_fields(config, read_config(path))
  if differing:
    raise UserError(
      f'workdir: {path} holds a run with another config, want another directory: it'
      f' differs in {", ".join(differing)}'
    )


def _acquire(lock: filelock.SoftFileLock) -> None:
  try:
    lock.acquire()
  except filelock.Timeout:
    lock.acquire()  # The first attempt may only have removed a dead process's lock.


def _holder(path: pathlib.Path) -> str:
  try:
    process, host, *_ = path.read_text().split()
  except (OSError, ValueError):
    return 'another process'
  return f'process {process} on {host}'


class RunDirectory:
  """Reads and writes one run directory.

  Attributes:
    path: The directory.
  """

  def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any]):
    """Opens a run directory, or makes it.

    Args:
      path: The directory.
      config: The configuration as nested dictionaries.

    Raises:
      UserError: If the directory holds a run with another configuration, or is
        no run directory.
      StorageError: If it cannot be written.
    """
    self.path = pathlib.Path(path)
    self._events = self.path / 'events.jsonl'
    check(path, config)
    try:
      self.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(f'workdir: {self.path}: {error.strerror}') from error
    config_path = self.path / 'config.json'
    if not config_path.exists():
      content = {'format_version': FORMAT_VERSION, 'config': config}
      _write_json(config_path, content)
    self._version, _ = _read_config(self.path)
    with _storing(self.path):
      self._weights.mkdir(exist_ok=True)
      self._completed.mkdir(exist_ok=True)

  @property
  def _weights(self) -> pathlib.Path:
    return self.path / 'weights'

  @property
  def _completed(self) -> pathlib.Path:
    return self.path / 'completed'

  def read_events(self) -> list[dict[str, Any]]:
    """Returns the events so far, oldest first.

    A last line that was cut off or damaged while it was written is taken away: its
    evaluation will be repeated.

    Raises:
      DamagedError: If an earlier line is damaged.
    """
    events, whole = _parse_events(self._events, self._version)
    if self._events.exists() and whole < self._events.stat().st_size:
      with _storing(self._events), self._events.open('r+b') as file:
        file.truncate(whole)
        os.fsync(file.fileno())
    return events

  def append_event(self, event: Mapping[str, Any]) -> None:
    """Appends an event; it is on disk when this returns."""
    if self._version > 1:
      event = {**event, 'crc32': _event_checksum(event)}
    line = json.dumps(event)
    with _storing(self._events):
      is_new = not self._events.exists()
      flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
      _write_file(self._events, flags, line.encode() + b'\n')
      if is_new:
        _sync_directory(self.path)

  def keep_events(self, count: int) -> None:
    """Cuts off all events but the first so many; `events.jsonl.cut` has all."""
    lines = self._events.read_bytes().splitlines(keepends=True)
    _write(self._events.with_name('events.jsonl.cut'), b''.join(lines))
    _write(self._events, b''.join(lines[:count]))

  def write_weights(self, evaluation: int, variables: Mapping[str, Any]) -> None:
    """Writes the variables of an individual, named by its evaluation."""
    self._write_variables(f'{evaluation:06d}', variables)

  def read_weights(self, evaluation: int) -> dict[str, Any]:
    """Returns the variables of an individual as NumPy arrays.

    Raises:
      DamagedError: If they are not there, or not what was written.
    """
    return self._read_variables(f'{evaluation:06d}')

  def keep_weights(self, evaluations: Collection[int]) -> None:
    """Removes the weights of all individuals but these."""
    kept = {f'{evaluation:06d}' for evaluation in evaluations}
    with _storing(self._weights):
      for path in self._weights.iterdir():
        stage, _, number = path.stem.rpartition('_')
        # A crash can leave what a completion saved behind when it is done.
        is_done = (self._completed / f'{number}.json').exists()
        is_completion = stage == 'completed' or (stage == 'completing' and not is_done)
        if path.stem not in kept and not is_completion:
          path.unlink()

  def write_completing(self, evaluation: int, state: Mapping[str, Any]) -> None:
    """Writes how far the completion of an individual has come, a tree of arrays."""
    self._write_variables(f'completing_{evaluation:06d}', state)

  def read_completing(self, evaluation: int) -> dict[str, Any] | None:
    """Returns what `write_completing` wrote last, or None.

    Raises:
      DamagedError: If it is not what was written.
    """
    name = f'completing_{evaluation:06d}'
    if not (self._weights / f'{name}.safetensors').exists():
      return None
    return self._read_variables(name)

  def write_completed(
    self, evaluation: int, outcome: Mapping[str, Any], variables: Mapping[str, Any]
  ) -> None:
    """Writes the outcome of an individual's completion, and its final weights.

    What `write_completing` wrote is removed.
    """
    self._write_variables(f'completed_{evaluation:06d}', variables)
    _write_json(self._completed / f'{evaluation:06d}.json', outcome)
    with _storing(self._weights):
      path = self._weights / f'completing_{evaluation:06d}.safetensors'
      path.unlink(missing_ok=True)

  def read_completed(self, evaluation: int) -> dict[str, Any] | None:
    """Returns what `write_completed` wrote, without the weights, or None."""
    return _read_json(self._completed / f'{evaluation:06d}.json')

  def read_completed_weights(self, evaluation: int) -> dict[str, Any]:
    """Returns the final variables of a completed individual as NumPy arrays.

    Raises:
      DamagedError: If they are not there, or not what was written.
    """
    return self._read_variables(f'completed_{evaluation:06d}')

  def write_start(self, dataset: Mapping[str, Any], start: Mapping[str, Any]) -> None:
    """Records a start of the search.

    Args:
      dataset: What the data set is.
      start: What it runs on.
    """
    starts = read_environment(self.path).get('starts', [])
    content = {'dataset': dict(dataset), 'starts': [*starts, dict(start)]}
    _write_json(self.path / 'environment.json', content)

  def write_result(self, result: Mapping[str, Any]) -> None:
    """Writes the outcome of the search."""
    _write_json(self.path / 'result.json', result)

  def read_result(self) -> dict[str, Any] | None:
    """Returns the outcome of the search, or None while there is none."""
    return read_result(self.path)

  def _write_variables(self, name: str, variables: Mapping[str, Any]) -> None:
    leaves = traverse_util.flatten_dict(variables, sep='/')
    # Safetensors would write another memory order as it is, and read it as C order.
    arrays = {path: np.asarray(leaf, order='C') for path, leaf in leaves.items()}
    content = safetensors.numpy.save(arrays, {'crc32': _arrays_checksum(arrays)})
    _write(self._weights / f'{name}.safetensors', content)

  def _read_variables(self, name: str) -> dict[str, Any]:
    path = self._weights / f'{name}.safetensors'
    try:
      with safetensors.safe_open(path, 'numpy') as file:
        leaves = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        checksum = (file.metadata() or {}).get('crc32')
    # Safetensors has its own error for most, and lets others through.
    except Exception as error:
      raise DamagedError(f'weights: {path} cannot be read: {error}') from error
    if checksum is None and self._version == 1:
      checksum = _arrays_checksum(leaves)
    if checksum != _arrays_checksum(leaves):
      raise DamagedError(f'weights: {path} is not what was written: its checksum')
    return traverse_util.unflatten_dict(leaves, sep='/')


def _event_checksum(event: Mapping[str, Any]) -> str:
  # Of all but the durations, so that two runs of a seed differ in those alone.
  content = {name: value for name, value in event.items() if name != 'seconds'}
  return f'{zlib.crc32(json.dumps(content).encode()):08x}'


def _arrays_checksum(arrays: Mapping[str, np.ndarray]) -> str:
  value = 0
  for path in sorted(arrays):
    array = arrays[path]
    value = zlib.crc32(f'{path} {array.dtype} {array.shape}'.encode(), value)
    value = zlib.crc32(array.tobytes(), value)
  return f'{value:08x}'


def _parse_events(path: pathlib.Path, version: int) -> tuple[list[dict[str, Any]], int]:
  """Returns the events of a file, and the length of what holds them in bytes."""
  if not path.exists():
    return [], 0
  # What follows the last line break is not written yet, or nothing.
  *lines, _ = _read_bytes(path).split(b'\n')
  events: list[dict[str, Any]] = []
  length = 0
  for number, line in enumerate(lines):
    try:
      events.append(_parse_event(line, number, version))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      if number == len(lines) - 1:
        break  # A crash can leave a last line of zeros.
      raise DamagedError(
        f'events: line {number + 1} of {path} is not what was written: {error}'
      ) from error
    length += len(line) + 1
  return events, length


def _parse_event(line: bytes, number: int, version: int) -> dict[str, Any]:
  event = json.loads(line)
  if not isinstance(event, dict):
    raise ValueError('no object')
  if version > 1 and event.pop('crc32') != _event_checksum(event):
    raise ValueError('its checksum')
  genotype_from_json(event)
  fitness, epochs_used = event['fitness'], event['epochs_used']
  if event['evaluation'] != number or not 0 <= fitness <= 1 or epochs_used < 1:
    raise ValueError('evaluation, fitness or epochs_used')
  return event


def genotype_to_json(genotype: Genotype) -> dict[str, Any]:
  """Returns the fields of an event that hold a genotype.

  Returns:
    `genotype`: [filters, kernel size, stride] of every block; `lineages`: their
    lineages; `next_lineage`.
  """
  return {
    'genotype': [[b.filters, b.kernel_size, b.stride] for b in genotype.blocks],
    'lineages': [block.lineage for block in genotype.blocks],
    'next_lineage': genotype.next_lineage,
  }


def genotype_from_json(fields: Mapping[str, Any]) -> Genotype:
  """Returns the genotype that `genotype_to_json` wrote into these fields.

  Raises:
    ValueError: If there is none in them; also KeyError and TypeError.
  """
  blocks = [
    Block(filters, kernel_size, stride, lineage)
    for (filters, kernel_size, stride), lineage in zip(
      fields['genotype'], fields['lineages'], strict=True
    )
  ]
  next_lineage = fields['next_lineage']
  integers = [
    next_lineage,
    *(value for block in blocks for value in vars(block).values()),
  ]
  if not blocks or not all(type(value) is int for value in integers):
    raise ValueError('genotype')
  return Genotype(tuple(blocks), next_lineage=next_lineage)


def read_events(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the events of a run directory, oldest first; it may be written to.

  Args:
    path: The directory.

  Raises:
    UserError: If a line is damaged, or it is no run directory.
  """
  path = pathlib.Path(path)
  version, _ = _read_config(path)
  return _parse_events(path / 'events.jsonl', version)[0]


def read_result(path: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Returns the outcome of a run directory, or None while there is none.

  Args:
    path: The directory.
  """
  return _read_json(pathlib.Path(path) / 'result.json')


def read_environment(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the data set of a run directory and its starts; empty if unknown.

  Args:
    path: The directory.
  """
  try:
    return _read_json(pathlib.Path(path) / 'environment.json') or {}
  except DamagedError:
    return {}  # No result depends on it.


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the configuration of a run directory, as JSON has it.

  Fields that were added since it was made have the values that it had without them.

  Args:
    path: The directory.

  Raises:
    UserError: If there is none of a known format version.
  """
  return {**config_lib.ADDED_FIELDS, **_read_config(pathlib.Path(path))[1]}


def _read_config(path: pathlib.Path) -> tuple[int, dict[str, Any]]:
  config_path = path / 'config.json'
  try:
    content = _read_json(config_path)
  except DamagedError:
    content = None
  match content:
    case {'format_version': int(version), 'config': dict(config)} if (
      version in _KNOWN_VERSIONS
    ):
      return version, config
  known = ' or '.join(map(str, _KNOWN_VERSIONS))
  raise UserError(f'workdir: {config_path} is not of format version {known}')


# ------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------


@contextlib.contextmanager
def _storing(path: pathlib.Path) -> Iterator[None]:
  """Says in one line what cannot be written."""
  try:
    yield
  except OSError as error:
    raise StorageError(
      f'{path}: {error.strerror}; what was recorded before is kept, and the same'
      ' command goes on'
    ) from error


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  _write(path, json.dumps(content, indent=2).encode() + b'\n')


def _read_json(path: pathlib.Path) -> Any:
  if not path.exists():
    return None
  try:
    content = json.loads(_read_bytes(path))
    if not isinstance(content, dict):
      raise ValueError('no object')
    return content
  except (ValueError, RecursionError) as error:
    raise DamagedError(f'file: {path} is not what was written: {error}') from error


def _read_bytes(path: pathlib.Path) -> bytes:
  try:
    if path.stat().st_size > _MAX_JSON_BYTES:
      raise DamagedError(f'file: {path} has more than {_MAX_JSON_BYTES} bytes')
    return path.read_bytes()
  except OSError as error:
    raise UserError(f'file: {path}: {error.strerror}') from error


def _write(path: pathlib.Path, content: bytes) -> None:
  """Replaces a file as a whole; the new one is on disk when this returns."""
  temporary = _temporary(path)
  with _storing(path):
    try:
      _write_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, content)
      os.replace(temporary, path)
      _sync_directory(path.parent)
    except OSError:
      with contextlib.suppress(OSError):
        os.unlink(temporary)  # It may fill what is left of the disk.
      raise


def _write_file(path: pathlib.Path, flags: int, content: bytes) -> None:
  """Writes to a file, and waits until it is on disk."""
  descriptor = os.open(path, flags, 0o666)
  try:
    rest = memoryview(content)
    while rest:
      rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _temporary(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f'.{path.name}.tmp')


def _sync_directory(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
