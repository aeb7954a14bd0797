"""The configuration of a search: settings, fields, the paper's values, checks.

It imports neither JAX nor NumPy, so that commands parse their flags quickly.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from lamarck_jax.errors import UserError
from lamarck_jax.runtime import paths

# Setting -> the fields that it changes. The paper compares three (Section 4.1).
SETTINGS: dict[str, dict[str, Any]] = {
  'lamarckian': {'inheritance': 'lamarckian'},
  'baseline_1': {'inheritance': 'none'},
  'baseline_2': {'inheritance': 'none', 'epochs_per_evaluation': 16},
  'overlap': {'inheritance': 'overlap'},
  'net2net': {'inheritance': 'net2net'},
  'random_search': {'algorithm': 'random_search', 'inheritance': 'none'},
}
PAPER_SETTINGS = ('lamarckian', 'baseline_1', 'baseline_2')

# The names in `inheritance.MODES`, each of which has a setting.
INHERITANCE_MODES = tuple(
  dict.fromkeys(changes['inheritance'] for changes in SETTINGS.values())
)

# The names in `metrics.MEASURES`.
FITNESS_MEASURES = ('accuracy', 'balanced_accuracy')

# Each has a module with its pure init, ask and tell; see `search_state`.
ALGORITHMS = ('one_plus_one', 'population', 'random_search')

# The names in `population.REPLACEMENTS`, and the modes in `initialisation`.
REPLACEMENTS = ('worst', 'oldest')
CROSSOVER_MODES = ('stitched', 'leaf_rule', 'none')

# Fields that say where things are; a run may be resumed with other values.
LOCATIONS = ('dataset.data_dir', 'dataset.manual_dir')

# ------------------------------------------------------------------------------
# Checks
# ------------------------------------------------------------------------------

# Maps a value and its configuration to what is wanted instead, or None if it is good.
Check = Callable[[Any, config_dict.ConfigDict], str | None]


def _name(wanted: str) -> Check:
  return lambda value, config: None if isinstance(value, str) and value else wanted


def _one_of(choices: Sequence[str]) -> Check:
  wanted = f'one of {", ".join(choices)}'
  return lambda value, config: None if value in choices else wanted


def _directory(value: Any, config: config_dict.ConfigDict) -> str | None:
  good = isinstance(value, str) and value and not paths.is_url(value)
  return None if good else 'a directory of the file system'


def _dataset_name(value: Any, config: config_dict.ConfigDict) -> str | None:
  if wanted := _name('digits, npz:FILE, folder:DIR or a name of tensorflow-datasets')(
    value, config
  ):
    return wanted
  path = value.removeprefix('npz:').removeprefix('folder:')
  return 'a file or folder of the file system' if paths.is_url(path) else None


def _bool(value: Any, config: config_dict.ConfigDict) -> str | None:
  return None if isinstance(value, bool) else 'True or False'


def _is_integer(value: object) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _integer(least: int, most: float = math.inf) -> Check:
  limit = f'from {least} to {most}' if most < math.inf else f'of at least {least}'

  def check(value: Any, config: config_dict.ConfigDict) -> str | None:
    good = _is_integer(value) and least <= value <= most
    return None if good else f'an integer {limit}'

  return check


def _integers(least: int, allow_empty: bool = False, such_as: str = '') -> Check:
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


def _positive(value: Any, config: config_dict.ConfigDict) -> str | None:
  return None if _is_number(value) and value > 0 else 'a number above 0'


def _share(value: Any, config: config_dict.ConfigDict) -> str | None:
  good = _is_number(value) and 0 < value <= 1
  return None if good else 'a number above 0 and at most 1'


def _number(least: float, most: float) -> Check:
  def check(value: Any, config: config_dict.ConfigDict) -> str | None:
    good = _is_number(value) and least <= value <= most
    return None if good else f'a number from {least} to {most}'

  return check


def _epochs_per_evaluation(value: Any, config: config_dict.ConfigDict) -> str | None:
  return _integer(1, config.budget_epochs)(value, config)


def _inheritance(value: Any, config: config_dict.ConfigDict) -> str | None:
  if config.algorithm == 'random_search' and value != 'none':
    return "'none': networks of random_search have no parents"
  return _one_of(INHERITANCE_MODES)(value, config)


def _kernel_sizes(values: Any, config: config_dict.ConfigDict) -> str | None:
  if wanted := _integers(1)(values, config):
    return wanted
  return None if all(size % 2 for size in values) else 'odd sizes'


def _strides(values: Any, config: config_dict.ConfigDict) -> str | None:
  if wanted := _integers(1)(values, config):
    return wanted
  return None if 1 in values else 'a set with 1: new blocks have it'


def _num_train(value: Any, config: config_dict.ConfigDict) -> str | None:
  if wanted := _integer(1)(value, config):
    return wanted
  enough = value >= config.batch_size
  return None if enough else f'at least one batch, {config.batch_size}'


def _completion_rates(rates: Any, config: config_dict.ConfigDict) -> str | None:
  epochs = config.completion.epochs
  if (
    _is_sequence(rates)
    and len(rates) == len(epochs)
    and all(_is_number(rate) and rate > 0 for rate in rates)
  ):
    return None
  return f'a positive number for each of completion.epochs {epochs}'


def _if_completing(check: Check) -> Check:
  return lambda value, config: (
    check(value, config) if config.completion.enabled else None
  )


# ------------------------------------------------------------------------------
# Fields
# ------------------------------------------------------------------------------

# Field -> default and check. A type as default means None, or else a value of the type.
FIELDS: dict[str, tuple[Any, Check]] = {
  # Which of the settings compared this is; a label.
  'setting': ('lamarckian', _name('a name')),
  # The one source of randomness.
  'seed': (0, _integer(0, 2**32 - 1)),
  # n: training epochs after which the search ends.
  'budget_epochs': (512, _integer(1)),
  # e: training epochs of one evaluation.
  'epochs_per_evaluation': (4, _epochs_per_evaluation),
  # Examples per training step. Batch normalisation needs two.
  'batch_size': (512, _integer(2)),
  # Adam's, during evaluations.
  'learning_rate': (1e-3, _positive),
  # 'cosine' decays it to 0 within each evaluation.
  'learning_rate_schedule': ('constant', _one_of(('constant', 'cosine'))),
  # 'one_plus_one' is Algorithm 1.
  'algorithm': ('one_plus_one', _one_of(ALGORITHMS)),
  # The mode of inheritance; 'none': all weights are fresh.
  'inheritance': ('lamarckian', _inheritance),
  # Noise on filters copied by net2net, in units of their kernel's standard deviation.
  'inheritance_noise': (0.03, _number(0, 10)),
  # Shrink and perturb: inherited weights are scaled by it, and fresh ones added at 1
  # minus it. 1: they stay as they are.
  'inheritance_shrink': (1.0, _share),
  # Of the training loss; 'balanced': all classes weigh the same, however frequent.
  'class_weights': ('none', _one_of(('none', 'balanced'))),
  # What is selected for, on the validation split.
  'fitness': ('accuracy', _one_of(FITNESS_MEASURES)),
  # Type of the computation inside the blocks.
  'compute_dtype': ('float32', _one_of(('float32', 'bfloat16'))),
  # Limits; a candidate above one is recorded as failed and never becomes a parent.
  # None: no limit.
  'max_parameters': (int, _integer(1)),
  # To classify one example.
  'max_flops': (int, _integer(1)),
  'max_seconds_per_evaluation': (float, _positive),
  # eta: probability to follow a child that is no better.
  'niching.rate': (0.1, _number(0, 1)),
  # k: evaluations in a niche.
  'niching.iterations': (5, _integer(1)),
  # mu: most individuals of a population.
  'population.size': (8, _integer(1)),
  # lambda: children of a generation.
  'population.children': (4, _integer(1)),
  # A parent is the fittest of this number of random individuals.
  'population.tournament': (2, _integer(1)),
  # Probability that a child is made by crossover, where that is possible.
  'population.crossover_rate': (0.5, _number(0, 1)),
  # 'worst': a child replaces the worst individual if it is fitter; 'oldest': it always
  # replaces the oldest.
  'population.replacement': ('worst', _one_of(REPLACEMENTS)),
  # The weights of a child of two parents; all are fresh where `inheritance` is 'none'.
  'population.crossover_inheritance': ('stitched', _one_of(CROSSOVER_MODES)),
  # The depth of a network is uniform on 1 to this.
  'random_search.max_blocks': (10, _integer(1)),
  # F: filter counts, ascending.
  'search_space.filters': ((16, 32, 64, 96, 128, 192, 256), _integers(1)),
  # K: kernel sizes.
  'search_space.kernel_sizes': ((1, 3, 5), _kernel_sizes),
  # S: strides.
  'search_space.strides': ((1, 2), _strides),
  # Most blocks with a stride above 1.
  'search_space.max_downsampling': (3, _integer(0)),
  # The images; the config files set it.
  'dataset.name': ('', _dataset_name),
  # Folder of prepared data; None: the default of tensorflow-datasets.
  'dataset.data_dir': (str, _directory),
  # Folder of archives downloaded by hand.
  'dataset.manual_dir': (str, _directory),
  # Training examples; None: all.
  'dataset.num_train': (int, _num_train),
  # Validation examples; None: the default of the data set.
  'dataset.num_validation': (int, _integer(1)),
  # Side that images are resized to, in pixels; None: as they are.
  'dataset.image_size': (int, _integer(1)),
  # Whether training images are mirrored, left to right, with a probability of 1/2.
  'augmentation.flip': (False, _bool),
  # The most pixels by which training images are shifted along each axis.
  'augmentation.shift': (0, _integer(0)),
  # Budgets at which the best individual so far is kept.
  'checkpoint_epochs': ((128, 512), _integers(1, allow_empty=True)),
  # Whether checkpoints are trained to completion, and evaluated on the test set.
  'completion.enabled': (True, _bool),
  # The last epoch of each phase.
  'completion.epochs': (
    (10, 20, 30),
    _if_completing(
      _integers(1, such_as=', the last epoch of each phase, such as (10, 20, 30)')
    ),
  ),
  # Adam's learning rate in each phase.
  'completion.learning_rates': ((1e-3, 1e-4, 1e-5), _if_completing(_completion_rates)),
  # As `inheritance_shrink`, of the checkpoint's weights when completion starts.
  'completion.shrink': (1.0, _if_completing(_share)),
}


class _OptionalParser(flags.ArgumentParser):
  """Parses None beside the values of another parser, for fields without a value."""

  def __init__(self, parser: flags.ArgumentParser, none: Sequence[str] = ('None',)):
    self._parser, self._none = parser, none

  def parse(self, argument: Any) -> Any:
    """Returns the value; `validate` refuses None where a field needs one."""
    return None if argument in self._none else self._parser.parse(argument)

  def flag_type(self) -> str:
    """Returns the type of the values."""
    return self._parser.flag_type()


def _accept_none_in_flags() -> None:
  """Makes `--config.FIELD=None` mean None: ml_collections has a parser per type."""
  register = config_flags.register_flag_parser_for_type
  none = ('None', 'none')
  register(int, _OptionalParser(flags.IntegerParser(), none))
  register(float, _OptionalParser(flags.FloatParser(), none))
  # 'none' is a string of its own: a mode of inheritance.
  register(str, _OptionalParser(flags.ArgumentParser()))


def get_config(
  setting: str = 'lamarckian', *, baseline_2_epochs: int | None = None
) -> config_dict.ConfigDict:
  """Returns the paper's configuration for one of its settings (Section 4.1).

  Args:
    setting: One of `SETTINGS`.
    baseline_2_epochs: e of baseline II where it is not 16: 8 on the MNIST family.

  Returns:
    The configuration, locked against new fields. The data set has no name yet.

  Raises:
    UserError: If the setting is unknown.
  """
  if setting not in SETTINGS:
    raise UserError(
      f'config: got setting {setting!r}, want one of {", ".join(SETTINGS)}'
    )
  # Flags of fields are parsed once a configuration file has called this.
  _accept_none_in_flags()
  config = config_dict.ConfigDict()
  for field, (default, _) in FIELDS.items():
    section, _, name = field.rpartition('.')
    if section and section not in config:
      config[section] = config_dict.ConfigDict()
    # A placeholder is shared by reference, so every configuration needs its own.
    value = config_dict.placeholder(default) if isinstance(default, type) else default
    (config[section] if section else config)[name] = value
  config.update({'setting': setting, **SETTINGS[setting]})
  if setting == 'baseline_2' and baseline_2_epochs is not None:
    config.epochs_per_evaluation = baseline_2_epochs
  return config.lock()


def validate(config: config_dict.ConfigDict) -> None:
  """Checks that every value is possible, without reading any data.

  Raises:
    UserError: Naming the first impossible field, its value and what is wanted.
  """
  missing = sorted(FIELDS.keys() - field_names(config))
  if missing:
    raise UserError(f'config.{missing[0]}: missing, want a value')
  for field, (default, check) in FIELDS.items():
    value: Any = config
    for part in field.split('.'):
      value = value[part]
    if value is None and isinstance(default, type):
      continue
    if wanted := check(value, config):
      raise UserError(f'config.{field}: got {value!r}, want {wanted}')


# Field -> what it needs to have an effect, and whether a configuration has that.
_NEEDS: dict[str, tuple[str, Callable[[config_dict.ConfigDict], bool]]] = {
  'checkpoint_epochs': (
    'at most budget_epochs',
    lambda config: max(config.checkpoint_epochs, default=0) <= config.budget_epochs,
  ),
  'inheritance_noise': ("inheritance 'net2net'", lambda c: c.inheritance == 'net2net'),
  'inheritance_shrink': ('inheritance of weights', lambda c: c.inheritance != 'none'),
  'random_search.max_blocks': (
    "algorithm 'random_search'",
    lambda config: config.algorithm == 'random_search',
  ),
  **dict.fromkeys(
    ('niching.rate', 'niching.iterations'),
    ("algorithm 'one_plus_one'", lambda config: config.algorithm != 'random_search'),
  ),
  **dict.fromkeys(
    ('dataset.data_dir', 'dataset.manual_dir'),
    (
      'a data set of tensorflow-datasets',
      lambda config: config.dataset.name != 'digits' and ':' not in config.dataset.name,
    ),
  ),
}


def check_typed(
  configs: Sequence[config_dict.ConfigDict], values: Mapping[str, Any]
) -> None:
  """Checks that what a person has typed has an effect in one of the configurations.

  Configuration files may have values without an effect, since they serve many searches.

  Args:
    configs: Valid configurations that have the values.
    values: Values by field, dotted.

  Raises:
    UserError: If a value has no effect in any configuration.
  """
  for field, value in values.items():
    wanted, has_effect = _NEEDS.get(field, ('', lambda config: True))
    if value != FIELDS[field][0] and not any(map(has_effect, configs)):
      raise UserError(
        f'config.{field}: got {value!r}, which has no effect here, want {wanted}'
      )


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a stored configuration with the fields that have come since.

  A new field's default means what runs did before there was the field.
  """
  complete = get_config().to_dict()
  for name, value in config.items():
    section = complete.get(name)
    both = isinstance(section, dict) and isinstance(value, dict)
    complete[name] = {**section, **value} if both else value
  return complete


def differing_fields(
  config: Mapping[str, Any], other: Mapping[str, Any], prefix: str = ''
) -> list[str]:
  """Returns the dotted names of the fields in which two nested dictionaries differ.

  Those in `LOCATIONS` may differ. `prefix` goes before every name.
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
  """Returns the dotted names of a configuration's fields, each after a prefix."""
  names = []
  for name, value in config.items():
    if isinstance(value, config_dict.ConfigDict):
      names += field_names(value, f'{prefix}{name}.')
    else:
      names.append(prefix + name)
  return names
