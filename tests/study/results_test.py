import dataclasses
import json

import pytest

from lamarck_jax.errors import UserError
from lamarck_jax.study import analysis, results, tables
from tests import damages


def test_results_come_back_as_they_were_written(study, tmp_path):
  results.write(study, tmp_path / 'results.json')
  assert results.load(tmp_path) == study
  assert results.load(tmp_path / 'results.json') == study


def test_training_accuracies_come_back_and_may_be_missing(study, tmp_path):
  first, second = study.settings
  runs = tuple(
    dataclasses.replace(run, training_accuracy={12: 0.9}) for run in first.runs[:1]
  )
  first = dataclasses.replace(first, runs=runs + first.runs[1:])
  study = dataclasses.replace(study, settings=(first, second))
  results.write(study, tmp_path / 'results.json')
  assert results.load(tmp_path) == study
  assert first.training_accuracies(12) == [0.9]
  assert first.training_accuracies(4) == []

  # As it was written before there were any, and no digest.
  content = json.loads((tmp_path / 'results.json').read_text())
  content['format_version'] = 1
  del content['sha256']
  for setting in content['settings']:
    for run in setting['runs']:
      del run['training_accuracy']
  (tmp_path / 'results.json').write_text(json.dumps(content))
  assert results.load(tmp_path).settings[0].training_accuracies(12) == []


def test_the_best_so_far_is_that_of_the_last_evaluation_within_the_budget(study):
  run = study.settings[0].runs[1]
  assert [run.best_fitness_at(n) for n in (4, 7, 8, 12, 99)] == [
    0.3,
    0.3,
    0.3,
    0.6,
    0.6,
  ]
  assert run.best_num_blocks_at(11) == 2
  assert str(run.best_fitness_at(3)) == 'nan'


def test_with_parsimony_the_selected_network_need_not_be_the_best(study, tmp_path):
  assert study.selected_name == 'best validation accuracy'
  first, second = study.settings
  small = dataclasses.replace(second, parsimony=2.0)
  study = dataclasses.replace(study, settings=(first, small))
  name = 'validation accuracy of the selected network'
  assert study.selected_name == name
  assert {c.measure for c in analysis.compare(study)} == {'test accuracy', name}
  assert f'lamarckian reaches the final mean {name} of' in tables.report(study)
  results.write(study, tmp_path / 'results.json')
  assert results.load(tmp_path) == study


def test_a_checkpoint_has_no_accuracy_of_a_run_that_skipped_it(study, make_run):
  setting = study.settings[1]
  run = make_run(5, (0.1,), {12: 0.9})
  setting = results.Setting('s', 'none', 16, (*setting.runs, run), {})
  assert setting.test_accuracies(4) == [0.3, 0.3]
  assert setting.test_accuracies(12) == [0.5, 0.51, 0.9]


@pytest.mark.parametrize(
  'content',
  ['', '[]', '{}', '{"format_version": 2}', '{"format_version": 1}', 'x' * 99],
)
def test_a_file_that_is_not_results_is_refused(tmp_path, content):
  (tmp_path / 'results.json').write_text(content)
  with pytest.raises(UserError, match='want a study'):
    results.load(tmp_path)


def test_a_directory_without_results_is_refused(tmp_path):
  with pytest.raises(UserError, match='want a study'):
    results.load(tmp_path)


def test_a_plan_grows_and_keeps_its_order(tmp_path):
  results.write_plan(tmp_path, [('a', 0), ('b', 0)])
  results.write_plan(tmp_path, [('a', 1), ('a', 0)], {'a/seed1': 'why'})
  plan = json.loads((tmp_path / 'study.json').read_text())
  assert plan['runs'] == [['a', 0], ['b', 0], ['a', 1]]
  assert plan['failures'] == {'a/seed1': 'why'}


def test_a_study_that_never_ran_is_refused(tmp_path):
  results.write_plan(tmp_path, [('a', 0)])
  with pytest.raises(UserError, match='want a study with a run'):
    results.load(tmp_path)


@pytest.mark.parametrize(
  'content', ['', '[]', '{"format_version": 1, "runs": 1, "failures": {}}']
)
def test_a_damaged_plan_is_refused(tmp_path, content):
  (tmp_path / 'study.json').write_text(content)
  with pytest.raises(UserError, match='want the plan of a study'):
    results.load(tmp_path)
  with pytest.raises(UserError, match='want the plan of a study'):
    results.write_plan(tmp_path, [('a', 0)])


def test_results_of_runs_that_are_gone_are_kept_under_another_name(study, tmp_path):
  path = tmp_path / 'results.json'
  results.write(study, path)
  results.write(study, path)
  assert [file.name for file in tmp_path.iterdir()] == ['results.json']
  before = path.read_bytes()
  fewer = dataclasses.replace(study, settings=study.settings[:1])
  results.write(fewer, path)
  assert results.load(path) == fewer
  assert (tmp_path / 'results.json.old-1').read_bytes() == before
  path.write_text('damaged')
  results.write(study, path)
  assert (tmp_path / 'results.json.old-2').read_text() == 'damaged'


@pytest.mark.parametrize('name', ['study.json', 'results.json'])
def test_a_file_of_a_later_format_is_refused_by_its_version(study, tmp_path, name):
  results.write(study, tmp_path / 'results.json')
  if name == 'study.json':
    results.write_plan(tmp_path, [('a', 0)])
  content = {**json.loads((tmp_path / name).read_text()), 'format_version': 3}
  (tmp_path / name).write_text(json.dumps(damages.resealed(content)))
  with pytest.raises(UserError, match=f'format_version: got 3 in .*{name}, want 2 or'):
    results.load(tmp_path)


@pytest.mark.parametrize('name', ['study.json', 'results.json'])
def test_a_number_that_has_changed_is_noticed(study, tmp_path, name):
  results.write(study, tmp_path / 'results.json')
  if name == 'study.json':
    results.write_plan(tmp_path, [('a', 4)])
  path = tmp_path / name
  text = path.read_text()
  changed = text.replace('4', '0', 1)
  assert changed != text
  path.write_text(changed)
  with pytest.raises(UserError, match=r'sha256: got .* as written'):
    results.load(tmp_path)
