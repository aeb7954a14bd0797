"""The run directory: everything a search writes, and reads back to resume.

  config.json       the configuration
  events.jsonl      one JSON object per evaluation, append-only; the single truth
  weights/          safetensors, only of individuals that are still needed
  completed/        one JSON object per individual trained to completion
  dataset.json      the data set, with a fingerprint that every start compares
  environment.json  the data set, and the machine of each start of the search
  init_from.*       the network that the search started from, if it was given one
  result.json       the outcome, once there is one

Weights are on disk before the event that names them. Every file but events.jsonl is
replaced as a whole. Files have the digests of others that they belong to, see
`digests`; they are checked when a file is read. What is cut away after damage is kept
in a folder cut-1, cut-2, ... Files of other names are left alone. Reading a directory
runs no code from it: there is JSON and safetensors alone.
"""

from collections.abc import Collection, Mapping
import os
import pathlib
import re
from typing import Any

from absl import logging

from lamarck_jax.errors import DamagedError
from lamarck_jax.run_directory import (
  dataset_record,
  digests,
  durable,
  events,
  initial_network,
  reading,
  set_aside,
  weights,
)
from lamarck_jax.run_directory.dataset_record import DatasetRecord
from lamarck_jax.run_directory.initial_network import InitialNetwork
from lamarck_jax.run_directory.reading import (
  FORMAT_VERSION,
  check,
  read_config,
  read_environment,
  read_events,
  read_result,
)

__all__ = [
  'FORMAT_VERSION',
  'RunDirectory',
  'check',
  'read_config',
  'read_environment',
  'read_events',
  'read_result',
]


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
      raise reading.unusable(self.path, error) from error
    if self._folder.identity('config.json') is None:
      content = {'format_version': FORMAT_VERSION, 'config': config}
      self._folder.write_json('config.json', content)
    self._weights = self._folder.child('weights')
    self._completed = self._folder.child('completed')
    self._run = reading.run_digest(self.path)
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

  def cut_back(self, count: int) -> pathlib.Path:
    """Removes all events but the first `count`, and what belongs to the others.

    Returns:
      A new folder, with `events.jsonl` as it was, and with the weights and outcomes of
      the evaluations that have been removed.
    """
    cut = set_aside.new_folder(self._folder, 'cut')
    has_events = self._folder.identity(events.FILE_NAME) is not None
    if has_events:
      cut.write(events.FILE_NAME, self._folder.read_bytes(events.FILE_NAME))
    for kept in (self._weights, self._completed):
      for name in kept.names():
        evaluation = _evaluation_of(name)
        if evaluation is not None and evaluation >= count:
          kept.move(name, cut.child(kept.path.name))
    # Last, since it makes the weights above ones that `keep_weights` removes.
    if has_events:
      self._events.keep_first(count)
    return cut.path

  def later_weights(self, count: int) -> str | None:
    """Returns a file of weights that cannot be there after `count` events, if any.

    The next evaluation's can: weights are written before their event.
    """
    for name in reversed(self._weights.names()):
      evaluation = _evaluation_of(name)
      if evaluation is not None and evaluation > count:
        return name
    return None

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

    Weights of completions are kept, and so is every file of another name.
    """
    for name in self._weights.names():
      if not self._is_needed(name, evaluations):
        self._weights.remove(name)

  def networks(self) -> list[int]:
    """Returns the evaluations of which there are weights, ascending."""
    parsed = map(weights.parse_file_name, self._weights.names())
    return sorted({p[0] for p in parsed if p and p[1] != 'completing'})

  def write_completing(self, evaluation: int, state: Mapping[str, Any]) -> None:
    """Writes the training state of an individual's completion, a tree of arrays."""
    name = weights.file_name(evaluation, 'completing')
    set_aside.folder(self._weights, name)
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
    set_aside.folder(self._weights, name)
    set_aside.folder(self._completed, _outcome_name(evaluation))
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

  def write_dataset(self, record: DatasetRecord) -> None:
    """Records the data set at the first start; checks it at later ones.

    Raises:
      UserError: If the run was started with another.
    """
    recorded = dataset_record.read(self.path)
    if recorded is None:
      dataset_record.write(self._folder, record)
    else:
      dataset_record.check(self.path, recorded, record)

  def write_initial(
    self, network: InitialNetwork, variables: Mapping[str, Any]
  ) -> None:
    """Records the network that the search starts from, and its weights."""
    initial_network.write(self._folder, network, variables)

  def read_initial_weights(self, network: InitialNetwork) -> dict[str, Any]:
    """Returns the weights of the network that the search starts from.

    Raises:
      DamagedError: If they are missing, damaged, or another network's.
    """
    return initial_network.read_weights(self._folder, network)

  def write_start(self, dataset: Mapping[str, Any], start: Mapping[str, Any]) -> None:
    """Records a start of the search.

    Args:
      dataset: Description of the data set, as `Dataset.description` has it.
      start: Time, machine and versions.
    """
    starts = reading.read_starts(self.path)
    if 'environment.json' in self._folder.names() and not starts:
      # It is damaged, and may still tell a person something.
      set_aside.file(self._folder, 'environment.json')
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
        return not _is_temporary(name)  # A crash can leave a temporary file.
      case evaluation, 'search':
        return evaluation in evaluations
      case evaluation, 'completing':
        # A crash can leave it behind when the completion has ended.
        return _outcome_name(evaluation) not in self._completed.names()
    return True


def _evaluation_of(name: str) -> int | None:
  """Returns the evaluation that a file of weights or of an outcome is of."""
  if parsed := weights.parse_file_name(name):
    return parsed[0]
  match = re.fullmatch(r'(\d{6,})\.json', name)
  return int(match[1]) if match else None


def _is_temporary(name: str) -> bool:
  """Returns whether a name is that of a temporary file of weights."""
  return (of := durable.temporary_of(name)) is not None and (
    weights.parse_file_name(of) is not None
  )


def _outcome_name(evaluation: int) -> str:
  return f'{evaluation:06d}.json'
