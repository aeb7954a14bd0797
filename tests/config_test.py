"""Tests of `config` and of the files in `configs/`."""

import importlib.util
import math
import pathlib
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags
import pytest

from lamarck_jax import config as config_lib
from lamarck_jax.errors import UserError

_CONFIGS = pathlib.Path(__file__).resolve().parents[1] / 'configs'
_FILES = sorted(path.stem for path in _CONFIGS.glob('*.py'))
_BASELINE_2_EPOCHS = {'cifar10': 16, 'cifar100': 16, 'mnist': 8, 'fashion_mnist': 8}


def _config(values: dict[str, Any] | None = None) -> config_dict.ConfigDict:
  """Returns a good configuration with some fields set, types not checked."""
  config = config_lib.get_config()
  config.dataset.name = 'digits'
  for field, value in (values or {}).items():
    *path, last = field.split('.')
    section = config
    for part in path:
      section = section[part]
    with section.ignore_type():
      section[last] = value
  return config


def _load(name: str, *setting: str) -> config_dict.ConfigDict:
  """Returns what a file in `configs/` gives."""
  spec = importlib.util.spec_from_file_location(name, _CONFIGS / f'{name}.py')
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*setting)


# ------------------------------------------------------------------------------
# Values
# ------------------------------------------------------------------------------

_BAD = [
  ('setting', None),
  ('setting', ''),
  ('seed', -1),
  ('seed', 2**32),
  ('seed', None),
  ('seed', 1.5),
  ('seed', True),
  ('budget_epochs', 0),
  ('budget_epochs', None),
  ('epochs_per_evaluation', 0),
  ('epochs_per_evaluation', 513),  # More than the whole budget.
  ('epochs_per_evaluation', '4'),
  ('batch_size', 1),  # A batch's statistics need two.
  ('batch_size', 512.0),
  ('learning_rate', 0.0),
  ('learning_rate', -1e-3),
  ('learning_rate', math.nan),
  ('learning_rate', math.inf),
  ('learning_rate', None),
  ('learning_rate_schedule', 'linear'),
  ('algorithm', 'two_plus_two'),
  ('algorithm', None),
  ('inheritance', 'darwinian'),
  ('inheritance', None),
  ('inheritance', ''),
  ('inheritance_noise', -0.1),
  ('inheritance_noise', math.nan),
  ('class_weights', 'some'),
  ('init_from', ''),
  ('init_from', 3),
  ('parsimony', -0.5),
  ('fitness', 'loss'),
  ('inheritance_shrink', 0.0),
  ('inheritance_shrink', 1.1),
  ('inheritance_shrink', math.nan),
  ('inheritance_shrink', None),
  ('compute_dtype', 'float16'),
  ('compute_dtype', None),
  ('max_parameters', 0),
  ('max_parameters', 1e6),
  ('max_flops', -1),
  ('max_flops', True),
  ('max_seconds_per_evaluation', 0.0),
  ('max_seconds_per_evaluation', math.nan),
  ('niching.rate', -0.1),
  ('niching.rate', 1.1),
  ('niching.rate', math.nan),
  ('niching.rate', None),
  ('niching.iterations', 0),
  ('niching.iterations', 2.5),
  ('population.size', 0),
  ('population.children', 1.5),
  ('population.tournament', 0),
  ('population.crossover_rate', 1.1),
  ('population.crossover_rate', math.nan),
  ('population.replacement', 'best'),
  ('population.mate', 'any'),
  ('population.crossover_inheritance', 'overlap'),
  ('population.cores_per_child', 0),
  ('random_search.max_blocks', 0),
  ('random_search.max_blocks', 2.5),
  ('search_space.filters', ()),
  ('search_space.filters', (0, 16)),
  ('search_space.filters', (32, 16)),
  ('search_space.filters', (16, 16)),
  ('search_space.filters', (16, 32.5)),
  ('search_space.filters', '16'),
  ('search_space.filters', 16),
  ('search_space.filters', None),
  ('search_space.kernel_sizes', ()),
  ('search_space.kernel_sizes', (1, 2)),
  ('search_space.kernel_sizes', (-1, 3)),
  ('search_space.kernel_sizes', None),
  ('search_space.strides', ()),
  ('search_space.strides', (2,)),  # New blocks have a stride of one.
  ('search_space.strides', (0, 1)),
  ('search_space.max_downsampling', -1),
  ('search_space.max_downsampling', None),
  ('dataset.name', ''),
  ('dataset.name', None),
  ('dataset.name', 10),
  ('dataset.data_dir', 3),
  ('dataset.data_dir', ''),
  ('dataset.manual_dir', True),
  ('dataset.num_train', 0),
  ('dataset.num_train', 511),  # Less than a batch.
  ('dataset.num_train', True),
  ('dataset.num_validation', 0),
  ('dataset.num_validation', 10.0),
  ('dataset.image_size', 0),
  ('dataset.image_size', '16'),
  ('augmentation.flip', None),
  ('augmentation.flip', 1),
  ('augmentation.shift', -1),
  ('augmentation.shift', 0.5),
  ('augmentation.shift', None),
  ('checkpoint_epochs', (0, 128)),
  ('checkpoint_epochs', (512, 128)),
  ('checkpoint_epochs', None),
  ('checkpoint_epochs', 128),
  ('completion.enabled', None),
  ('completion.enabled', 'no'),
  ('completion.epochs', ()),
  ('completion.epochs', (10, 10, 30)),
  ('completion.epochs', (0, 20, 30)),
  ('completion.epochs', None),
  ('completion.learning_rates', (1e-3, 1e-4)),
  ('completion.learning_rates', (1e-3, 1e-4, 0.0)),
  ('completion.learning_rates', (1e-3, 1e-4, math.inf)),
  ('completion.learning_rates', (1e-3, 1e-4, '1e-5')),
  ('completion.learning_rates', None),
  ('completion.learning_rates', 1e-3),
  ('completion.shrink', 0.0),
  ('completion.shrink', 1.5),
  ('completion.shrink', None),
]


@pytest.mark.parametrize(
  ('field', 'value'), _BAD, ids=[f'{field}={value!r}' for field, value in _BAD]
)
def test_a_bad_value_is_refused_in_one_line_by_field_and_value(field, value):
  with pytest.raises(UserError) as error:
    config_lib.validate(_config({field: value}))
  message = str(error.value)
  assert message.startswith(f'config.{field}: got {value!r}, want ')
  assert '\n' not in message


def test_random_search_refuses_inheritance():
  with pytest.raises(UserError, match=r"^config\.inheritance: .* want 'none'"):
    config_lib.validate(_config({'algorithm': 'random_search'}))


def _leaves(config: config_dict.ConfigDict, prefix: str = '') -> set[str]:
  names: set[str] = set()
  for name, value in config.items():
    if isinstance(value, config_dict.ConfigDict):
      names |= _leaves(value, f'{prefix}{name}.')
    else:
      names.add(prefix + name)
  return names


def test_every_field_has_bad_values():
  assert {field for field, _ in _BAD} == _leaves(config_lib.get_config())


@pytest.mark.parametrize(
  'values',
  [
    {},
    {'seed': 0},
    {'seed': 2**32 - 1},
    {'budget_epochs': 4, 'epochs_per_evaluation': 4},
    {'batch_size': 2, 'dataset.num_train': 2},
    {'learning_rate': 1},
    {'inheritance': 'none'},
    {'inheritance_shrink': 0.6, 'completion.shrink': 1},
    {'augmentation.flip': True, 'augmentation.shift': 4},
    {'algorithm': 'random_search', 'inheritance': 'none'},
    {'algorithm': 'population', 'population.crossover_rate': 0},
    {'compute_dtype': 'bfloat16'},
    {'niching.rate': 0.0},
    {'niching.rate': 1},
    {'niching.iterations': 1},
    {'search_space.filters': [3]},
    {'search_space.kernel_sizes': (1, 7, 11)},
    {'search_space.strides': (1,), 'search_space.max_downsampling': 0},
    {'dataset.num_train': 512, 'dataset.num_validation': 1, 'dataset.image_size': 1},
    {'dataset.data_dir': '/data', 'dataset.manual_dir': '~/archives:2'},
    {'checkpoint_epochs': ()},
    {'checkpoint_epochs': (1000,)},
    {'completion.epochs': (5,), 'completion.learning_rates': (0.1,)},
    {'completion.enabled': False, 'completion.epochs': ()},
  ],
  ids=str,
)
def test_a_good_value_is_accepted(values):
  config_lib.validate(_config(values))


@pytest.mark.parametrize('section', ['niching', 'dataset', 'search_space'])
def test_a_missing_section_is_refused_by_the_name_of_a_field(section):
  with pytest.raises(UserError, match=rf'^config\.{section}\.\w+: missing'):
    config_lib.validate(_config({section: None}))


def test_a_missing_field_is_refused_by_its_name():
  config = _config()
  with config.unlocked():
    del config.niching.rate
  with pytest.raises(UserError, match=r'^config\.niching\.rate: missing'):
    config_lib.validate(config)


def test_validation_leaves_the_config_as_it_is():
  config = _config()
  before = config.to_dict()
  config_lib.validate(config)
  assert config.to_dict() == before


def test_a_value_that_is_typed_has_an_effect_in_one_of_the_settings_or_is_refused():
  mine, baseline = _config(), _config({'inheritance': 'none'})
  typed = {'inheritance_shrink': 0.5}
  config_lib.check_typed([mine, baseline], typed)
  with pytest.raises(UserError, match=r'^config\.inheritance_shrink: got 0\.5, which'):
    config_lib.check_typed([baseline], typed)


@pytest.mark.parametrize(
  'value', [(), (512,), (16, 512), (513,), (16, 100000)], ids=str
)
def test_a_checkpoint_that_is_typed_lies_within_the_budget(value):
  config = _config({'budget_epochs': 512, 'checkpoint_epochs': value})
  config_lib.validate(config)
  config_lib.check_typed([config], {})  # Not typed, so it is skipped.
  typed = {'checkpoint_epochs': value}
  if max(value, default=0) <= 512:
    config_lib.check_typed([config], typed)
  else:
    with pytest.raises(UserError, match=r'checkpoint_epochs: .* at most budget'):
      config_lib.check_typed([config], typed)


_POPULATION = {'algorithm': 'population'}
_RANDOM_SEARCH = {'algorithm': 'random_search', 'inheritance': 'none'}


@pytest.mark.parametrize(
  ('field', 'value', 'enough', 'lacking'),
  [
    ('niching.rate', 0.5, {}, _POPULATION),
    ('niching.rate', 0.5, {}, _RANDOM_SEARCH),
    ('niching.iterations', 3, {}, _POPULATION),
    ('niching.iterations', 3, {}, {'niching.rate': 0.0}),
    ('population.size', 3, _POPULATION, {'algorithm': 'one_plus_one'}),
    ('population.cores_per_child', 2, _POPULATION, _RANDOM_SEARCH),
    ('population.crossover_rate', 1.0, _POPULATION, {'population.size': 1}),
    ('population.mate', 'complementary', _POPULATION, {'population.size': 1}),
    ('population.mate', 'complementary', _POPULATION, {'population.crossover_rate': 0}),
    (
      'population.crossover_inheritance',
      'leaf_rule',
      _POPULATION,
      {'inheritance': 'none'},
    ),
    ('random_search.max_blocks', 3, _RANDOM_SEARCH, {'algorithm': 'one_plus_one'}),
    ('inheritance_shrink', 0.5, {}, {'inheritance': 'none'}),
    ('inheritance_noise', 0.5, {'inheritance': 'net2net'}, {'inheritance': 'overlap'}),
    ('search_space.max_downsampling', 1, {}, {'search_space.strides': (1,)}),
    ('completion.shrink', 0.5, {}, {'completion.enabled': False}),
    ('completion.epochs', (1, 2, 3), {}, {'completion.enabled': False}),
    (
      'completion.epochs',
      (1, 2, 3),
      {'checkpoint_epochs': ()},
      {'completion.enabled': False},
    ),
  ],
)
def test_a_value_that_is_typed_has_an_effect_or_is_refused(
  field, value, enough, lacking
):
  config = _config({**enough, field: value})
  config_lib.validate(config)
  config_lib.check_typed([config], {field: value})
  config = _config({**enough, **lacking, field: value})
  config_lib.validate(config)
  with pytest.raises(UserError, match=rf'^config\.{field}: got .* no effect here'):
    config_lib.check_typed([config], {field: value})


def test_the_default_value_may_be_typed_where_it_has_no_effect():
  config = _config({'algorithm': 'random_search', 'inheritance': 'none'})
  config_lib.check_typed([config], {'niching.rate': 0.1, 'inheritance_shrink': 1.0})


# ------------------------------------------------------------------------------
# Fields
# ------------------------------------------------------------------------------


def test_a_field_that_does_not_exist_cannot_be_set():
  config = config_lib.get_config()
  for section in (
    config,
    config.niching,
    config.search_space,
    config.dataset,
    config.completion,
  ):
    with pytest.raises((AttributeError, KeyError), match='learning_rat'):
      section.learning_rat = 0.1


def _parse(*arguments: str) -> config_dict.ConfigDict:
  """Returns the configuration of command-line arguments."""
  argv = ['', f'--config={_CONFIGS / "cifar10_small.py"}', *arguments]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  values(argv)
  return values.config


def test_every_optional_field_takes_none_on_the_command_line() -> None:
  for field, (default, _) in config_lib.FIELDS.items():
    if isinstance(default, type):
      config = _parse(f'--config.{field}=None')
      config_lib.validate(config)
      assert config_lib.get_config().to_dict().keys() == config.to_dict().keys()
      for part in field.split('.'):
        config = config[part]
      assert config is None, field
  assert _parse('--config.dataset.num_train=none').dataset.num_train is None
  config = _parse('--config.dataset.num_train=640', '--config.inheritance=none')
  assert (config.dataset.num_train, config.inheritance) == (640, 'none')


@pytest.mark.parametrize('field', ['seed', 'learning_rate', 'setting', 'dataset.name'])
def test_a_field_that_needs_a_value_refuses_none_by_its_name(field: str) -> None:
  with pytest.raises(UserError, match=f'config.{field}: got None, want'):
    config_lib.validate(_parse(f'--config.{field}=None'))


def test_a_field_cannot_be_set_to_another_type():
  config = config_lib.get_config()
  for field, value in (('seed', 'x'), ('batch_size', 0.5), ('learning_rate', 'x')):
    with pytest.raises(TypeError):
      config[field] = value
  with pytest.raises(TypeError):
    config.dataset.num_train = 'all'


@pytest.mark.parametrize('setting', ['', 'lamarck', 'baseline_3', 'BASELINE_1'])
def test_an_unknown_setting_is_refused_by_its_name(setting):
  with pytest.raises(UserError, match='baseline_1') as error:
    config_lib.get_config(setting)
  assert repr(setting) in str(error.value)


def test_the_settings_differ_in_inheritance_and_epochs_alone():
  configs = {
    name: config_lib.get_config(name).to_dict() for name in config_lib.SETTINGS
  }
  assert set(configs) == {
    *('lamarckian', 'baseline_1', 'baseline_2'),
    *('overlap', 'net2net', 'random_search'),
  }
  for setting, differing in (
    ('baseline_1', {'setting', 'inheritance'}),
    ('baseline_2', {'setting', 'inheritance', 'epochs_per_evaluation'}),
    ('overlap', {'setting', 'inheritance'}),
    ('net2net', {'setting', 'inheritance'}),
    ('random_search', {'setting', 'inheritance', 'algorithm'}),
  ):
    names = config_lib.differing_fields(configs['lamarckian'], configs[setting])
    assert set(names) == differing


def test_differing_fields_are_found_at_every_depth_and_on_both_sides():
  one = {'a': 1, 'b': {'c': 2, 'd': {'e': 3}}, 'f': {'g': 4}, 'same': [1]}
  other = {'a': 2, 'b': {'c': 2, 'd': {'e': 4}, 'new': 5}, 'f': 6, 'same': [1]}
  assert set(config_lib.differing_fields(one, other)) == {'a', 'b.d.e', 'b.new', 'f'}
  assert config_lib.differing_fields(one, one) == []


# ------------------------------------------------------------------------------
# The files
# ------------------------------------------------------------------------------


def test_there_is_a_file_for_every_data_set_of_the_paper_and_for_cpus():
  assert {*_BASELINE_2_EPOCHS, 'digits', 'cifar10_small'} <= set(_FILES)


@pytest.mark.parametrize('setting', ['lamarckian', 'baseline_1', 'baseline_2'])
@pytest.mark.parametrize('name', _FILES)
def test_a_config_file_is_valid_in_every_setting(name, setting):
  config = _load(name, setting)
  config_lib.validate(config)
  assert config.is_locked
  assert config.setting == setting
  assert config.inheritance == ('lamarckian' if setting == 'lamarckian' else 'none')
  own = {
    'own_images': 'folder:images',
    'cifar10_8px': 'cifar10',
    'cifar10_quarter': 'cifar10',
  }
  assert config.dataset.name == own.get(name, name.removesuffix('_small'))
  assert max(config.checkpoint_epochs) <= config.budget_epochs


@pytest.mark.parametrize('name', _FILES)
def test_a_config_file_gives_the_lamarckian_setting_by_default(name):
  assert _load(name) == _load(name, 'lamarckian')
  with pytest.raises(UserError, match='nonsense'):
    _load(name, 'nonsense')


@pytest.mark.parametrize('setting', ['lamarckian', 'baseline_1', 'baseline_2'])
@pytest.mark.parametrize('name', _BASELINE_2_EPOCHS)
def test_a_config_file_of_the_paper_holds_its_values(name, setting):
  config = _load(name, setting)
  e = _BASELINE_2_EPOCHS[name] if setting == 'baseline_2' else 4
  inheritance = 'lamarckian' if setting == 'lamarckian' else 'none'
  assert config.to_dict() == {
    'setting': setting,
    'seed': 0,
    'budget_epochs': 512,
    'epochs_per_evaluation': e,
    'batch_size': 512,
    'learning_rate': 0.001,
    'learning_rate_schedule': 'constant',
    'algorithm': 'one_plus_one',
    'inheritance': inheritance,
    'inheritance_noise': 0.03,
    'inheritance_shrink': 1.0,
    'class_weights': 'none',
    'init_from': None,
    'parsimony': 0.0,
    'fitness': 'accuracy',
    'compute_dtype': 'float32',
    'max_parameters': None,
    'max_flops': None,
    'max_seconds_per_evaluation': None,
    'niching': {'rate': 0.1, 'iterations': 5},
    'population': {
      'size': 8,
      'children': 4,
      'tournament': 2,
      'crossover_rate': 0.5,
      'replacement': 'worst',
      'mate': 'tournament',
      'crossover_inheritance': 'stitched',
      'cores_per_child': 1,
    },
    'random_search': {'max_blocks': 10},
    'search_space': {
      'filters': (16, 32, 64, 96, 128, 192, 256),
      'kernel_sizes': (1, 3, 5),
      'strides': (1, 2),
      'max_downsampling': 3,
    },
    'dataset': {
      'name': name,
      'data_dir': None,
      'manual_dir': None,
      'num_train': None,
      'num_validation': None,
      'image_size': None,
    },
    'augmentation': {'flip': False, 'shift': 0},
    'checkpoint_epochs': (128, 512),
    'completion': {
      'enabled': True,
      'epochs': (10, 20, 30),
      'learning_rates': (1e-3, 1e-4, 1e-5),
      'shrink': 1.0,
    },
  }


@pytest.mark.parametrize(
  'name', ['digits', 'cifar10_small', 'cifar10_8px', 'cifar10_quarter']
)
def test_a_small_config_file_keeps_the_papers_algorithm(name):
  config = _load(name)
  paper = _load('cifar10')
  for field in ('niching', 'learning_rate', 'epochs_per_evaluation'):
    assert config[field] == paper[field]
  assert config.completion.learning_rates == paper.completion.learning_rates
  for field in ('kernel_sizes', 'strides', 'max_downsampling'):
    assert config.search_space[field] == paper.search_space[field]
  assert config.budget_epochs < paper.budget_epochs
