import csv
import dataclasses
import io
import re

import pytest

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


def test_every_row_of_the_latex_table_has_as_many_cells_as_the_header(study):
  lines = tables.to_latex(study).splitlines()
  assert lines[0].startswith(r'\begin{tabular}{llrrrrrrrr}')
  rows = [line for line in lines if line.startswith('cifar10')]
  assert len(rows) == 2
  assert all(row.count('&') == 9 for row in rows)
  assert r'$61.0 \pm 1.0$' in rows[0]


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
