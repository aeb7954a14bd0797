"""What the file of the report contains, and when it is written."""

import os
import re
import subprocess
import sys

import pytest

from lamarck_jax.errors import StorageError
from lamarck_jax.report import html_page
from lamarck_jax.run_directory import records
from lamarck_jax.study import results
from tests.conftest import make_tiny_config
from tests.report.conftest import data_of, write_search


def test_the_page_contains_every_event_and_needs_no_other_file(run_directory):
  path = html_page.write(run_directory)
  page = path.read_text(encoding='utf-8')
  data = data_of(page)
  assert data['events'] == records.read_events(run_directory)
  assert data['environment']['dataset']['class_names'] == ['<b>cat</b>', 'dog']
  assert data['environment']['starts'] == [{'cores': 2}]
  (checkpoint,) = data['result']['checkpoints']
  assert checkpoint['class_names'] == ['<b>cat</b>', 'dog', '7']
  assert '<title>a &lt;run&gt;</title>' in page
  assert '<noscript>This report is drawn by JavaScript' in page
  assert not re.search(r'<(script|link|img)[^>]*(src|href)="(?!data:)', page)


def test_the_page_names_what_was_selected_for(run_directory, tmp_path):
  assert html_page.collect(run_directory)['fitness_name'] == 'validation accuracy'
  for seed in (1, 2):
    path = tmp_path / 'lamarckian' / f'seed{seed}'
    write_search(path, 9, seed=seed, fitness='balanced_accuracy')
    name = html_page.collect(path)['fitness_name']
    assert name == 'balanced validation accuracy'
  results.write_plan(tmp_path, [('lamarckian', 1), ('lamarckian', 2)])
  assert html_page.collect(tmp_path)['selected_name'] == f'best {name}'
  results.write(results.collect(tmp_path), tmp_path / 'results.json')
  assert results.load(tmp_path / 'results.json').selected_name == f'best {name}'


def test_a_search_in_progress_has_a_report(tmp_path):
  write_search(tmp_path / 'run', 5, finished=False)
  assert data_of(html_page.write(tmp_path / 'run').read_text())['result'] is None


def test_a_search_without_evaluations_has_a_report(tmp_path):
  records.RunDirectory(tmp_path, make_tiny_config().to_dict())
  data = data_of(html_page.write(tmp_path).read_text())
  assert data['events'] == []
  assert data['environment'] == {}


def test_other_directories_are_refused_in_one_line(tmp_path):
  process = subprocess.run(
    [sys.executable, '-m', 'lamarck_jax.report', str(tmp_path)],
    capture_output=True,
    text=True,
  )
  assert process.returncode == 2
  assert re.fullmatch(r'error: report: got .*, want the directory .*\n', process.stderr)


def test_a_report_that_fails_at_the_end_of_a_search_is_a_warning(tmp_path, caplog):
  assert html_page.write_if_possible(tmp_path) is None
  assert 'no report' in caplog.text


def test_a_search_without_plotly_ends_with_a_warning(tmp_path, caplog, monkeypatch):
  write_search(tmp_path, 2)
  monkeypatch.setitem(sys.modules, 'plotly.offline', None)  # It cannot be imported.
  assert html_page.write_if_possible(tmp_path) is None
  assert 'plotly' in caplog.text


def test_a_report_newer_than_the_results_is_not_written_again(tmp_path):
  write_search(tmp_path, 2)
  path = html_page.write_if_possible(tmp_path)
  written = path.stat().st_ino
  assert html_page.write_if_possible(tmp_path) == path
  assert path.stat().st_ino == written
  later = path.stat().st_mtime + 1
  os.utime(tmp_path / 'result.json', (later, later))
  html_page.write_if_possible(tmp_path)
  assert path.stat().st_ino != written


@pytest.mark.parametrize('num_bytes', [0, 100_000])
def test_a_report_that_was_cut_off_is_written_again(tmp_path, num_bytes):
  write_search(tmp_path, 2)
  path = html_page.write_if_possible(tmp_path)
  os.truncate(path, num_bytes)
  html_page.write_if_possible(tmp_path)
  assert len(data_of(path.read_text())['events']) == 2


def test_a_report_that_cannot_be_written_is_named(tmp_path):
  write_search(tmp_path, 2, finished=False)
  (tmp_path / html_page.FILE_NAME).mkdir()
  with pytest.raises(StorageError, match=html_page.FILE_NAME):
    html_page.write(tmp_path)
  assert html_page.write_if_possible(tmp_path) is None
  assert not list(tmp_path.glob('*.tmp')) + list(tmp_path.glob('.*.tmp'))


def test_nan_becomes_null():
  page = html_page.render(
    {'title': 'x', 'a': [float('nan'), {'b': float('inf')}], 'c': 1}
  )
  assert data_of(page) == {'title': 'x', 'a': [None, {'b': None}], 'c': 1}
