"""A search that starts from a network which exists already."""

import json
import pathlib
import shutil

from flax import traverse_util
import numpy as np
import pytest

from lamarck_jax import (
  export,
  initialisation,
  model,
  search,
  search_state,
  warm_start,
)
from lamarck_jax.errors import DamagedError, UserError
from lamarck_jax.genotype import Genotype
from lamarck_jax.population import Offspring
from lamarck_jax.run_directory import records
from lamarck_jax.search_state import Purpose, random_key
from lamarck_jax.training import Trainer
from tests import conftest


def make_config(init_from=None, **fields):
  """A search of two evaluations of an epoch each."""
  config = conftest.make_tiny_config()
  config.budget_epochs = 2
  config.checkpoint_epochs = ()
  config.completion.epochs, config.completion.learning_rates = (1,), (1e-3,)
  config.init_from = init_from and str(init_from)
  config.update(fields)
  return config


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A finished run, and its network in a folder."""
  root = tmp_path_factory.mktemp('source')
  search.run(make_config('4c3 8c3'), root / 'run')
  export.export(root / 'run', root / 'exported')
  return root


@pytest.fixture(scope='module')
def warm(source):
  """A finished run that was started from the weights of another."""
  workdir = source / 'warm'
  search.run(make_config(source / 'run'), workdir)
  return workdir


@pytest.fixture
def trainer(tiny_dataset):
  """Has gray images of three classes, a, b and c."""
  with_close = Trainer(tiny_dataset, batch_size=24)
  yield with_close
  with_close.close()


def test_the_first_network_is_the_runs_best_with_its_completed_weights(source, warm):
  first = conftest.read_events(warm)[0]
  completed = records.read_result(source / 'run')['checkpoints'][-1]
  assert first['genotype'] == completed['genotype']
  assert first['lineages'] == completed['lineages']
  assert first['fitness_at_birth'] == completed['validation_accuracy']
  assert (first['parent'], first['mutation']) == (None, [])


def test_an_exported_network_is_the_same_start_as_its_run(source, warm, tmp_path):
  search.run(make_config(source / 'exported'), tmp_path / 'run')

  def without_config(workdir):
    drop = ('config_sha256', 'crc32')
    events = conftest.read_events(workdir)
    return [{k: v for k, v in event.items() if k not in drop} for event in events]

  assert without_config(tmp_path / 'run') == without_config(warm)


def test_children_of_the_first_network_number_their_blocks_on(source, warm):
  first, *later = conftest.read_events(warm)
  assert all(event['next_lineage'] >= first['next_lineage'] for event in later)
  for event in later:
    assert len(set(event['lineages'])) == len(event['lineages'])


@pytest.mark.parametrize('algorithm', ['one_plus_one', 'population', 'random_search'])
def test_every_algorithm_starts_from_a_genotype_with_fresh_weights(
  source, tmp_path, algorithm
):
  config = make_config('8c1 4c3s2', algorithm=algorithm, inheritance='none')
  directory = records.RunDirectory(tmp_path / 'run', config.to_dict())
  loaded = warm_start.load(config, tmp_path / 'run')
  state = search_state.initial_state(config)
  state = warm_start.begin(state, loaded, directory, ('a', 'b'))
  (first,) = state.ask()
  assert (str(first.genotype), first.parents, first.variables) == (
    '8c1 4c3s2',
    (),
    None,
  )
  following = state.tell(first.genotype, 0.5)
  second = following.ask()[0]
  assert second.genotype != first.genotype
  assert len(second.parents) == (algorithm != 'random_search')
  # A search that goes on has no first network any more.
  assert warm_start.begin(following, loaded, directory, ('a', 'b')) is following
  # The source was found by a search that has started from a genotype.
  assert conftest.read_events(source / 'run')[0]['genotype'] == [
    [4, 3, 1],
    [8, 3, 1],
  ]


# ------------------------------------------------------------------------------
# Other data
# ------------------------------------------------------------------------------


def leaves_on_other_data(trainer, mode, channels, num_classes, variables=None):
  """Leaves of a network of other data, and those that it starts with on these."""
  genotype = Genotype.parse('4c3 8c1s2')
  key = random_key(1, 0, Purpose.INITIALISATION)
  old = variables or model.init_variables(
    random_key(7, 0, Purpose.INITIALISATION), genotype, channels, num_classes
  )
  config = make_config(inheritance=mode)
  offspring = Offspring(genotype, variables=old)
  new, _ = initialisation.initial_variables(key, offspring, [], trainer, config)
  fresh, _ = initialisation.initial_variables(
    key, Offspring(genotype), [], trainer, config
  )
  return [traverse_util.flatten_dict(tree, sep='/') for tree in (old, new, fresh)]


@pytest.mark.parametrize('mode', ['lamarckian', 'net2net', 'none'])
def test_leaves_that_fit_the_data_are_kept_and_others_are_fresh(trainer, mode):
  old, new, fresh = leaves_on_other_data(trainer, mode, channels=3, num_classes=7)
  changed = {'block_0/conv/kernel', 'classifier/dense/kernel', 'classifier/dense/bias'}
  for path, leaf in new.items():
    name = path.removeprefix('params/')
    kept = mode != 'none' and name not in changed
    np.testing.assert_array_equal(leaf, (old if kept else fresh)[path], err_msg=path)


def test_overlap_keeps_the_overlapping_slice_on_other_data(trainer):
  old, new, fresh = leaves_on_other_data(trainer, 'overlap', channels=3, num_classes=2)
  kernel, dense = 'params/block_0/conv/kernel', 'params/classifier/dense/kernel'
  np.testing.assert_array_equal(new[kernel], old[kernel][:, :, :1])
  np.testing.assert_array_equal(new[dense][:, :2], old[dense])
  np.testing.assert_array_equal(new[dense][:, 2:], fresh[dense][:, 2:])


def test_a_classifier_of_other_classes_is_fresh_even_if_it_fits(
  source, tmp_path, trainer
):
  config = make_config(source / 'run')
  directory = records.RunDirectory(tmp_path / 'run', config.to_dict())
  loaded = warm_start.load(config, tmp_path / 'run')
  directory.write_initial(loaded.network, loaded.variables)
  state = search_state.initial_state(config)
  same, other = (
    warm_start.begin(state, loaded, directory, names).ask()[0].variables
    for names in (tuple('0123456789'), tuple('abcdefghij'))
  )
  assert 'classifier' in same['params']
  assert 'classifier' not in other['params']
  assert same['params'].keys() - other['params'].keys() == {'classifier'}
  # What is missing is fresh.
  *_, new, fresh = leaves_on_other_data(
    trainer, 'lamarckian', 1, 3, {'params': {}, 'batch_stats': {}}
  )
  for path, leaf in new.items():
    np.testing.assert_array_equal(leaf, fresh[path])


# ------------------------------------------------------------------------------
# Images that the network has seen
# ------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def images():
  """200 images of 8x8 pixels in two classes, and test images."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (250, 8, 8), np.uint8)
  labels = np.arange(250) % 2
  return {
    'x_train': pixels[:200],
    'y_train': labels[:200],
    'x_test': pixels[200:],
    'y_test': labels[200:],
  }


def run_on(arrays, path, init_from=None, inheritance='lamarckian', **fields):
  """Runs a search on images of the user's own; returns the run directory."""
  name = path.parent / f'images_{len(arrays)}_{arrays["y_train"].max()}.npz'
  np.savez(name, **arrays)
  config = make_config(init_from, inheritance=inheritance)
  with config.unlocked(), config.ignore_type():
    config.dataset.update({'name': f'npz:{name}', 'num_train': None})
    config.dataset.update({'num_validation': 30, **fields})
  search.run(config, path)
  return path


@pytest.mark.parametrize('exported', [False, True])
def test_a_network_that_may_have_seen_validation_or_test_images_is_warned_of(
  images, tmp_path, caplog, exported
):
  path = run_on(images, tmp_path / 'source')
  if exported:
    path = tmp_path / 'exported'
    export.export(tmp_path / 'source', path)
  caplog.clear()
  run_on(images, tmp_path / 'same', path)
  three = {'y_train': np.arange(200) % 3, 'y_test': np.arange(50) % 3}
  run_on({**images, **three}, tmp_path / 'other_classes', path, num_validation=60)
  assert 'accuracy is too high' not in caplog.text

  run_on(images, tmp_path / 'more', path, num_validation=60)
  assert 'was measured with other validation images than this search' in caplog.text
  caplog.clear()
  untested = {name: images[name] for name in ('x_train', 'y_train')}
  run_on(untested, tmp_path / 'untested', path)
  assert 'with other validation and test images than this search' in caplog.text


def test_without_inheritance_no_weight_has_seen_an_image(images, tmp_path, caplog):
  path = run_on(images, tmp_path / 'source')
  caplog.clear()
  run_on(images, tmp_path / 'more', path, num_validation=60, inheritance='none')
  assert 'accuracy is too high' not in caplog.text


def test_other_sizes_of_the_same_images_are_told_by_their_labels(
  images, tmp_path, caplog
):
  path = run_on(images, tmp_path / 'source')
  for num_validation, warns in ((30, False), (60, True)):
    caplog.clear()
    fields = {'num_validation': num_validation, 'image_size': 16}
    run_on(images, tmp_path / f'large_{num_validation}', path, **fields)
    assert ('accuracy is too high' in caplog.text) == warns


# ------------------------------------------------------------------------------
# Resuming
# ------------------------------------------------------------------------------


def begun(warm, tmp_path, source, num_events=0):
  """A copy of a run that was killed, with a source that may be changed."""
  shutil.copytree(source / 'run', tmp_path / 'run')
  workdir = tmp_path / 'warm'
  config = make_config(tmp_path / 'run')
  if num_events:
    conftest.run_until(config, workdir, num_events - 1)
  else:
    # Before the first event there are the configuration and the network.
    directory = records.RunDirectory(workdir, config.to_dict())
    loaded = warm_start.load(config, workdir)
    directory.write_initial(loaded.network, loaded.variables)
  return config, workdir


def fitnesses(workdir):
  return [
    (event['genotype'], event['fitness_at_birth'], event['fitness'])
    for event in conftest.read_events(workdir)
  ]


@pytest.mark.parametrize('num_events', [0, 1])
def test_a_run_that_has_begun_needs_its_source_no_more(
  source, warm, tmp_path, num_events
):
  config, workdir = begun(warm, tmp_path, source, num_events)
  shutil.rmtree(tmp_path / 'run')
  search.run(config, workdir)
  assert fitnesses(workdir) == fitnesses(warm)


def test_a_source_that_cannot_be_read_any_more_is_not_needed(source, warm, tmp_path):
  config, workdir = begun(warm, tmp_path, source)
  (tmp_path / 'run' / 'result.json').write_text('{}')
  search.run(config, workdir)
  assert fitnesses(workdir) == fitnesses(warm)


@pytest.mark.parametrize('num_events', [0, 1])
def test_a_source_that_was_exchanged_is_refused(source, warm, tmp_path, num_events):
  config, workdir = begun(warm, tmp_path, source, num_events)
  shutil.rmtree(tmp_path / 'run')
  search.run(make_config('4c3 8c3', seed=5), tmp_path / 'run')
  before = sorted(workdir.rglob('*'))
  with pytest.raises(UserError, match='another network than when') as error:
    search.run(config, workdir)
  assert '\n' not in str(error.value)
  assert sorted(workdir.rglob('*')) == before


def test_a_damaged_copy_is_named_while_it_is_needed_and_ignored_later(
  source, warm, tmp_path
):
  config, workdir = begun(warm, tmp_path, source)
  path = workdir / 'init_from.safetensors'
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  with pytest.raises(DamagedError, match=r'init_from\.safetensors'):
    search.run(config, workdir)
  path.unlink()
  with pytest.raises(DamagedError, match=r'init_from\.safetensors'):
    search.run(config, workdir)
  late = tmp_path / 'late'
  conftest.run_until(config, late, 0)
  (late / 'init_from.safetensors').unlink()
  search.run(config, late)
  assert fitnesses(late) == fitnesses(warm)


@pytest.mark.parametrize('change', ['lineages', 'class_names', 'config_sha256'])
def test_a_record_of_another_network_is_named(source, warm, tmp_path, change):
  config, workdir = begun(warm, tmp_path, source)
  path = workdir / 'init_from.json'
  content = json.loads(path.read_text())
  content[change] = content[change][::-1]
  path.write_text(json.dumps(content))
  with pytest.raises(DamagedError, match=r'init_from\.json'):
    search.run(config, workdir)


# ------------------------------------------------------------------------------
# What is refused
# ------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('init_from', 'named'),
  [
    ('16c3', 'got 16c3, want a network of the search space: filters (4, 8)'),
    ('4c3 8c5', 'kernel_sizes (1, 3)'),
    ('4c3s2 4c3s2 4c3s2 4c3s2', 'at most 3'),
    ('64x3', "got '64x3', want a genotype such as '4c3 8c3s2', a finished"),
    ('RUN', 'without result.json'),
    ('EMPTY', 'a finished run or an exported network: no network at'),
    ('CUT', 'weights.safetensors'),
  ],
)
def test_what_is_no_start_of_the_search_is_one_line(source, tmp_path, init_from, named):
  (tmp_path / 'EMPTY').mkdir()
  shutil.copytree(source / 'run', tmp_path / 'RUN')
  (tmp_path / 'RUN' / 'result.json').unlink()
  shutil.copytree(source / 'exported', tmp_path / 'CUT')
  weights = tmp_path / 'CUT' / 'weights.safetensors'
  weights.write_bytes(weights.read_bytes()[:-1])
  if init_from.isupper():
    init_from = tmp_path / init_from
  with pytest.raises(UserError, match=r'config\.init_from: got') as error:
    search.run(make_config(init_from), tmp_path / 'new')
  assert named in str(error.value)
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'new').exists()


def test_a_study_checks_the_start_without_a_device(source):
  # Where JAX were initialised, this platform would raise.
  program = (
    'import sys; from lamarck_jax.study import runner\n'
    'for path in sys.argv[1:3]:\n'
    '  runner.make_tasks("configs/digits.py", {"init_from": path, '
    '"search_space.filters": (4, 8)}, ["lamarckian"], 2, sys.argv[3])'
  )
  paths = [str(source / name) for name in ('run', 'exported', 'study')]
  conftest.run_program(program, *paths, JAX_PLATFORMS='nowhere')


def test_a_network_larger_than_the_search_space_is_refused(source, tmp_path):
  config = make_config(source / 'run')
  config.search_space.filters = (3,)
  with pytest.raises(UserError, match='want a network of the search space'):
    search.run(config, tmp_path / 'new')
  assert not pathlib.Path(tmp_path / 'new').exists()
