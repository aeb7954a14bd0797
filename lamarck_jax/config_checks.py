"""Checks of the values of a configuration's fields, one after another.

A check maps a value and its configuration to what is wanted instead, or to None if the
value is good. It imports neither JAX nor NumPy, see `config`.
"""

from collections.abc import Callable, Sequence
import math
import os
from typing import Any

from ml_collections import config_dict

from lamarck_jax.runtime import paths

Check = Callable[[Any, config_dict.ConfigDict], str | None]


def name(wanted: str) -> Check:
  """Wants a text that is not empty."""
  return lambda value, config: None if isinstance(value, str) and value else wanted


def one_of(choices: Sequence[str]) -> Check:
  """Wants one of some values."""
  wanted = f'one of {", ".join(choices)}'
  return lambda value, config: None if value in choices else wanted


def directory(value: Any, config: config_dict.ConfigDict) -> str | None:
  """Wants the path of a directory."""
  good = isinstance(value, str) and value and not paths.is_url(value)
  return None if good else 'a directory of the file system'


def dataset_name(value: Any, config: config_dict.ConfigDict) -> str | None:
  """Wants the name of a data set, see `data.datasets`."""
  if wanted := name('digits, npz:FILE, folder:DIR or a name of tensorflow-datasets')(
    value, config
  ):
    return wanted
  path = value.removeprefix('npz:').removeprefix('folder:')
  if paths.is_url(path):
    return 'a file or folder of the file system'
  # Names of TFDS may have a slash, so a file or folder has to be there.
  if path == value and os.sep in value:
    found = os.path.expanduser(value)
    if os.path.isdir(found):
      return f'folder:{value}'
    if os.path.isfile(found):
      return f'npz:{value}' if value.endswith('.npz') else 'npz:FILE or folder:DIR'
  return None


def init_from(value: Any, config: config_dict.ConfigDict) -> str | None:
  """Wants a genotype or a path, see `warm_start`."""
  good = isinstance(value, str) and value.strip() and not paths.is_url(value)
  return None if good else 'a genotype, a finished run or an exported network'


def boolean(value: Any, config: config_dict.ConfigDict) -> str | None:
  """Wants True or False."""
  return None if isinstance(value, bool) else 'True or False'


def _is_integer(value: object) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def integer(least: int, most: float = math.inf) -> Check:
  """Wants an integer within limits, both included."""
  limit = f'from {least} to {most}' if most < math.inf else f'of at least {least}'

  def check(value: Any, config: config_dict.ConfigDict) -> str | None:
    good = _is_integer(value) and least <= value <= most
    return None if good else f'an integer {limit}'

  return check


def integers(least: int, allow_empty: bool = False, such_as: str = '') -> Check:
  """Wants ascending integers."""

  def check(values: Any, config: config_dict.ConfigDict) -> str | None:
    good = (
      _is_sequence(values)
      and (values or allow_empty)
      and all(_is_integer(value) and value >= least for value in values)
      and list(values) == sorted(set(values))
    )
    return None if good else f'ascending integers of at least {least}{such_as}'

  return check


def _is_sequence(value: object) -> bool:
  return isinstance(value, Sequence) and not isinstance(value, str)


def _is_number(value: Any) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and math.isfinite(value)


def positive(value: Any, config: config_dict.ConfigDict) -> str | None:
  """Wants a number above 0."""
  return None if _is_number(value) and value > 0 else 'a number above 0'


def share(value: Any, config: config_dict.ConfigDict) -> str | None:
  """Wants a number above 0 and at most 1."""
  good = _is_number(value) and 0 < value <= 1
  return None if good else 'a number above 0 and at most 1'


def number(least: float, most: float) -> Check:
  """Wants a number within limits, both included."""

  def check(value: Any, config: config_dict.ConfigDict) -> str | None:
    good = _is_number(value) and least <= value <= most
    return None if good else f'a number from {least} to {most}'

  return check


def epochs_per_evaluation(value: Any, config: config_dict.ConfigDict) -> str | None:
  """Wants epochs that fit into the budget."""
  if wanted := integer(1)(value, config):
    return wanted
  if value <= config.budget_epochs:
    return None
  return f'an integer from 1 to config.budget_epochs, {config.budget_epochs}'


def inheritance(modes: Sequence[str]) -> Check:
  """Wants a mode of inheritance that the algorithm can have."""

  def check(value: Any, config: config_dict.ConfigDict) -> str | None:
    if config.algorithm == 'random_search' and value != 'none':
      return "'none': networks of random_search have no parents"
    return one_of(modes)(value, config)

  return check


def kernel_sizes(values: Any, config: config_dict.ConfigDict) -> str | None:
  """Wants odd sizes, for `SAME` padding alike on both sides."""
  if wanted := integers(1)(values, config):
    return wanted
  return None if all(size % 2 for size in values) else 'odd sizes'


def strides(values: Any, config: config_dict.ConfigDict) -> str | None:
  """Wants strides with 1 among them."""
  if wanted := integers(1)(values, config):
    return wanted
  return None if 1 in values else 'a set with 1: new blocks have it'


def num_train(value: Any, config: config_dict.ConfigDict) -> str | None:
  """Wants at least one batch of examples."""
  if wanted := integer(1)(value, config):
    return wanted
  enough = value >= config.batch_size
  return None if enough else f'at least one batch, {config.batch_size}'


def completion_rates(rates: Any, config: config_dict.ConfigDict) -> str | None:
  """Wants a learning rate for each phase of completion."""
  epochs = config.completion.epochs
  if (
    _is_sequence(rates)
    and len(rates) == len(epochs)
    and all(_is_number(rate) and rate > 0 for rate in rates)
  ):
    return None
  return f'a positive number for each of completion.epochs {epochs}'


def if_completing(check: Check) -> Check:
  """Applies a check only where networks are trained to completion."""
  return lambda value, config: (
    check(value, config) if config.completion.enabled else None
  )
