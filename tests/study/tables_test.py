import csv
import dataclasses
import io
import re

import pytest
import scipy.stats

from lamarck_jax.errors import StorageError
from lamarck_jax.study import tables


def test_the_report_names_missing_runs(study):
  report = tables.report(study)
  assert re.search(r'Missing of baseline_1: 1: seed 2 \(not finished\)', report)


def test_the_csv_has_the_figures_of_the_runs(study):
  rows = list(csv.DictReader(io.StringIO(tables.to_csv(study))))
  assert [row['setting'] for row in rows] == ['lamarckian', 'baseline_1']
  assert rows[0]['min@12'] == '60.0'
  assert rows[0]['mean@12'] == '61.0'
  assert rows[0]['std@12'] == '1.0'
  assert rows[0]['max@12'] == '62.0'
  assert [row['n@12'] for row in rows] == ['3', '2']
  assert [row['missing runs'] for row in rows] == ['0', '1']
  assert rows[0]['mean FLOPs'] == '2.00e+03'


def test_the_report_says_what_an_early_checkpoint_reaches(study):
  # 40.0 at a third of the budget in all three runs, 50.0 and 51.0 at the end.
  report = tables.report(study)
  (sentence,) = re.findall(r'^Data efficiency in test accuracy: .*$', report, re.M)
  assert 'lamarckian at 4 epochs less baseline_1 at 12: -10.5 (' in sentence
  _, p = scipy.stats.mannwhitneyu([0.4] * 3, [0.5, 0.51], alternative='greater')
  assert sentence.endswith(f'points, p = {p:.2g}.')


def test_training_accuracies_are_in_the_tables_where_runs_have_them(study):
  assert 'training' not in tables.report(study) + tables.to_csv(study)
  first, second = study.settings
  runs = tuple(
    dataclasses.replace(run, training_accuracy={12: 0.8 + run.seed / 100})
    for run in first.runs
  )
  study = dataclasses.replace(
    study, settings=(dataclasses.replace(first, runs=runs), second)
  )
  rows = list(csv.DictReader(io.StringIO(tables.to_csv(study))))
  assert [row['training mean@12'] for row in rows] == ['81.0', '-']
  assert [row['training mean@4'] for row in rows] == ['-', '-']
  assert '81.0±1.0' in tables.report(study)


def test_every_row_of_the_latex_table_has_as_many_cells_as_the_header(study):
  lines = tables.to_latex(study).splitlines()
  assert lines[0].startswith(r'\begin{tabular}{llrrrrrrrr}')
  rows = [line for line in lines if line.startswith('cifar10')]
  assert len(rows) == 2
  assert all(row.count('&') == 9 for row in rows)
  assert r'$61.0 \pm 1.0$' in rows[0]


def test_the_latex_table_names_settings_that_the_mode_does_not_tell_apart(study):
  settings = [
    dataclasses.replace(study.settings[1], name=name)
    for name in ('baseline_1', 'random_search', 'my_own')
  ]
  latex = tables.to_latex(dataclasses.replace(study, settings=tuple(settings)))
  for name in ('none', r'random\_search', r'my\_own'):
    assert f'cifar10 & {name} & 4' in latex


def test_a_study_without_finished_runs_has_tables(study, tmp_path):
  empty = tuple(
    dataclasses.replace(setting, runs=(), missing={0: 'failed'})
    for setting in study.settings
  )
  empty_study = dataclasses.replace(study, settings=empty, checkpoint_epochs=())
  tables.write_tables(empty_study, tmp_path)
  assert 'seed 0 (failed)' in (tmp_path / 'table.txt').read_text()


def test_a_folder_that_cannot_be_written_is_named(study, tmp_path):
  with pytest.raises(StorageError, match='missing'):
    tables.write_tables(study, tmp_path / 'missing')
