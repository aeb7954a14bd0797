"""The configuration of a search: settings, fields, the paper's values, checks.

It imports neither JAX nor NumPy, so that commands parse their flags quickly.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from lamarck_jax import config_checks as checks
from lamarck_jax.config_checks import Check
from lamarck_jax.errors import UserError

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

# The names in `population.REPLACEMENTS` and `MATES`, and the modes in `initialisation`.
REPLACEMENTS = ('worst', 'oldest')
MATES = ('tournament', 'complementary')
CROSSOVER_MODES = ('stitched', 'leaf_rule', 'none')

# Fields that say where things are; a run may be resumed with other values.
LOCATIONS = ('dataset.data_dir', 'dataset.manual_dir')

# ------------------------------------------------------------------------------
# Fields
# ------------------------------------------------------------------------------

# Field -> default and check. A type as default means None, or else a value of the type.
FIELDS: dict[str, tuple[Any, Check]] = {
  # Which of the settings compared this is; a label.
  'setting': ('lamarckian', checks.name('a name')),
  # The one source of randomness.
  'seed': (0, checks.integer(0, 2**32 - 1)),
  # n: training epochs after which the search ends.
  'budget_epochs': (512, checks.integer(1)),
  # e: training epochs of one evaluation.
  'epochs_per_evaluation': (4, checks.epochs_per_evaluation),
  # Examples per training step. Batch normalisation needs two.
  'batch_size': (512, checks.integer(2)),
  # Adam's, during evaluations.
  'learning_rate': (1e-3, checks.positive),
  # 'cosine' decays it to 0 within each evaluation.
  'learning_rate_schedule': ('constant', checks.one_of(('constant', 'cosine'))),
  # 'one_plus_one' is Algorithm 1.
  'algorithm': ('one_plus_one', checks.one_of(ALGORITHMS)),
  # The mode of inheritance; 'none': all weights are fresh.
  'inheritance': ('lamarckian', checks.inheritance(INHERITANCE_MODES)),
  # The first network: a genotype, a finished run or an exported network. None: it is
  # drawn at random.
  'init_from': (str, checks.init_from),
  # Noise on filters copied by net2net, in units of their kernel's standard deviation.
  'inheritance_noise': (0.03, checks.number(0, 10)),
  # Shrink and perturb: inherited weights are scaled by it, and fresh ones added at 1
  # minus it. 1: they stay as they are.
  'inheritance_shrink': (1.0, checks.share),
  # Of the training loss; 'balanced': all classes weigh the same, however frequent.
  'class_weights': ('none', checks.one_of(('none', 'balanced'))),
  # What is selected for, on the validation split.
  'fitness': ('accuracy', checks.one_of(FITNESS_MEASURES)),
  # Of networks whose fitness is within this number of standard errors of the best
  # fitness so far, the one with the fewest parameters is selected. 0: the fittest.
  'parsimony': (0.0, checks.number(0, 10)),
  # Type of the computation inside the blocks.
  'compute_dtype': ('float32', checks.one_of(('float32', 'bfloat16'))),
  # Limits; a candidate above one is recorded as failed and never becomes a parent.
  # None: no limit.
  'max_parameters': (int, checks.integer(1)),
  # To classify one example.
  'max_flops': (int, checks.integer(1)),
  'max_seconds_per_evaluation': (float, checks.positive),
  # eta: probability to follow a child that is no better.
  'niching.rate': (0.1, checks.number(0, 1)),
  # k: evaluations in a niche.
  'niching.iterations': (5, checks.integer(1)),
  # mu: most individuals of a population.
  'population.size': (8, checks.integer(1)),
  # lambda: children of a generation.
  'population.children': (4, checks.integer(1)),
  # A parent is the fittest of this number of random individuals.
  'population.tournament': (2, checks.integer(1)),
  # Probability that a child is made by crossover, where that is possible.
  'population.crossover_rate': (0.5, checks.number(0, 1)),
  # 'worst': a child replaces the worst individual if it is fitter; 'oldest': it always
  # replaces the oldest.
  'population.replacement': ('worst', checks.one_of(REPLACEMENTS)),
  # How the second parent is drawn; 'complementary': by how many validation examples it
  # classifies correctly that the first one does not.
  'population.mate': ('tournament', checks.one_of(MATES)),
  # The weights of a child of two parents; all are fresh where `inheritance` is 'none'.
  'population.crossover_inheritance': ('stitched', checks.one_of(CROSSOVER_MODES)),
  # Of a CPU, for each child, however many children are trained side by side.
  'population.cores_per_child': (1, checks.integer(1)),
  # The depth of a network is uniform on 1 to this.
  'random_search.max_blocks': (10, checks.integer(1)),
  # F: filter counts, ascending.
  'search_space.filters': ((16, 32, 64, 96, 128, 192, 256), checks.integers(1)),
  # K: kernel sizes.
  'search_space.kernel_sizes': ((1, 3, 5), checks.kernel_sizes),
  # S: strides.
  'search_space.strides': ((1, 2), checks.strides),
  # Most blocks with a stride above 1.
  'search_space.max_downsampling': (3, checks.integer(0)),
  # The images; the config files set it.
  'dataset.name': ('', checks.dataset_name),
  # Folder of prepared data; None: the default of tensorflow-datasets.
  'dataset.data_dir': (str, checks.directory),
  # Folder of archives downloaded by hand.
  'dataset.manual_dir': (str, checks.directory),
  # Training examples; None: all.
  'dataset.num_train': (int, checks.num_train),
  # Validation examples; None: the default of the data set.
  'dataset.num_validation': (int, checks.integer(1)),
  # Side that images are resized to, in pixels; None: as they are.
  'dataset.image_size': (int, checks.integer(1)),
  # Whether training images are mirrored, left to right, with a probability of 1/2.
  'augmentation.flip': (False, checks.boolean),
  # The most pixels by which training images are shifted along each axis.
  'augmentation.shift': (0, checks.integer(0)),
  # Budgets at which the best individual so far is kept.
  'checkpoint_epochs': ((128, 512), checks.integers(1, allow_empty=True)),
  # Whether checkpoints are trained to completion, and evaluated on the test set.
  'completion.enabled': (True, checks.boolean),
  # The last epoch of each phase.
  'completion.epochs': (
    (10, 20, 30),
    checks.if_completing(
      checks.integers(1, such_as=', the last epoch of each phase, such as (10, 20, 30)')
    ),
  ),
  # Adam's learning rate in each phase.
  'completion.learning_rates': (
    (1e-3, 1e-4, 1e-5),
    checks.if_completing(checks.completion_rates),
  ),
  # As `inheritance_shrink`, of the checkpoint's weights when completion starts.
  'completion.shrink': (1.0, checks.if_completing(checks.share)),
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


_Need = tuple[str, Callable[[config_dict.ConfigDict], bool]]


def _algorithm(name: str) -> _Need:
  return f'algorithm {name!r}', lambda config: config.algorithm == name


def _has_several(config: config_dict.ConfigDict) -> bool:
  """Whether there may be several parents to draw from."""
  return config.algorithm == 'population' and config.population.size > 1


def _crosses(config: config_dict.ConfigDict) -> bool:
  """Whether a child may have two parents."""
  return _has_several(config) and config.population.crossover_rate > 0


# Field -> what it needs to have an effect, and whether a configuration has that.
_NEEDS: dict[str, _Need] = {
  'checkpoint_epochs': (
    'at most budget_epochs',
    lambda config: max(config.checkpoint_epochs, default=0) <= config.budget_epochs,
  ),
  'inheritance_noise': ("inheritance 'net2net'", lambda c: c.inheritance == 'net2net'),
  'inheritance_shrink': ('inheritance of weights', lambda c: c.inheritance != 'none'),
  'niching.rate': _algorithm('one_plus_one'),
  'niching.iterations': (
    "algorithm 'one_plus_one' and a niching.rate above 0",
    lambda config: config.algorithm == 'one_plus_one' and config.niching.rate > 0,
  ),
  'random_search.max_blocks': _algorithm('random_search'),
  **dict.fromkeys(
    [field for field in FIELDS if field.startswith('population.')],
    _algorithm('population'),
  ),
  **dict.fromkeys(
    ('population.crossover_rate', 'population.tournament'),
    ("algorithm 'population' with a population.size above 1", _has_several),
  ),
  'population.mate': ("algorithm 'population' with crossovers", _crosses),
  'population.crossover_inheritance': (
    "algorithm 'population' with crossovers and inheritance of weights",
    lambda config: _crosses(config) and config.inheritance != 'none',
  ),
  'search_space.max_downsampling': (
    'search_space.strides above 1',
    lambda config: max(config.search_space.strides) > 1,
  ),
  **dict.fromkeys(
    ('dataset.data_dir', 'dataset.manual_dir'),
    (
      'a data set of tensorflow-datasets',
      lambda config: config.dataset.name != 'digits' and ':' not in config.dataset.name,
    ),
  ),
  **dict.fromkeys(
    ('completion.epochs', 'completion.learning_rates', 'completion.shrink'),
    ('completion.enabled', lambda config: config.completion.enabled),
  ),
}


def has_effect(field: str, config: Mapping[str, Any]) -> bool:
  """Returns whether a field has an effect in a configuration, as far as that is known.

  Args:
    field: Its dotted name.
    config: A configuration as nested dictionaries, whose values may be impossible.
  """
  # Of checkpoints some may lie within the budget.
  if field not in _NEEDS or field == 'checkpoint_epochs':
    return True
  _, needs = _NEEDS[field]
  try:
    return needs(config_dict.ConfigDict(dict(config)))
  except (AttributeError, KeyError, TypeError, ValueError):
    return True


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
    wanted, needs = _NEEDS.get(field, ('', lambda config: True))
    # A default changes nothing, but for this one, where files have their own.
    is_default = value == FIELDS[field][0] and field != 'checkpoint_epochs'
    if not is_default and not any(map(needs, configs)):
      raise UserError(
        f'config.{field}: got {value!r}, which has no effect here, want {wanted}'
      )
    if field == 'setting' and not is_default and not any(map(_is_as_named, configs)):
      raise UserError(
        f'config.setting: got {value!r}, which only labels another search here, want'
        f' another label, or the setting itself, as by --config=FILE:{value}'
      )


def _is_as_named(config: config_dict.ConfigDict) -> bool:
  """Whether a configuration is that of the setting whose name it has, if of any."""
  fields = SETTINGS.get(config.setting, {})
  return all(
    config[name] == value
    for name, value in fields.items()
    # Baseline II has another e on some data sets.
    if name != 'epochs_per_evaluation'
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
