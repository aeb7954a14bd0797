"""The comparison with other tools at equal seconds: its searches, table and figure."""

import argparse
import importlib.util
import json
import subprocess
import sys
import time

from ml_collections import config_dict
import numpy as np
import pytest
import scipy.stats

from benchmarks import peers, peers_jax
from benchmarks.peers_attempt import Attempt
from lamarck_jax.errors import UserError
from tests.conftest import ROOT


def write_result(out, method, seed, accuracy, **fields):
  result = {
    'method': method,
    'seed': seed,
    'budget_seconds': 60.0,
    'tiny': False,
    'evaluations': 7,
    'best_validation_accuracy': 0.5,
    'curve': [[10.0, 0.25], [30.0, 0.5]],
    'seconds': 50.0,
    'cpu_seconds': 25.0,
    'parameters': 1000,
    'test_accuracy': accuracy,
    **fields,
  }
  (out / f'{method}_seed{seed}.json').write_text(json.dumps(result))


def make_attempt(tmp_path, method, seconds=0.0):
  config = peers.make_config(method, seed=1, tiny=True, data_dir=None)
  task = {
    'method': method,
    'seed': 1,
    'seconds': seconds,
    'start': time.time(),
    'scratch': str(tmp_path),
    'out': str(tmp_path / 'outcome'),
  }
  # As it arrives in the process of the search.
  config = config_dict.ConfigDict(json.loads(json.dumps(config.to_dict())))
  return Attempt(task), config


def test_a_search_evaluates_and_completes_one_network_however_short_the_time(tmp_path):
  attempt, config = make_attempt(tmp_path, 'lamarckian')
  peers_jax.run(attempt, config)
  outcome = json.loads((tmp_path / 'outcome').read_text())
  assert outcome['evaluations'] == 1
  assert outcome['curve'] == [
    [outcome['curve'][0][0], outcome['best_validation_accuracy']]
  ]
  assert 0 < outcome['search_seconds'] <= outcome['seconds']
  assert 0 <= outcome['test_accuracy'] <= 1
  assert outcome['versions']['jax']


def test_a_search_ends_while_there_is_time_to_complete_the_best_network(tmp_path):
  attempt, _ = make_attempt(tmp_path, 'lamarckian', seconds=100.0)
  attempt.task['start'] = time.time() - 40
  attempt.evaluations = 8  # Of five seconds each.
  assert not attempt.is_over(reserve=50)
  assert attempt.is_over(reserve=60)


class RandomTrial:
  """Suggests like Optuna's trials, at random."""

  def __init__(self, seed):
    self._rng = np.random.default_rng(seed)

  def suggest_int(self, name, low, high):
    del name
    return int(self._rng.integers(low, high + 1))

  def suggest_categorical(self, name, choices):
    del name
    return choices[self._rng.integers(len(choices))]


def test_optuna_draws_from_the_same_search_space():
  config = peers.make_config('optuna', seed=1, tiny=False, data_dir=None)
  depths, space = set(), config.search_space
  for seed in range(300):
    blocks = peers_jax.suggest(RandomTrial(seed), config).blocks
    depths.add(len(blocks))
    assert {block.filters for block in blocks} <= set(space.filters)
    assert {block.kernel_size for block in blocks} <= set(space.kernel_sizes)
    strides = [block.stride for block in blocks]
    assert set(strides) <= set(space.strides)
    assert sum(stride > 1 for stride in strides) <= space.max_downsampling
  assert depths == set(range(1, config.random_search.max_blocks + 1))


def test_all_methods_get_the_same_images_and_completion():
  configs = [peers.make_config(m, 1, False, None) for m in peers.METHODS]
  for field in ('dataset', 'completion', 'search_space', 'batch_size', 'seed'):
    assert len({str(config[field]) for config in configs}) == 1


def test_the_table_has_the_statistics_of_the_files(tmp_path):
  ours, other = (0.6, 0.61, 0.65), (0.5, 0.55, 0.6)
  for seed, accuracies in enumerate(zip(ours, other)):
    for method, accuracy in zip(('lamarckian', 'autokeras'), accuracies):
      write_result(tmp_path, method, seed, accuracy)
  lines = peers.write_report(tmp_path).splitlines()
  header, _, *rows = [
    [cell.strip() for cell in line.split('|')[1:-1]] for line in lines
  ]
  first, second = (dict(zip(header, row)) for row in rows)
  assert first['method'] == 'lamarckian'
  assert first['test: mean'] == '62.0±2.6'
  assert (second['n'], second['min'], second['max']) == ('3', '50.0', '60.0')
  assert second['CPU share'] == '50%'
  assert second['lamarckian less it'].startswith('+7.0 ')
  p = scipy.stats.mannwhitneyu(ours, other, alternative='greater').pvalue
  assert second['p'] == second['p Holm'] == f'{p:.2g}'
  assert (tmp_path / 'table.txt').read_text().splitlines() == lines
  assert (tmp_path / 'accuracy.png').stat().st_size > 10_000


def test_results_of_other_seconds_are_not_mixed(tmp_path):
  write_result(tmp_path, 'lamarckian', 1, 0.5)
  write_result(tmp_path, 'lamarckian', 2, 0.5, budget_seconds=600.0)
  with pytest.raises(UserError, match=r'out: got results of .* want one'):
    peers.read(tmp_path)


def test_what_has_a_file_is_not_run_again(tmp_path, monkeypatch, capsys):
  write_result(tmp_path, 'lamarckian', 1, 0.5)
  before = (tmp_path / 'lamarckian_seed1.json').read_bytes()
  argv = ['peers', f'--out={tmp_path}', '--seeds=1', '--methods=lamarckian']
  monkeypatch.setattr(sys, 'argv', [*argv, '--seconds=60', '--python=/nowhere'])
  peers.main()
  assert '| lamarckian | 1 |' in capsys.readouterr().out
  assert (tmp_path / 'lamarckian_seed1.json').read_bytes() == before


@pytest.mark.slow
def test_the_rehearsal_runs_every_method_that_is_installed(tmp_path):
  methods = ['lamarckian', 'random_search']
  methods += [
    name for name in ('optuna', 'autokeras') if importlib.util.find_spec(name)
  ]
  command = [sys.executable, '-m', 'benchmarks.peers', '--tiny', f'--out={tmp_path}']
  command += [f'--methods={",".join(methods)}', '--seeds=1', '--seconds=20']
  subprocess.run(command, cwd=ROOT, check=True, timeout=1800)
  assert {path.stem for path in tmp_path.glob('*.json')} == {
    f'{m}_seed1' for m in methods
  }
  assert (tmp_path / 'accuracy.png').exists()


def test_table_names_the_method_that_is_compared(tmp_path):
  for method in ('random_search', 'optuna'):
    for seed, accuracy in enumerate((0.4, 0.5), start=1):
      write_result(tmp_path, method, seed, accuracy)

  header = peers.report(peers.read(tmp_path)).splitlines()[0]

  assert 'random_search less it' in header
  assert 'lamarckian' not in header


@pytest.mark.parametrize('content', ['{"method": ', '{}', '[]', '3'])
def test_a_damaged_result_is_named(tmp_path, content):
  (tmp_path / 'lamarckian_seed1.json').write_text(content)
  with pytest.raises(UserError, match=r'out: got .*lamarckian_seed1\.json'):
    peers.read(tmp_path)


@pytest.mark.slow
def test_a_damaged_result_is_one_line_and_status_2(tmp_path):
  (tmp_path / 'lamarckian_seed1.json').write_text('{"method": ')
  process = subprocess.run(
    [sys.executable, '-m', 'benchmarks.peers', f'--out={tmp_path}', '--report'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert process.returncode == 2
  assert 'lamarckian_seed1.json' in process.stderr.splitlines()[-1]
  assert 'Traceback' not in process.stderr


def test_a_run_without_an_end_is_named(tmp_path, monkeypatch):
  tool = tmp_path / 'python'
  tool.write_text('#!/bin/sh\nexec sleep 100\n')
  tool.chmod(0o755)
  monkeypatch.setattr(peers, '_GRACE_SECONDS', 0.2)
  args = argparse.Namespace(
    seconds=0.0, tiny=True, data_dir=None, python=str(tool), out=tmp_path
  )
  reason = peers._run(args, tmp_path / 'data.npz', 'lamarckian', 1, 0)
  assert reason == 'no outcome after 0 s'
