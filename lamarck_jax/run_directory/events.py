"""The lines of events.jsonl: one JSON object per evaluation, with a checksum.

The file is only appended to, and the state of a search is computed from it alone. A
crash can damage nothing but the last line, whose evaluation is then repeated; damage to
an earlier line is an error.
"""

from collections.abc import Mapping
import json
import pathlib
from typing import Any
import zlib

from lamarck_jax.errors import DamagedError
from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import durable


def append(path: pathlib.Path, event: Mapping[str, Any]) -> None:
  """Appends an event; it is on disk when this returns.

  Raises:
    StorageError: If it cannot be written.
  """
  line = json.dumps({**event, 'crc32': _checksum(event)})
  durable.append(path, line.encode() + b'\n')


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the events of a file, oldest first, without a torn or damaged last line.

  Another process may be appending to it.

  Raises:
    DamagedError: If an earlier line is damaged.
  """
  return _parse(path)[0]


def recover(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the events of a file, and removes a torn or damaged last line from it.

  Raises:
    DamagedError: If an earlier line is damaged.
    StorageError: If the line cannot be removed.
  """
  events, num_bytes = _parse(path)
  if path.exists() and num_bytes < path.stat().st_size:
    durable.truncate(path, num_bytes)
  return events


def keep_first(path: pathlib.Path, count: int) -> None:
  """Removes all events but the first `count`.

  Raises:
    StorageError: If it cannot be written.
  """
  lines = durable.read_bytes(path).splitlines(keepends=True)
  durable.write(path, b''.join(lines[:count]))


def _checksum(event: Mapping[str, Any]) -> str:
  # Durations are left out, so that two runs with equal seeds differ in them alone.
  content = {name: value for name, value in event.items() if name != 'seconds'}
  return f'{zlib.crc32(json.dumps(content).encode()):08x}'


def _parse(path: pathlib.Path) -> tuple[list[dict[str, Any]], int]:
  """Returns the events of a file, and the number of bytes that hold them."""
  if not path.exists():
    return [], 0
  # After the last line break comes nothing, or a line that is still incomplete.
  *lines, _ = durable.read_bytes(path).split(b'\n')
  events: list[dict[str, Any]] = []
  num_bytes = 0
  for number, line in enumerate(lines):
    try:
      events.append(_parse_line(line, number))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      if number == len(lines) - 1:
        break  # A crash can leave a last line of zeros.
      raise DamagedError(
        f'events: got line {number + 1} of {path} damaged ({error}), want it as written'
      ) from error
    num_bytes += len(line) + 1
  return events, num_bytes


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
  if event['evaluation'] != number:
    raise ValueError(f'evaluation: got {event["evaluation"]!r}, want {number}')
  if not 0 <= event['fitness'] <= 1:
    raise ValueError(f'fitness: got {event["fitness"]!r}, want 0 to 1')
  if event['epochs_used'] < 1:
    raise ValueError(f'epochs_used: got {event["epochs_used"]!r}, want at least 1')
  return event
