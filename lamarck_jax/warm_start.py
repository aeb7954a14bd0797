"""Warm starts: the first network of a search is one that exists already.

`config.init_from` is a genotype, whose weights are fresh, or the path of a finished run
or of an exported network, whose weights the first network inherits. It is trained and
evaluated like any other network, within the budget.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import os
import pathlib
from typing import Any

from absl import logging
from flax import traverse_util
from ml_collections import config_dict

from lamarck_jax import exported_files, model, network, search_state
from lamarck_jax.data.fingerprint import SplitFingerprint
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Block, Genotype, SearchSpace
from lamarck_jax.population import Offspring
from lamarck_jax.run_directory import digests, initial_network, records
from lamarck_jax.run_directory.dataset_record import DatasetRecord
from lamarck_jax.run_directory.initial_network import InitialNetwork
from lamarck_jax.search_state import SearchState


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a search starts from.

  Attributes:
    genotype: The first network.
    network: What is known of its weights; None: they are fresh.
    variables: Its weights; None where the run directory has them.
  """

  genotype: Genotype
  network: InitialNetwork | None = None
  variables: Mapping[str, Any] | None = None


def check(config: config_dict.ConfigDict, workdir: str | os.PathLike[str]) -> None:
  """Checks `config.init_from` of a run that has not begun.

  Weights are not read, and JAX is not initialised, which takes memory on a GPU.

  Args:
    config: The search's.
    workdir: The run directory; it need not exist. If it has a copy of the first
      network, nothing is checked.

  Raises:
    UserError: If the field leads to no network, or to one outside the search space.
  """
  text = config.init_from
  if text is None or os.path.lexists(pathlib.Path(workdir, initial_network.FILE_NAME)):
    return
  genotype, space = _parse(text), search_state.initial_state(config).evolution.space
  if genotype is None:
    path = _path(text)
    with _naming(text, space):
      if _is_exported(path):
        genotype = exported_files.read_description(path).genotype
      else:
        genotype = network.chosen(path)['genotype']
  if genotype not in space:
    raise UserError(
      f'config.init_from: got {genotype}, want a network of the search space:'
      f' filters {space.filters}, kernel_sizes {space.kernel_sizes},'
      f' strides {space.strides}, at most {space.max_downsampling} of them above 1'
    )


def load(
  config: config_dict.ConfigDict,
  workdir: str | os.PathLike[str],
  dataset: DatasetRecord | None = None,
) -> Source | None:
  """Returns the first network of a search; None: it is drawn at random.

  A run that has begun has a copy, so its source may be gone by then. Warns if weights
  that are inherited may have been trained on what is a validation or test image now.

  Args:
    config: The search's.
    workdir: The run directory; it need not exist.
    dataset: The search's data set, for that warning.

  Raises:
    UserError: If `config.init_from` leads to no network, or to another one than at the
      first start.
  """
  text = config.init_from
  if text is None:
    return None
  genotype = _parse(text)
  if genotype:
    return Source(genotype)
  space = search_state.initial_state(config).evolution.space
  inherits = config.inheritance != 'none'
  return _of_path(text, pathlib.Path(workdir), space, dataset if inherits else None)


def record(source: Source | None, directory: records.RunDirectory) -> None:
  """Copies the first network to a run directory that has no copy of it yet."""
  if source and source.network and source.variables:
    directory.write_initial(source.network, source.variables)


def begin(
  state: SearchState,
  source: Source | None,
  directory: records.RunDirectory,
  class_names: tuple[str, ...],
) -> SearchState:
  """Returns the state with the first network, if none has been evaluated yet.

  Args:
    state: The state of the search.
    source: What `load` has returned.
    directory: The run directory, which has the weights.
    class_names: The classes of the search's data. Where the network was trained on
      others, its classifier means nothing, and is fresh.

  Raises:
    DamagedError: If the weights are not as they were written.
  """
  if source is None or state.evolution.num_evaluations:
    return state
  variables = None
  if source.network:
    variables = directory.read_initial_weights(source.network)
    if source.network.class_names != class_names:
      params = {**variables['params']}
      del params[model.CLASSIFIER]
      variables = {**variables, 'params': params}
  return dataclasses.replace(
    state, first=Offspring(source.genotype, variables=variables)
  )


def with_absolute_path(init_from: str | None) -> str | None:
  """Returns `config.init_from` for a process with another current folder."""
  if init_from is None or _parse(init_from):
    return init_from
  return str(_path(init_from))


def _parse(text: str) -> Genotype | None:
  """Returns the genotype of a text; None if it is a path."""
  try:
    genotype = Genotype.parse(text)
  except ValueError:
    return None
  return genotype if len(genotype) else None


def _path(text: str) -> pathlib.Path:
  return pathlib.Path(os.path.abspath(os.path.expanduser(text)))


def _of_path(
  text: str,
  workdir: pathlib.Path,
  space: SearchSpace,
  dataset: DatasetRecord | None,
) -> Source:
  path = _path(text)
  recorded = initial_network.read(workdir)
  if recorded is None:
    found, variables, trained_on = _read(text, path, space)
    if dataset:
      _warn_of_seen_images(found, trained_on, dataset)
    return Source(found.genotype, found, variables)
  if os.path.lexists(path):
    try:
      found, _, _ = _read(text, path, space)
    except UserError as error:
      logging.warning('%s; going on with the copy in %s', error, workdir)
    else:
      if not found.is_same(recorded):
        raise UserError(
          f'config.init_from: got {text!r} with another network than when {workdir} was'
          ' started, want that one, or another workdir'
        )
  return Source(recorded.genotype, recorded)


@dataclasses.dataclass(frozen=True)
class _TrainedOn:
  """The data set of a network: its name and splits, as far as they are recorded."""

  image_shape: tuple[int, int, int]
  name: str | None
  splits: Mapping[str, SplitFingerprint] | None


def _read(
  text: str, path: pathlib.Path, space: SearchSpace
) -> tuple[InitialNetwork, Mapping[str, Any], _TrainedOn]:
  """Returns the network of a finished run or of an export, its weights, its data."""
  with _naming(text, space):
    if _is_exported(path):
      description = exported_files.read_description(path)
      genotype, class_names = description.genotype, description.class_names
      variables = exported_files.read_weights(path, description)
      data = _TrainedOn(description.image_shape, None, description.splits)
    else:
      found = network.of_run(path)
      genotype, class_names = found.network.genotype, found.network.class_names
      variables, recorded = found.variables, found.dataset
      splits = recorded.fingerprint.splits
      data = _TrainedOn(found.network.image_shape, recorded.absolute['name'], splits)
  digest = digests.of_arrays(traverse_util.flatten_dict(variables, sep='/'))
  return InitialNetwork(str(path), genotype, class_names, digest), variables, data


def _warn_of_seen_images(
  initial: InitialNetwork, trained_on: _TrainedOn, dataset: DatasetRecord
) -> None:
  """Warns if a network may have been trained on validation or test images.

  It was not where it was measured with the same ones, or knows other classes. Otherwise
  nothing tells: of a data set there is one digest for each split.
  """
  data, splits = dataset.fingerprint, trained_on.splits
  same_shape = trained_on.image_shape == data.image_shape
  same_name = trained_on.name == dataset.absolute['name']
  if initial.class_names != data.class_names or not (same_shape or same_name):
    return
  # Other sizes of the same images have the same labels in the same order.
  fields = ('images', 'labels') if same_shape else ('labels',)
  held_out = ('validation', 'test')
  if splits is None:
    differing = list(held_out)
  else:
    differing = [
      name
      for name in held_out
      if set(data.splits[name].differing(splits[name])) & {*fields}
    ]
  if differing:
    logging.warning(
      'config.init_from: the network of %s was measured with other %s images than this'
      ' search; if it was trained on some of these, accuracy is too high',
      initial.location,
      ' and '.join(differing),
    )


def _is_exported(path: pathlib.Path) -> bool:
  """Returns whether a folder is an exported network's, and not a run directory.

  Raises:
    UserError: If it is neither.
  """
  is_exported = os.path.lexists(path / exported_files.DESCRIPTION)
  if not is_exported and not os.path.lexists(path / 'config.json'):
    raise UserError(f'no network at {path}')
  return is_exported


@contextlib.contextmanager
def _naming(text: str, space: SearchSpace) -> Iterator[None]:
  """Names the field in the errors of its body, with a genotype of the search space."""
  try:
    yield
  except UserError as error:
    kernel_size = space.kernel_sizes[-1]
    example = Genotype(
      (
        Block(space.filters[0], kernel_size),
        Block(
          space.filters[-1],
          kernel_size,
          space.strides[-1] if space.max_downsampling else 1,
        ),
      )
    )
    raise UserError(
      f"config.init_from: got {text!r}, want a genotype such as '{example}', a finished"
      f' run or an exported network: {error}'
    ) from error
