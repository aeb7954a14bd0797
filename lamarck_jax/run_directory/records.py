"""The run directory: everything a search writes, and reads back to resume.

  config.json       the configuration
  events.jsonl      one JSON object per evaluation, append-only; the single truth
  weights/          safetensors, only of individuals that are still needed
  completed/        one JSON object per individual trained to completion
  environment.json  the data set, and the machine of each start of the search
  result.json       the outcome, once there is one

Weights are on disk before the event that names them. Every file but events.jsonl is
replaced as a whole. Files have the digests of others that they belong to, see
`digests`; they are checked when a file is read. Reading a directory runs no code from
it: there is JSON and safetensors alone.
"""

from collections.abc import Collection, Mapping
import json
import os
import pathlib
from typing import Any

from absl import logging

from lamarck_jax import config as config_lib
from lamarck_jax.errors import DamagedError, UserError
from lamarck_jax.run_directory import digests, durable, events, lock, weights

FORMAT_VERSION = 3
# A run keeps the version that it was started with; version 2 had no digests.
_VERSIONS = (2, 3)


class RunDirectory:
  """Reads and writes one run directory.

  Attributes:
    path: The directory.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    config: Mapping[str, Any],
    folder: durable.Folder | None = None,
  ):
    """Opens a run directory, or makes it.

    Args:
      path: The directory.
      config: The configuration as nested dictionaries.
      folder: The directory as `lock.locked` yields it; without it nothing keeps other
        processes from writing.

    Raises:
      UserError: If it holds a run with another configuration, or other files.
      StorageError: If it cannot be written.
    """
    self.path = pathlib.Path(path)
    check(path, config)
    try:
      durable.make_directory(self.path)
      self._folder = folder or durable.Folder.open(self.path)
    except OSError as error:
      raise _unusable(self.path, error) from error
    if self._folder.identity('config.json') is None:
      content = {'format_version': FORMAT_VERSION, 'config': config}
      self._folder.write_json('config.json', content)
    self._weights = self._folder.child('weights')
    self._completed = self._folder.child('completed')
    self._run = _run(self.path)
    owned = folder is not None
    self._events = events.EventFile(self._folder, self._run, owned=owned)
    # Of weights that were written and stand in no event yet.
    self._written: dict[int, str] = {}
    if owned:
      for each in (self._folder, self._weights, self._completed):
        each.remove_temporary_files()

  def read_events(self) -> list[dict[str, Any]]:
    """Returns the events so far, oldest first.

    A last line that a crash has torn is removed, and its evaluation is repeated.

    Raises:
      DamagedError: If an earlier line is damaged.
    """
    return self._events.recover()

  def append_event(self, event: Mapping[str, Any]) -> None:
    """Appends an event; it is on disk when this returns."""
    self._events.append(event, self._written.pop(event['evaluation'], None))

  def keep_events(self, count: int) -> None:
    """Removes all events but the first `count`; `events.jsonl.cut` keeps all."""
    self._events.keep_first(count)

  def write_weights(self, evaluation: int, variables: Mapping[str, Any]) -> None:
    """Writes the variables of an individual, named by its evaluation."""
    name = weights.file_name(evaluation)
    self._written[evaluation] = weights.write(self._weights, name, variables)

  def read_weights(self, evaluation: int) -> dict[str, Any]:
    """Returns the variables of an individual as NumPy arrays.

    Raises:
      DamagedError: If they are missing, damaged, or not those that the event names.
    """
    digest = self._written.get(evaluation) or self._digest(evaluation)
    return weights.read(self._weights, weights.file_name(evaluation), digest)

  def keep_weights(self, evaluations: Collection[int]) -> None:
    """Removes the weights of all individuals but these, and what crashes have left.

    Weights of completions are kept.
    """
    for name in self._weights.names():
      if not self._is_needed(name, evaluations):
        self._weights.remove(name)

  def write_completing(self, evaluation: int, state: Mapping[str, Any]) -> None:
    """Writes the training state of an individual's completion, a tree of arrays."""
    name = weights.file_name(evaluation, 'completing')
    weights.write(self._weights, name, state, self._bound(evaluation))

  def read_completing(self, evaluation: int) -> dict[str, Any] | None:
    """Returns what `write_completing` wrote last, or None.

    Raises:
      DamagedError: If it is damaged, or follows from other weights.
    """
    name = weights.file_name(evaluation, 'completing')
    if self._weights.identity(name) is None:
      return None
    return weights.read(self._weights, name, bound=self._bound(evaluation))

  def write_completed(
    self, evaluation: int, outcome: Mapping[str, Any], variables: Mapping[str, Any]
  ) -> None:
    """Writes the outcome of an individual's completion, and its final weights.

    What `write_completing` wrote is removed.
    """
    name = weights.file_name(evaluation, 'completed')
    digest = weights.write(self._weights, name, variables)
    if self._run is not None:
      bound = {digests.CONFIG: self._run, digests.WEIGHTS: digest}
      outcome = digests.sealed(outcome, bound)
    # After the weights: the outcome says that the completion has ended.
    self._completed.write_json(_outcome_name(evaluation), outcome)
    self._weights.remove(weights.file_name(evaluation, 'completing'))

  def read_completed(self, evaluation: int) -> dict[str, Any] | None:
    """Returns the outcome that `write_completed` wrote, or None.

    One that is damaged, or is not of this run and these final weights, counts as none:
    the completion is repeated.
    """
    try:
      outcome, digest = self._read_completed(evaluation)
      if digest is not None:
        self.read_completed_weights(evaluation)
    except DamagedError as error:
      logging.warning('%s; completing again', error)
      return None
    return outcome

  def read_completed_weights(self, evaluation: int) -> dict[str, Any]:
    """Returns the final variables of a completed individual as NumPy arrays.

    Raises:
      DamagedError: If they are missing, damaged, or not those of the outcome.
    """
    _, digest = self._read_completed(evaluation)
    name = weights.file_name(evaluation, 'completed')
    return weights.read(self._weights, name, digest)

  def write_start(self, dataset: Mapping[str, Any], start: Mapping[str, Any]) -> None:
    """Records a start of the search.

    Args:
      dataset: Description of the data set, as `Dataset.description` has it.
      start: Time, machine and versions.
    """
    starts = read_environment(self.path).get('starts', [])
    content = {'dataset': dict(dataset), 'starts': [*starts, dict(start)]}
    self._folder.write_json('environment.json', content)

  def write_result(self, result: Mapping[str, Any]) -> None:
    """Writes the outcome of the search."""
    if self._run is not None:
      parsed = events.read(self._folder, self._run)
      bound = {digests.CONFIG: self._run, digests.EVENTS: parsed.digest}
      result = digests.sealed(result, bound)
    self._folder.write_json('result.json', result)

  def read_result(self) -> dict[str, Any] | None:
    """Returns the outcome of the search, or None while there is none."""
    return read_result(self.path)

  def _read_completed(
    self, evaluation: int
  ) -> tuple[dict[str, Any] | None, str | None]:
    """Returns the outcome of a completion, and the digest of its final weights."""
    name = _outcome_name(evaluation)
    outcome = self._completed.read_json(name)
    if outcome is None or self._run is None:
      return outcome, None
    path = self._completed.path / name
    outcome = digests.unsealed(path, outcome, {digests.CONFIG: self._run})
    return outcome, outcome.pop(digests.WEIGHTS, None)

  def _digest(self, evaluation: int) -> str | None:
    """Returns the digest of the weights that an event names, if it names any."""
    if not self._events.weights:
      return events.read(self._folder, self._run).weights.get(evaluation)
    return self._events.weights.get(evaluation)

  def _bound(self, evaluation: int) -> dict[str, str]:
    """Returns what the state of a completion follows from."""
    if self._run is None:
      return {}
    digest = self._digest(evaluation) or self._written.get(evaluation) or ''
    return {digests.CONFIG: self._run, digests.WEIGHTS: digest}

  def _is_needed(self, name: str, evaluations: Collection[int]) -> bool:
    """Returns whether a file of the folder of weights is still needed."""
    match weights.parse_file_name(name):
      case None:
        return False  # A temporary file that a crash has left.
      case evaluation, 'search':
        return evaluation in evaluations
      case evaluation, 'completing':
        # A crash can leave it behind when the completion has ended.
        return self._completed.identity(_outcome_name(evaluation)) is None
    return True


def check(path: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
  """Checks, without writing, that a directory holds this run or can become its own.

  Args:
    path: The directory; it need not exist.
    config: The configuration as nested dictionaries.

  Raises:
    UserError: If it holds a run with another configuration, or other files.
  """
  path = pathlib.Path(path)
  config_path = path / 'config.json'
  try:
    if not config_path.exists():
      # A crash while config.json was written leaves its temporary file.
      if path.exists() and not all(map(_is_left_by_a_crash, path.iterdir())):
        raise UserError(
          f'workdir: got {path} with files but no config.json, want a run directory, or'
          ' an empty or new one'
        )
      return
  except OSError as error:
    raise _unusable(path, error) from error
  differing = config_lib.differing_fields(_as_json(config), read_config(path))
  if differing:
    raise UserError(
      f'workdir: got {path}, want another directory: the config of its run differs in'
      f' {", ".join(differing)}'
    )


def read_events(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the events of a run, oldest first; the run may still be going on.

  Args:
    path: The run directory.

  Raises:
    UserError: If a line is damaged, or it is no run directory.
  """
  return _read_events(pathlib.Path(path)).events


def read_result(path: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Returns the outcome of a run, or None while there is none.

  Args:
    path: The run directory.

  Raises:
    DamagedError: If it is damaged, or belongs to another configuration or other events.
  """
  path = pathlib.Path(path)
  result = durable.read_json(path / 'result.json')
  if result is None or (run := _run(path)) is None:
    return result
  bound = {digests.CONFIG: run, digests.EVENTS: _read_events(path).digest}
  return digests.unsealed(path / 'result.json', result, bound)


def _read_events(path: pathlib.Path) -> events.Parsed:
  run = _run(path)
  try:
    folder = durable.Folder.open(path)
  except OSError as error:
    raise _unusable(path, error) from error
  return events.read(folder, run)


def read_environment(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns `dataset` and `starts` of a run; empty if they are unknown.

  Args:
    path: The run directory.
  """
  try:
    return durable.read_json(pathlib.Path(path) / 'environment.json') or {}
  except DamagedError:
    return {}  # No result depends on it.


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the configuration of a run, as JSON has it.

  Fields that were added after the run was started have their defaults.

  Args:
    path: The run directory.

  Raises:
    UserError: If there is none, or it is of another format version.
  """
  return _as_json(config_lib.with_defaults(_stored_config(path)[1]))


def _run(path: pathlib.Path) -> str | None:
  """Returns the digest of a run's configuration; None for a run without digests."""
  version, config = _stored_config(path)
  return digests.of_config(config, config_lib.LOCATIONS) if version > 2 else None


def _stored_config(path: str | os.PathLike[str]) -> tuple[int, dict[str, Any]]:
  """Returns the format version of a run, and its configuration as it was written."""
  config_path = pathlib.Path(path) / 'config.json'
  try:
    content = durable.read_json(config_path)
  except DamagedError:
    content = None
  match content:
    case {'format_version': int(version), 'config': dict(config)} if (
      version in _VERSIONS
    ):
      return version, config
  raise UserError(
    f'workdir: got {config_path}, want a configuration of format version'
    f' {" or ".join(map(str, _VERSIONS))}'
  )


def _outcome_name(evaluation: int) -> str:
  return f'{evaluation:06d}.json'


def _is_left_by_a_crash(path: pathlib.Path) -> bool:
  """Returns whether a crash before config.json was written can leave a file."""
  return path.name == lock.FILE_NAME or durable.is_temporary(path.name, 'config.json')


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a configuration as it is read back from JSON: tuples become lists."""
  return json.loads(json.dumps(config))


def _unusable(path: pathlib.Path, error: OSError) -> UserError:
  return UserError(
    f'workdir: got {error.strerror} opening {path}, want a writable directory'
  )
