"""Digests that bind the files of a run to one another.

The configuration's digest is the run's identity: it stands in every event, in the
result, in the outcome of every completion and in the state of one in progress. An event
has the digest of its weights, an outcome that of the final weights, a result that of
all events. So a file that has come from another run, or from another state of this one,
is noticed when it is read.

No digest covers durations, so that two runs with equal seeds have the same digests.
"""

from collections.abc import Mapping, Sequence
import hashlib
import json
import math
import pathlib
from typing import Any

import numpy as np

from lamarck_jax.errors import DamagedError

# The fields in which files hold the digests of others, and their own.
CONFIG, WEIGHTS, EVENTS, OWN = (
  'config_sha256',
  'weights_sha256',
  'events_sha256',
  'sha256',
)


def of_json(content: Any) -> str:
  """Returns the SHA-256 of a JSON value, in hexadecimal; durations are left out."""
  content = json.loads(json.dumps(content))  # As it is read back.
  text = json.dumps(_without_seconds(content), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
  """Returns the SHA-256 of arrays with their names, dtypes and shapes."""
  digest = hashlib.sha256()
  for name in sorted(arrays):
    array = np.asarray(arrays[name], order='C')
    digest.update(f'{name} {array.dtype} {array.shape}\n'.encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


def of_config(config: Mapping[str, Any], locations: Sequence[str]) -> str:
  """Returns the digest of a configuration, which is the identity of its run.

  It follows from the configuration alone, because runs with equal seeds are to have
  equal events.

  Args:
    config: The configuration as config.json has it.
    locations: Dotted names of fields that tell where data lie, which may change.
  """
  content = json.loads(json.dumps(config))
  for name in locations:
    section, _, field = name.rpartition('.')
    if isinstance(inner := content.get(section) if section else content, dict):
      inner.pop(field, None)
  return of_json(content)


def sealed(content: Mapping[str, Any], bound: Mapping[str, str]) -> dict[str, Any]:
  """Returns a JSON object with the digests of other files, and one of all of it."""
  content = {**content, **bound}
  return {**content, OWN: of_json(content)}


def unsealed(
  path: pathlib.Path, content: Mapping[str, Any], bound: Mapping[str, str]
) -> dict[str, Any]:
  """Returns the JSON object that `sealed` took.

  Args:
    path: Its file, for messages.
    content: What `sealed` returned.
    bound: The digests of the other files as they are now.

  Raises:
    DamagedError: If it was changed, or belongs to other files.
  """
  content = dict(content)
  written = content.pop(OWN, None)
  try:
    digest = of_json(content)
  except RecursionError as error:
    raise DamagedError(f'file: got {path} with {error}, want it as written') from error
  if digest != written:
    raise DamagedError(f'{OWN}: got {path} with {digest}, want {written!r} as written')
  try:
    check_durations(content)
  except ValueError as error:
    raise DamagedError(f'{error} in {path}') from error
  check(path, content, bound)
  return {name: value for name, value in content.items() if name not in bound}


def check_durations(content: Any) -> None:
  """Checks the durations inside a JSON value, which no digest covers.

  Raises:
    ValueError: If one is no number of seconds, nor an object of some.
  """
  if isinstance(content, list):
    content = dict(enumerate(content))
  if not isinstance(content, dict):
    return
  for name, value in content.items():
    if name == 'test_accuracy_by_class':
      continue  # Its names are those of classes, which may be any.
    if name != 'seconds':
      check_durations(value)
      continue
    for duration in value.values() if isinstance(value, dict) else [value]:
      if type(duration) not in (int, float) or not 0 <= duration < math.inf:
        raise ValueError(f'seconds: got {duration!r:.60}, want a number of at least 0')


def check(
  path: pathlib.Path, written: Mapping[str, Any], bound: Mapping[str, str]
) -> None:
  """Checks that a file belongs to others.

  Args:
    path: The file, for messages.
    written: The digests that it holds.
    bound: The digests of the other files as they are now.

  Raises:
    DamagedError: If they differ.
  """
  for name, digest in bound.items():
    if written.get(name) != digest:
      raise DamagedError(
        f'{name}: got {written.get(name)!r} in {path}, want {digest!r}: the files are'
        ' not of one run'
      )


def _without_seconds(value: Any) -> Any:
  match value:
    case dict():
      return {k: _without_seconds(v) for k, v in value.items() if k != 'seconds'}
    case list():
      return [_without_seconds(part) for part in value]
  return value
