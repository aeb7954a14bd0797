"""The run directory: everything a search writes, and reads back to resume.

  config.json       the configuration
  events.jsonl      one JSON object per evaluation, append-only; the single truth
  weights/          safetensors, only of individuals that are still needed
  completed/        one JSON object per individual trained to completion
  dataset.json      the data set, with a fingerprint that every start compares
  environment.json  the data set, and the machine of each start of the search
  result.json       the outcome, once there is one

Weights are on disk before the event that names them. Every file but events.jsonl is
replaced as a whole. What is cut away after damage is kept in a folder cut-1, cut-2, ...
Files of other names are left alone. Reading a directory runs no code from it: there is
JSON and safetensors alone.
"""

from collections.abc import Collection, Mapping
import json
import os
import pathlib
import re
from typing import Any

from lamarck_jax import config as config_lib
from lamarck_jax.errors import DamagedError, UserError
from lamarck_jax.run_directory import (
  dataset_record,
  durable,
  events,
  lock,
  set_aside,
  weights,
)
from lamarck_jax.run_directory.dataset_record import DatasetRecord

FORMAT_VERSION = 2


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
      UserError: If it holds a run with another configuration, or other files.
      StorageError: If it cannot be written.
    """
    self.path = pathlib.Path(path)
    self._events = self.path / 'events.jsonl'
    self._weights = self.path / 'weights'
    self._completed = self.path / 'completed'
    check(path, config)
    try:
      self.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise _unusable(self.path, error) from error
    config_path = self.path / 'config.json'
    if not config_path.exists():
      content = {'format_version': FORMAT_VERSION, 'config': config}
      durable.write_json(config_path, content)
    with durable.storing(self.path):
      self._weights.mkdir(exist_ok=True)
      self._completed.mkdir(exist_ok=True)

  def read_events(self) -> list[dict[str, Any]]:
    """Returns the events so far, oldest first.

    A last line that a crash has torn is removed, and its evaluation is repeated.

    Raises:
      DamagedError: If an earlier line is damaged.
    """
    return events.recover(self._events)

  def append_event(self, event: Mapping[str, Any]) -> None:
    """Appends an event; it is on disk when this returns."""
    events.append(self._events, event)

  def cut_back(self, count: int) -> pathlib.Path:
    """Removes all events but the first `count`, and what belongs to the others.

    Returns:
      A new folder, with `events.jsonl` as it was, and with the weights and outcomes of
      the evaluations that have been removed.
    """
    folder = set_aside.new_folder(self.path, 'cut')
    durable.write(folder / self._events.name, durable.read_bytes(self._events))
    for kept in (self._weights, self._completed):
      for path in list(kept.iterdir()):
        evaluation = _evaluation_of(path.name)
        if evaluation is not None and evaluation >= count:
          set_aside.move(path, folder / kept.name)
    # Last, since it makes the weights above ones that `keep_weights` removes.
    events.keep_first(self._events, count)
    return folder

  def write_weights(self, evaluation: int, variables: Mapping[str, Any]) -> None:
    """Writes the variables of an individual, named by its evaluation."""
    weights.write(self._weights_path(evaluation), variables)

  def read_weights(self, evaluation: int) -> dict[str, Any]:
    """Returns the variables of an individual as NumPy arrays.

    Raises:
      DamagedError: If they are missing or damaged.
    """
    return weights.read(self._weights_path(evaluation))

  def keep_weights(self, evaluations: Collection[int]) -> None:
    """Removes the weights of all individuals but these, and what crashes have left.

    Weights of completions are kept, and so is every file of another name.
    """
    with durable.storing(self._weights):
      for path in self._weights.iterdir():
        if not self._is_needed(path.name, evaluations) and not path.is_dir():
          path.unlink()

  def write_completing(self, evaluation: int, state: Mapping[str, Any]) -> None:
    """Writes the training state of an individual's completion, a tree of arrays."""
    weights.write(self._weights_path(evaluation, 'completing'), state)

  def read_completing(self, evaluation: int) -> dict[str, Any] | None:
    """Returns what `write_completing` wrote last, or None.

    Raises:
      DamagedError: If it is damaged.
    """
    path = self._weights_path(evaluation, 'completing')
    return weights.read(path) if path.exists() else None

  def write_completed(
    self, evaluation: int, outcome: Mapping[str, Any], variables: Mapping[str, Any]
  ) -> None:
    """Writes the outcome of an individual's completion, and its final weights.

    What `write_completing` wrote is removed.
    """
    weights.write(self._weights_path(evaluation, 'completed'), variables)
    # After the weights: the outcome says that the completion has ended.
    durable.write_json(self._outcome_path(evaluation), outcome)
    with durable.storing(self._weights):
      self._weights_path(evaluation, 'completing').unlink(missing_ok=True)

  def read_completed(self, evaluation: int) -> dict[str, Any] | None:
    """Returns the outcome that `write_completed` wrote, or None."""
    return durable.read_json(self._outcome_path(evaluation))

  def read_completed_weights(self, evaluation: int) -> dict[str, Any]:
    """Returns the final variables of a completed individual as NumPy arrays.

    Raises:
      DamagedError: If they are missing or damaged.
    """
    return weights.read(self._weights_path(evaluation, 'completed'))

  def write_dataset(self, record: DatasetRecord) -> None:
    """Records the data set at the first start; checks it at later ones.

    Raises:
      UserError: If the run was started with another.
    """
    recorded = dataset_record.read(self.path)
    if recorded is None:
      dataset_record.write(self.path, record)
    else:
      dataset_record.check(self.path, recorded, record)

  def write_start(self, dataset: Mapping[str, Any], start: Mapping[str, Any]) -> None:
    """Records a start of the search.

    Args:
      dataset: Description of the data set, as `Dataset.description` has it.
      start: Time, machine and versions.
    """
    path = self.path / 'environment.json'
    starts = _read_environment(self.path).get('starts', [])
    if path.exists() and not starts:
      set_aside.file(path)  # It is damaged, and may still tell a person something.
    content = {'dataset': dict(dataset), 'starts': [*starts, dict(start)]}
    durable.write_json(path, content)

  def write_result(self, result: Mapping[str, Any]) -> None:
    """Writes the outcome of the search."""
    durable.write_json(self.path / 'result.json', result)

  def read_result(self) -> dict[str, Any] | None:
    """Returns the outcome of the search, or None while there is none."""
    return read_result(self.path)

  def _weights_path(
    self, evaluation: int, stage: weights.Stage = 'search'
  ) -> pathlib.Path:
    return self._weights / weights.file_name(evaluation, stage)

  def _outcome_path(self, evaluation: int) -> pathlib.Path:
    return self._completed / f'{evaluation:06d}.json'

  def _is_needed(self, name: str, evaluations: Collection[int]) -> bool:
    """Returns whether a file of the folder of weights is still needed."""
    match weights.parse_file_name(name):
      case None:
        return not _is_temporary(name)  # A crash can leave a temporary file.
      case evaluation, 'search':
        return evaluation in evaluations
      case evaluation, 'completing':
        # A crash can leave it behind when the completion has ended.
        return not self._outcome_path(evaluation).exists()
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
      known = {durable.temporary_path(config_path), path / lock.FILE_NAME}
      if path.exists() and set(path.iterdir()) - known:
        raise UserError(
          f'workdir: got {path} with files but no config.json, want a run directory, or'
          ' an empty or new one'
        )
      return
  except OSError as error:
    raise _unusable(path, error) from error
  stored = read_config(path)
  differing = config_lib.differing_fields(_as_json(config), stored)
  if 'dataset.name' in differing and dataset_record.may_be_same(
    path, config['dataset']['name'], str(stored['dataset']['name'])
  ):
    differing.remove('dataset.name')
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
  path = pathlib.Path(path)
  read_config(path)
  return events.read(path / 'events.jsonl')


def read_result(path: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Returns the outcome of a run, or None while there is none.

  Args:
    path: The run directory.

  Raises:
    DamagedError: If it is damaged.
  """
  return durable.read_json(pathlib.Path(path) / 'result.json')


def read_environment(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns `dataset` and `starts` of a run; empty if they are unknown.

  Args:
    path: The run directory.
  """
  environment = _read_environment(path)
  try:
    recorded = dataset_record.read(path)
  except DamagedError:
    recorded = None  # A start of the search says so.
  return {**environment, 'dataset': recorded.description} if recorded else environment


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the configuration of a run, as JSON has it.

  Fields that were added after the run was started have their defaults.

  Args:
    path: The run directory.

  Raises:
    UserError: If there is none, or it is of another format version.
  """
  config_path = pathlib.Path(path) / 'config.json'
  try:
    content = durable.read_json(config_path)
  except DamagedError:
    content = None
  match content:
    case {'format_version': int(version), 'config': dict(config)} if (
      version == FORMAT_VERSION
    ):
      return _as_json(config_lib.with_defaults(config))
  raise UserError(
    f'workdir: got {config_path}, want a configuration of format version'
    f' {FORMAT_VERSION}'
  )


def _read_environment(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns environment.json; empty if it is damaged, since no result depends on it."""
  try:
    content = durable.read_json(pathlib.Path(path) / 'environment.json')
  except DamagedError:
    return {}
  parts = {'dataset': dict, 'starts': list}
  content = content or {}
  return {
    key: content[key] for key in parts if isinstance(content.get(key), parts[key])
  }


def _evaluation_of(name: str) -> int | None:
  """Returns the evaluation that a file of weights or of an outcome is of."""
  if parsed := weights.parse_file_name(name):
    return parsed[0]
  match = re.fullmatch(r'(\d{6,})\.json', name)
  return int(match[1]) if match else None


def _is_temporary(name: str) -> bool:
  """Returns whether a name is that of a temporary file of weights."""
  written = name.removeprefix('.').removesuffix('.tmp')
  return (
    weights.parse_file_name(written) is not None
    and durable.temporary_path(pathlib.Path(written)).name == name
  )


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a configuration as it is read back from JSON: tuples become lists."""
  return json.loads(json.dumps(config))


def _unusable(path: pathlib.Path, error: OSError) -> UserError:
  return UserError(
    f'workdir: got {error.strerror} opening {path}, want a writable directory'
  )
