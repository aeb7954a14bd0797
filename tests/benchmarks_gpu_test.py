"""The benchmark of a GPU runs to its end on a CPU, whatever happens to a part."""

import argparse
import json
import subprocess
import sys
import time

import pytest

from benchmarks import gpu, gpu_session, search_figures
from tests.conftest import ROOT


def run(out, *flags):
  """Runs the tiny benchmark; returns what it prints and the files that it writes."""
  process = subprocess.run(
    [sys.executable, '-m', 'benchmarks.gpu', '--tiny', f'--out={out}', *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=1800,
  )
  assert process.returncode == 0, process.stderr
  files = {path.stem: json.loads(path.read_text()) for path in out.glob('*.json')}
  return process.stdout, files


def test_parts_that_do_not_fit_are_skipped_and_named(tmp_path):
  output, files = run(tmp_path, '--limit_s=0')
  assert not files
  for name in gpu.PARTS:
    assert f'{name}: skipped' in output


@pytest.mark.slow
def test_a_search_reports_its_figures_and_the_extrapolation(tmp_path):
  output, files = run(tmp_path, '--parts=search_float32')
  figures = files['search_float32']
  assert figures['outcome'] == 'complete'
  assert figures['evaluations'] == 2
  assert figures['machine']['versions']['jax']
  assert figures['phases']['total'] < figures['seconds']
  assert figures['extrapolation']['seconds_at_the_papers_operations'] > 0
  assert '| best_fitness' in output


def test_only_searches_that_read_data_from_disk_are_told_where_it_is(tmp_path):
  args = argparse.Namespace(tiny=False, data_dir='/data')
  session = gpu_session.Session(
    args, {}, tmp_path, tmp_path, (tmp_path / 'log').open('w')
  )
  flag = '--config.dataset.data_dir=/data'
  assert flag in session.search('a', 'x', ['--config=configs/cifar10.py'], 4)
  assert flag not in session.search('b', 'x', [gpu_session.DIGITS], 4)
  args.tiny = True
  assert flag not in session.search('c', 'x', ['--config=configs/cifar10.py'], 4)


def test_a_part_cut_off_keeps_what_it_has_written(tmp_path, monkeypatch):
  args = argparse.Namespace(tiny=False)
  log = (tmp_path / 'log.txt').open('w')
  session = gpu_session.Session(args, {}, tmp_path, tmp_path, log)

  def part(session):
    session.write('blocks', {'rows': [1]})
    (process,) = session.run([sys.executable, '-c', 'import time; time.sleep(100)'])
    return process.outcome

  monkeypatch.setitem(gpu.PARTS, 'blocks', (part, 0, 1))
  end = time.monotonic() + 100
  assert gpu.run_part('blocks', session, end).startswith('cut off')
  assert json.loads((tmp_path / 'blocks.json').read_text())['rows'] == [1]


def test_the_extrapolation_of_equal_networks_is_proportional_to_the_epochs():
  events = [
    {
      'epochs_used': 4 * (i + 1),
      'flops': 1e12,
      'seconds': {'total': 3.0, 'train': 2.0},
    }
    for i in range(8)
  ]
  predicted = search_figures.extrapolate(events, seconds=10 + 8 * 3.0)
  same = predicted['seconds_at_the_operations_of_these_networks']
  assert same == pytest.approx(10 + 128 * 3.0)
  paper = predicted['seconds_at_the_papers_operations']
  assert paper == pytest.approx(10 + 6e16 * 2e-12 + 128 * 1.0)


@pytest.mark.slow
def test_all_parts_complete_on_a_cpu(tmp_path):
  output, files = run(tmp_path, '--limit_s=1700')
  assert set(files) == set(gpu.PARTS)
  assert output.count(': complete') == len(gpu.PARTS)
  assert files['determinism']['equal'] == files['determinism']['evaluations'] == 2
  assert not any('error' in row for row in files['blocks']['rows'])
  assert [row['processes'] for row in files['concurrent']['rows']] == [1, 2]
