"""A study has only runs that can be compared, however many commands it is made by."""

import numpy as np
import pytest

from lamarck_jax import search
from lamarck_jax.errors import UserError
from lamarck_jax.study import analysis, results, tables
from tests.conftest import read_events
from tests.study.conftest import make_tasks, run_locally


def perform(tasks, root):
  """Runs a study in this process, and returns its results."""
  root.mkdir(exist_ok=True)
  results.write_plan(root, [(task.setting, task.seed) for task in tasks])
  for task in tasks:
    search.run(task.config, task.workdir)
  return results.collect(root)


def write_images(path, seed):
  """Writes 200 images of two classes; returns the name of the data set."""
  images = np.random.default_rng(seed).integers(0, 256, (200, 8, 8), np.uint8)
  np.savez(path / 'own.npz', x_train=images, y_train=np.arange(200) % 2)
  return f'npz:{path / "own.npz"}'


@pytest.fixture(scope='module')
def begun(shared_compilation_cache, tmp_path_factory):
  """The directory of a study with one finished run, and what extends it."""
  root = tmp_path_factory.mktemp('study')

  def extend(settings, **overrides):
    flags = {'budget_epochs': 4, 'num_seeds': 1, **overrides}
    return make_tasks(root, shared_compilation_cache, settings=settings, **flags)

  perform(extend(['lamarckian']), root)
  return extend


def test_a_study_is_extended_by_settings_variants_and_seeds_with_the_same_flags(begun):
  variant = 'long=lamarckian+budget_epochs=12'
  tasks = begun(['lamarckian', 'baseline_1', variant], num_seeds=2)
  assert len(tasks) == 6


@pytest.mark.parametrize('settings', [['lamarckian'], ['baseline_1'], ['baseline_2']])
@pytest.mark.parametrize(
  ('overrides', 'fields'),
  [
    ({'budget_epochs': 8, 'batch_size': 8}, 'batch_size, budget_epochs'),
    ({'seed': 1, 'dataset.num_train': 80}, 'dataset.num_train'),
    ({'seed': 1, 'learning_rate': 0.01}, 'learning_rate'),
  ],
)
def test_other_flags_than_those_of_the_runs_that_are_there_are_refused(
  begun, settings, overrides, fields
):
  if settings == ['baseline_2']:
    settings = ['wide=baseline_2+epochs_per_evaluation=1']
  overrides = {'seed': 1, **overrides}
  with pytest.raises(UserError, match=rf'lamarckian/seed0 has another .*{fields}') as e:
    begun(settings, **overrides)
  assert '\n' not in str(e.value)


def test_runs_that_differ_in_more_than_the_seed_are_not_pooled(
  shared_compilation_cache, tmp_path
):
  flags = {'num_seeds': 1, 'settings': ['lamarckian']}
  first = make_tasks(tmp_path, shared_compilation_cache, budget_epochs=3, **flags)
  perform(first, tmp_path)
  # As a study has them that was extended before this was refused.
  plan = (tmp_path / 'study.json').read_bytes()
  (tmp_path / 'study.json').unlink()
  second = make_tasks(
    tmp_path, shared_compilation_cache, budget_epochs=4, seed=1, **flags
  )
  (tmp_path / 'study.json').write_bytes(plan)
  (setting,) = perform(second, tmp_path).settings
  assert [run.seed for run in setting.runs] == [0]
  wanted = 'lamarckian/seed1 differs from lamarckian/seed0 in budget_epochs'
  assert setting.missing[1].startswith(wanted)


def test_runs_on_other_images_of_the_same_name_are_not_pooled(
  shared_compilation_cache, tmp_path
):
  name = write_images(tmp_path, 0)

  def extend(settings, num_seeds):
    return make_tasks(
      tmp_path / 'study',
      shared_compilation_cache,
      settings=settings,
      num_seeds=num_seeds,
      budget_epochs=3,
      **{'dataset.name': name},
    )

  perform(extend(['lamarckian'], 1), tmp_path / 'study')
  write_images(tmp_path, 1)
  tasks = [*extend(['lamarckian'], 2)[1:], *extend(['baseline_1'], 1)]
  study = perform(tasks, tmp_path / 'study')
  assert [[run.seed for run in setting.runs] for setting in study.settings] == [[0], []]
  for setting, seed in zip(study.settings, (1, 0)):
    assert 'has other data than lamarckian/seed0' in setting.missing[seed]
  assert 'has other data than lamarckian/seed0' in tables.report(study)


def test_a_run_on_other_images_ends_with_its_first_evaluation(
  shared_compilation_cache, tmp_path
):
  for num_seeds in (1, 2):
    tasks = make_tasks(
      tmp_path / 'study',
      shared_compilation_cache,
      num_seeds=num_seeds,
      **{'dataset.name': write_images(tmp_path, num_seeds)},
    )
    (tmp_path / 'study').mkdir(exist_ok=True)
    results.write_plan(tmp_path / 'study', [(t.setting, t.seed) for t in tasks])
    failures = run_locally(tasks, 1)
    assert len(failures) == num_seeds - 1
  ((task, reason),) = failures.items()
  assert task.seed == 1
  assert 'lamarckian/seed1 has other data than lamarckian/seed0' in reason
  assert 'remove the directory of the one with wrong data' in reason
  assert len(read_events(task.workdir)) == 1


def test_a_run_that_is_left_out_is_no_measure_for_those_after_it(
  shared_compilation_cache, tmp_path
):
  for images, setting, seed in [
    (0, 'lamarckian', 0),
    (1, 'baseline_1', 0),
    (0, 'baseline_1', 1),
  ]:
    tasks = make_tasks(
      tmp_path / 'study',
      shared_compilation_cache,
      settings=[setting],
      seed=seed,
      num_seeds=1,
      budget_epochs=3,
      **{'dataset.name': write_images(tmp_path, images)},
    )
    study = perform(tasks, tmp_path / 'study')
  assert [[run.seed for run in s.runs] for s in study.settings] == [[0], [1]]


def test_a_field_without_an_effect_makes_no_difference(
  shared_compilation_cache, tmp_path
):
  def extend(setting, **overrides):
    return make_tasks(
      tmp_path,
      shared_compilation_cache,
      settings=[setting],
      num_seeds=1,
      budget_epochs=3,
      **overrides,
    )

  perform(extend('lamarckian'), tmp_path)
  fields = {'random_search.max_blocks': 3}
  study = perform(extend('random_search', **fields), tmp_path)
  assert [len(setting.runs) for setting in study.settings] == [1, 1]
  assert len(extend('random_search', **fields, seed=1)) == 1
  with pytest.raises(UserError, match=r'another random_search\.max_blocks'):
    extend('random_search', **{**fields, 'random_search.max_blocks': 4}, seed=1)


def test_settings_with_another_data_set_or_budget_keep_their_own(
  shared_compilation_cache, tmp_path
):
  name = write_images(tmp_path, 0)
  settings = ['lamarckian', f'own=lamarckian+dataset.name={name}+budget_epochs=5']
  tasks = make_tasks(
    tmp_path / 'study', shared_compilation_cache, settings=settings, budget_epochs=3
  )
  study = perform(tasks, tmp_path / 'study')
  results.write(study, tmp_path / 'results.json')
  assert results.load(tmp_path / 'results.json') == study
  assert [row['data'] for row in tables.table(study)] == ['digits', name]
  assert list(map(study.budget_of, study.settings)) == [3, 5]


def test_budgets_are_compared_that_both_settings_have(make_run):
  curves = ((0.2, 0.3, 0.3), (0.25, 0.3, 0.5))
  short, long = (
    results.Setting(
      name,
      'none',
      4,
      tuple(make_run(i, curve[:length], {}) for i, curve in enumerate(curves)),
      {},
      budget_epochs=own,
    )
    for name, length, own in (('short', 2, None), ('long', 3, 12))
  )
  study = results.Study('digits', 8, (), (short, long))
  compared = {
    (c.greater_epochs, c.other_epochs): c.difference for c in analysis.compare(study)
  }
  assert compared.keys() == {(4, 4), (6, 6), (8, 8), (4, 12), (6, 12), (8, 12)}
  assert compared[8, 8] == pytest.approx(0)
  assert compared[8, 12] == pytest.approx(0.3 - 0.4)
  efficiency = analysis.data_efficiency(study, short, long)
  assert efficiency is not None and efficiency.share == np.inf
  # Of the budget of the other one.
  efficiency = analysis.data_efficiency(study, long, short)
  assert efficiency is not None and efficiency.share == 1.0

  study = results.Study(
    'digits',
    12,
    (),
    tuple(
      results.Setting(s.name, 'none', 4, s.runs, {}, budget_epochs=b)
      for s, b in ((long, None), (short, 8))
    ),
  )
  compared = {(c.greater_epochs, c.other_epochs) for c in analysis.compare(study)}
  # The first evaluation ends after 4 epochs, so none has an accuracy at 3.
  assert compared == {(6, 6), (8, 8), (6, 8)}
