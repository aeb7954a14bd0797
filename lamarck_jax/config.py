"""The configuration of a search: fields, the paper's values, and their checks."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from ml_collections import config_dict

from lamarck_jax.errors import UserError

# Those that the paper compares, and two that go beyond it.
PAPER_SETTINGS = ('lamarckian', 'baseline_1', 'baseline_2')
SETTINGS = (*PAPER_SETTINGS, 'overlap', 'net2net')

# Fields that say where things are; a run may be resumed with other values.
LOCATIONS = ('dataset.data_dir', 'dataset.manual_dir')


def get_config(
  setting: str = 'lamarckian', *, baseline_2_epochs: int = 16
) -> config_dict.ConfigDict:
  """Returns the paper's configuration for one of its settings (Section 4.1).

  Args:
    setting: `lamarckian`, or a baseline without inheritance: `baseline_1` trains
      as long per evaluation, `baseline_2` longer; or inheritance beyond the paper's:
      `overlap` or `net2net`.
    baseline_2_epochs: e of baseline II: 16, and 8 on the MNIST family.

  Returns:
    The configuration, locked against new fields. The data set has no name yet.

  Raises:
    UserError: If the setting is unknown.
  """
  if setting not in SETTINGS:
    raise UserError(
      f'config: got setting {setting!r}, want one of {", ".join(SETTINGS)}'
    )
  config = config_dict.ConfigDict()
  config.setting = setting  # Which of the settings compared this is; a label.
  config.seed = 0  # The one source of randomness.
  config.budget_epochs = 512  # n: training epochs after which the search ends.
  config.epochs_per_evaluation = 4  # e: training epochs of one evaluation.
  config.batch_size = 512  # Examples per training step.
  config.learning_rate = 1e-3  # Adam's, during evaluations.
  config.learning_rate_schedule = 'constant'  # Or 'cosine': to 0 within each one.
  config.inheritance = 'lamarckian'  # 'none' (all fresh), 'overlap' or 'net2net'.
  config.inheritance_noise = 0.03  # On net2net's copies, in units of their layer's std.
  config.compute_dtype = 'float32'  # Or 'bfloat16': type inside the blocks.

  # A candidate above a limit is recorded as failed and never becomes a parent.
  config.max_parameters = config_dict.placeholder(int)  # None: no limit.
  config.max_flops = config_dict.placeholder(int)  # To classify one example.
  config.max_seconds_per_evaluation = config_dict.placeholder(float)

  config.niching = config_dict.ConfigDict()
  config.niching.rate = 0.1  # eta: chance to follow a child that is no better.
  config.niching.iterations = 5  # k: evaluations in a niche.

  config.search_space = config_dict.ConfigDict()
  config.search_space.filters = (16, 32, 64, 96, 128, 192, 256)  # F, ascending.
  config.search_space.kernel_sizes = (1, 3, 5)  # K.
  config.search_space.strides = (1, 2)  # S.
  config.search_space.max_downsampling = 3  # Most blocks with a stride above 1.

  config.dataset = config_dict.ConfigDict()
  config.dataset.name = ''  # 'digits', npz:FILE, folder:DIR, or tfds's name.
  config.dataset.data_dir = config_dict.placeholder(str)  # None: tfds's own.
  config.dataset.manual_dir = config_dict.placeholder(str)  # Official archives.
  config.dataset.num_train = config_dict.placeholder(int)  # None: all.
  config.dataset.num_validation = config_dict.placeholder(int)  # None: default.
  config.dataset.image_size = config_dict.placeholder(int)  # None: as it is.

  config.checkpoint_epochs = (128, 512)  # Budgets at which the best is kept.
  config.completion = config_dict.ConfigDict()
  config.completion.enabled = True  # Train the checkpoints on, and test them.
  config.completion.epochs = (10, 20, 30)  # The last epoch of each phase.
  config.completion.learning_rates = (1e-3, 1e-4, 1e-5)  # Adam's, per phase.

  config.inheritance = 'none' if setting.startswith('baseline') else setting
  if setting == 'baseline_2':
    config.epochs_per_evaluation = baseline_2_epochs
  return config.lock()


def validate(config: config_dict.ConfigDict) -> None:
  """Checks that every value is possible, without reading any data.

  Args:
    config: A configuration made by `get_config`.

  Raises:
    UserError: Naming the first impossible field, its value and what is wanted.
  """
  missing = sorted(set(field_names(get_config())) - set(field_names(config)))
  if missing:
    raise UserError(f'config.{missing[0]}: missing, want a value')
  _name(config, 'setting', 'a name')
  _integer(config, 'seed', 0, 2**32 - 1)
  _integer(config, 'budget_epochs', 1)
  _integer(config, 'epochs_per_evaluation', 1, config.budget_epochs)
  _integer(config, 'batch_size', 2)
  _number(config, 'learning_rate', above=0)
  _choice(config, 'learning_rate_schedule', ('constant', 'cosine'))
  _choice(config, 'inheritance', ('lamarckian', 'none', 'overlap', 'net2net'))
  _number(config, 'inheritance_noise', at_least=0, at_most=10)
  _choice(config, 'compute_dtype', ('float32', 'bfloat16'))
  for field in ('max_parameters', 'max_flops'):
    if config[field] is not None:
      _integer(config, field, 1)
  if config.max_seconds_per_evaluation is not None:
    _number(config, 'max_seconds_per_evaluation', above=0)
  _number(config, 'niching.rate', at_least=0, at_most=1)
  _integer(config, 'niching.iterations', 1)

  for field, least in (('filters', 1), ('kernel_sizes', 1), ('strides', 1)):
    _integers(config, f'search_space.{field}', least)
  if 1 not in config.search_space.strides:
    raise _error(config, 'search_space.strides', 'a set with 1: new blocks have it')
  if any(size % 2 == 0 for size in config.search_space.kernel_sizes):
    raise _error(config, 'search_space.kernel_sizes', 'odd sizes')
  _integer(config, 'search_space.max_downsampling', 0)

  _name(
    config,
    'dataset.name',
    'digits, npz:FILE, folder:DIR or a name of tensorflow-datasets',
  )
  for field in LOCATIONS:
    if _get(config, field) is not None:
      _name(config, field, 'a directory')
  for field in ('num_train', 'num_validation', 'image_size'):
    if config.dataset[field] is not None:
      _integer(config, f'dataset.{field}', 1)
  num_train = config.dataset.num_train
  if num_train is not None and num_train < config.batch_size:
    raise _error(
      config, 'dataset.num_train', f'at least one batch, {config.batch_size}'
    )

  _integers(config, 'checkpoint_epochs', 1, allow_empty=True)
  if not isinstance(config.completion.enabled, bool):
    raise _error(config, 'completion.enabled', 'True or False')
  if config.completion.enabled:
    such_as = ', the last epoch of each phase, such as (10, 20, 30)'
    _integers(config, 'completion.epochs', 1, such_as=such_as)
    rates = config.completion.learning_rates
    if (
      not _is_sequence(rates)
      or len(rates) != len(config.completion.epochs)
      or not all(_is_number(rate) and rate > 0 for rate in rates)
    ):
      raise _error(
        config,
        'completion.learning_rates',
        f'a positive number for each of completion.epochs {config.completion.epochs}',
      )


def differing_fields(
  config: Mapping[str, Any], other: Mapping[str, Any], prefix: str = ''
) -> list[str]:
  """Returns the dotted names of the fields in which two configurations differ.

  Args:
    config: A configuration as nested dictionaries.
    other: Another one.
    prefix: Goes before every name.
  """
  names = []
  for field in {**config, **other}:
    name = f'{prefix}{field}'
    value, other_value = config.get(field), other.get(field)
    if isinstance(value, dict) and isinstance(other_value, dict):
      names += differing_fields(value, other_value, f'{name}.')
    elif value != other_value and name not in LOCATIONS:
      names.append(name)
  return names


def field_names(config: config_dict.ConfigDict, prefix: str = '') -> list[str]:
  """Returns the dotted names of a configuration's fields.

  Args:
    config: A configuration, or a part of one.
    prefix: Goes before every name.
  """
  names = []
  for name, value in config.items():
    if isinstance(value, config_dict.ConfigDict):
      names += field_names(value, f'{prefix}{name}.')
    else:
      names.append(prefix + name)
  return names


def _get(config: config_dict.ConfigDict, field: str) -> Any:
  for part in field.split('.'):
    config = config[part]
  return config


def _error(config: config_dict.ConfigDict, field: str, wanted: str) -> UserError:
  return UserError(f'config.{field}: got {_get(config, field)!r}, want {wanted}')


def _is_number(value: object) -> bool:
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and math.isfinite(value)
  )


def _is_integer(value: object) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_sequence(value: object) -> bool:
  return isinstance(value, Sequence) and not isinstance(value, str)


def _name(config: config_dict.ConfigDict, field: str, wanted: str) -> None:
  value = _get(config, field)
  if not isinstance(value, str) or not value:
    raise _error(config, field, wanted)


def _integer(
  config: config_dict.ConfigDict, field: str, least: int, most: float = math.inf
) -> None:
  value = _get(config, field)
  if not _is_integer(value) or not least <= value <= most:
    limit = f'from {least} to {most}' if most < math.inf else f'of at least {least}'
    raise _error(config, field, f'an integer {limit}')


def _integers(
  config: config_dict.ConfigDict,
  field: str,
  least: int,
  *,
  allow_empty: bool = False,
  such_as: str = '',
) -> None:
  values = _get(config, field)
  if (
    not _is_sequence(values)
    or not (values or allow_empty)
    or not all(_is_integer(value) and value >= least for value in values)
    or list(values) != sorted(set(values))
  ):
    raise _error(config, field, f'ascending integers of at least {least}{such_as}')


def _number(
  config: config_dict.ConfigDict,
  field: str,
  *,
  above: float = -math.inf,
  at_least: float = -math.inf,
  at_most: float = math.inf,
) -> None:
  value = _get(config, field)
  if not _is_number(value) or not (value > above and at_least <= value <= at_most):
    wanted = f'above {above}' if above > -math.inf else f'from {at_least} to {at_most}'
    raise _error(config, field, f'a number {wanted}')


def _choice(config: config_dict.ConfigDict, field: str, choices: Sequence[str]) -> None:
  if _get(config, field) not in choices:
    raise _error(config, field, f'one of {", ".join(choices)}')
