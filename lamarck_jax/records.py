"""The run directory: everything a search writes, and reads to go on.

  config.json    the configuration
  events.jsonl   one JSON object per evaluation, append-only; the single truth
  weights/       safetensors, only of individuals that are still needed
  completed/     one JSON object per individual trained to completion
  result.json    the outcome, once there is one

Weights are on disk before the event that names them. Every other file is
replaced as a whole, so a reader never sees half of one.
"""

from collections.abc import Collection, Mapping
import json
import os
import pathlib
from typing import Any

from flax import traverse_util
import numpy as np
import safetensors.numpy

from lamarck_jax import config as config_lib
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Block, Genotype

FORMAT_VERSION = 1


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
    """
    self.path = pathlib.Path(path)
    self._events = self.path / 'events.jsonl'
    # As JSON has it: tuples become lists.
    config = json.loads(json.dumps(config))
    config_path = self.path / 'config.json'
    try:
      if config_path.exists():
        differing = config_lib.differing_fields(config, read_config(self.path))
        if differing:
          raise UserError(
            f'workdir: {self.path} holds a run with another config: it differs in '
            + ', '.join(differing)
          )
      else:
        self.path.mkdir(parents=True, exist_ok=True)
        # A crash while config.json was written leaves its temporary file.
        if set(self.path.iterdir()) - {_temporary(config_path)}:
          raise UserError(f'workdir: {self.path} has files but no config.json')
        content = {'format_version': FORMAT_VERSION, 'config': config}
        _write_json(config_path, content)
      self._weights.mkdir(exist_ok=True)
      self._completed.mkdir(exist_ok=True)
    except OSError as error:
      raise UserError(f'workdir: {self.path}: {error.strerror}') from error

  @property
  def _weights(self) -> pathlib.Path:
    return self.path / 'weights'

  @property
  def _completed(self) -> pathlib.Path:
    return self.path / 'completed'

  def read_events(self) -> list[dict[str, Any]]:
    """Returns the events so far, oldest first.

    A last line that was cut off while it was written is taken away: its
    evaluation will be repeated.
    """
    if self._events.exists():
      with self._events.open('r+b') as file:
        content = file.read()
        whole = content.rfind(b'\n') + 1
        if whole < len(content):
          file.truncate(whole)
          _sync(file)
    return read_events(self.path)

  def append_event(self, event: Mapping[str, Any]) -> None:
    """Appends an event; it is on disk when this returns."""
    is_new = not self._events.exists()
    with self._events.open('ab') as file:
      file.write(json.dumps(event).encode() + b'\n')
      _sync(file)
    if is_new:
      _sync_directory(self.path)

  def write_weights(self, evaluation: int, variables: Mapping[str, Any]) -> None:
    """Writes the variables of an individual, named by its evaluation."""
    self._write_variables(f'{evaluation:06d}', variables)

  def read_weights(self, evaluation: int) -> dict[str, Any]:
    """Returns the variables of an individual as NumPy arrays."""
    return self._read_variables(f'{evaluation:06d}')

  def keep_weights(self, evaluations: Collection[int]) -> None:
    """Removes the weights of all individuals but these."""
    kept = {f'{evaluation:06d}.safetensors' for evaluation in evaluations}
    for path in self._weights.iterdir():
      if path.name not in kept and not path.name.startswith('completed_'):
        path.unlink()

  def write_completed(
    self, evaluation: int, outcome: Mapping[str, Any], variables: Mapping[str, Any]
  ) -> None:
    """Writes the outcome of an individual's completion, and its final weights."""
    self._write_variables(f'completed_{evaluation:06d}', variables)
    _write_json(self._completed / f'{evaluation:06d}.json', outcome)

  def read_completed(self, evaluation: int) -> dict[str, Any] | None:
    """Returns what `write_completed` wrote, without the weights, or None."""
    return _read_json(self._completed / f'{evaluation:06d}.json')

  def read_completed_weights(self, evaluation: int) -> dict[str, Any]:
    """Returns the final variables of a completed individual as NumPy arrays."""
    return self._read_variables(f'completed_{evaluation:06d}')

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
    _write(self._weights / f'{name}.safetensors', safetensors.numpy.save(arrays))

  def _read_variables(self, name: str) -> dict[str, Any]:
    leaves = safetensors.numpy.load_file(self._weights / f'{name}.safetensors')
    return traverse_util.unflatten_dict(leaves, sep='/')


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
  """Returns the genotype that `genotype_to_json` wrote into these fields."""
  blocks = zip(fields['genotype'], fields['lineages'], strict=True)
  return Genotype(
    tuple(
      Block(filters, kernel_size, stride, lineage)
      for (filters, kernel_size, stride), lineage in blocks
    ),
    next_lineage=fields['next_lineage'],
  )


def read_events(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the events of a run directory, oldest first; it may be written to.

  Args:
    path: The directory.
  """
  events = pathlib.Path(path) / 'events.jsonl'
  if not events.exists():
    return []
  # What follows the last line break is not written yet, or nothing.
  return [json.loads(line) for line in events.read_bytes().split(b'\n')[:-1]]


def read_result(path: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Returns the outcome of a run directory, or None while there is none.

  Args:
    path: The directory.
  """
  return _read_json(pathlib.Path(path) / 'result.json')


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the configuration of a run directory, as JSON has it.

  Args:
    path: The directory.

  Raises:
    UserError: If there is none of a known format version.
  """
  config_path = pathlib.Path(path) / 'config.json'
  try:
    content = _read_json(config_path)
  except ValueError:
    content = None  # Not JSON.
  match content:
    case {'format_version': version, 'config': dict(config)} if (
      version == FORMAT_VERSION
    ):
      return config
  raise UserError(f'workdir: {config_path} is not of format version {FORMAT_VERSION}')


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  _write(path, json.dumps(content, indent=2).encode() + b'\n')


def _read_json(path: pathlib.Path) -> Any:
  return json.loads(path.read_bytes()) if path.exists() else None


def _write(path: pathlib.Path, content: bytes) -> None:
  """Replaces a file as a whole; the new one is on disk when this returns."""
  temporary = _temporary(path)
  with temporary.open('wb') as file:
    file.write(content)
    _sync(file)
  temporary.replace(path)
  _sync_directory(path.parent)


def _temporary(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f'.{path.name}.tmp')


def _sync(file: Any) -> None:
  file.flush()
  os.fsync(file.fileno())


def _sync_directory(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
