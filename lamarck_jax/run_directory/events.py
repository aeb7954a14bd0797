"""The lines of events.jsonl: one JSON object per evaluation, with a checksum.

The file is only appended to, and the state of a search is computed from it alone. A
crash can damage nothing but the last line, whose evaluation is then repeated; damage to
an earlier line is an error.

A line has the fields of an event and, around them, what binds it to other files: the
digests of its run's configuration and of its weights, see `digests`.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any
import zlib

from lamarck_jax.errors import DamagedError
from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import digests, durable

FILE_NAME = 'events.jsonl'


class EventFile:
  """The events of a run, for the process that writes them.

  Attributes:
    weights: The digests of the weights that events name, by evaluation; of the events
      that were read or appended.
  """

  def __init__(self, folder: durable.Folder, run: str | None, *, owned: bool = False):
    """Neither reads nor writes.

    Args:
      folder: The run directory.
      run: The digest of the run's configuration; None for a run without digests.
      owned: Whether this process holds the lock of the run directory. It then takes
        the file over when it first reads it, and stops once another has changed it.
    """
    self.weights: dict[int, str] = {}
    self._folder, self._run, self._owned = folder, run, owned

  def recover(self) -> list[dict[str, Any]]:
    """Returns the events, and removes a torn or damaged last line.

    Raises:
      DamagedError: If an earlier line is damaged, or belongs to another run.
      StorageError: If the line cannot be removed.
    """
    is_first = FILE_NAME not in self._folder.left
    if self._owned:
      self._folder.check()
    found = self._folder.identity(FILE_NAME)
    content = self._folder.read_bytes(FILE_NAME) if found else b''
    parsed = _parse(self._folder.path / FILE_NAME, content, self._run)
    self._folder.left[FILE_NAME] = found
    whole = content[: parsed.num_bytes]
    if found and (whole != content or (self._owned and is_first)):
      # A new file, even if of equal content: a process that has lost the lock, and is
      # about to append, appends to the old one, which has no name any more.
      self._folder.write(FILE_NAME, whole)
    self.weights = parsed.weights
    return parsed.events

  def append(self, event: Mapping[str, Any], weights: str | None = None) -> None:
    """Appends an event; it is on disk when this returns.

    Args:
      event: The event.
      weights: The digest of its weights if they are kept.

    Raises:
      StorageError: If it cannot be written, or another process has changed the file.
    """
    if FILE_NAME not in self._folder.left:
      self.recover()
    line = dict(event)
    if self._run is not None:
      line |= {digests.CONFIG: self._run, digests.WEIGHTS: weights}
    line['crc32'] = _checksum(line)
    self._folder.append(FILE_NAME, json.dumps(line).encode() + b'\n')
    if weights is not None:
      self.weights[event['evaluation']] = weights

  def keep_first(self, count: int) -> None:
    """Removes all events but the first `count`.

    Raises:
      StorageError: If it cannot be written.
    """
    lines = self._folder.read_bytes(FILE_NAME).splitlines(keepends=True)
    self._folder.write(FILE_NAME, b''.join(lines[:count]))
    self.weights = {n: digest for n, digest in self.weights.items() if n < count}


def read(folder: durable.Folder, run: str | None) -> 'Parsed':
  """Returns the events of a file without a torn or damaged last line.

  Another process may be appending to it.

  Args:
    folder: The run directory.
    run: The digest of the run's configuration; None for a run without digests.

  Raises:
    DamagedError: If an earlier line is damaged, or belongs to another run.
  """
  is_there = folder.identity(FILE_NAME) is not None
  content = folder.read_bytes(FILE_NAME) if is_there else b''
  return _parse(folder.path / FILE_NAME, content, run)


@dataclasses.dataclass
class Parsed:
  """The content of a file of events.

  Attributes:
    events: The events, oldest first, as they were appended.
    weights: The digests of the weights that they name, by evaluation.
    digest: The digest of all lines; durations are left out.
    num_bytes: The number of bytes that hold them.
  """

  events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  weights: dict[int, str] = dataclasses.field(default_factory=dict)
  digest: str = ''
  num_bytes: int = 0


def _checksum(event: Mapping[str, Any]) -> str:
  # Durations are left out, so that two runs with equal seeds differ in them alone.
  content = {name: value for name, value in event.items() if name != 'seconds'}
  return f'{zlib.crc32(json.dumps(content).encode()):08x}'


def _parse(path: pathlib.Path, content: bytes, run: str | None) -> Parsed:
  # After the last line break comes nothing, or a line that is still incomplete.
  *lines, _ = content.split(b'\n')
  result, whole = Parsed(), []
  for number, line in enumerate(lines):
    try:
      event = _parse_line(line, number)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      if number == len(lines) - 1:
        break  # A crash can leave a last line of zeros.
      raise DamagedError(
        f'events: got line {number + 1} of {path} damaged ({error}), want it as written'
      ) from error
    whole.append(dict(event))
    if run is not None:
      source = pathlib.Path(f'line {number + 1} of {path}')
      digests.check(source, event, {digests.CONFIG: run})
      del event[digests.CONFIG]
      if isinstance(weights := event.pop(digests.WEIGHTS, None), str):
        result.weights[number] = weights
    result.events.append(event)
    result.num_bytes += len(line) + 1
  result.digest = digests.of_json(whole)
  return result


def _parse_line(line: bytes, number: int) -> dict[str, Any]:
  """Returns the event of a line; raises ValueError, KeyError or TypeError."""
  event = json.loads(line)
  if not isinstance(event, dict):
    raise ValueError(f'got a {type(event).__name__}, want a JSON object')
  written = event.pop('crc32')
  checksum = _checksum(event)
  if checksum != written:
    raise ValueError(f'crc32: got {checksum}, want {written!r}')
  # Files may come from anywhere: a checksum alone does not make them well-formed.
  Genotype.from_json(event)
  digests.check_durations(event)
  int(event.get('correct') or '0', 16)  # Of a population with complementary mates.
  if event['evaluation'] != number:
    raise ValueError(f'evaluation: got {event["evaluation"]!r}, want {number}')
  if not 0 <= event['fitness'] <= 1:
    raise ValueError(f'fitness: got {event["fitness"]!r}, want 0 to 1')
  if event['epochs_used'] < 1:
    raise ValueError(f'epochs_used: got {event["epochs_used"]!r}, want at least 1')
  return event
