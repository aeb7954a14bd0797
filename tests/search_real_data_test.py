"""Searches on the real CIFAR-10 and Fashion-MNIST, as a user starts them.

They take minutes, so they are left out of the default run: pytest -m slow.
"""

import json
import pathlib
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

ROOT = pathlib.Path(__file__).parent.parent

pytestmark = pytest.mark.slow


def run_search(workdir, name: str, *flags: str) -> dict:
  builder = tfds.builder(name)
  if not builder.is_prepared():
    pytest.skip(f'{name} is not prepared in {builder.data_dir}')
  subprocess.run(
    [sys.executable, 'run_evolution.py', f'--workdir={workdir}', *flags],
    cwd=ROOT,
    check=True,
    timeout=1800,
  )
  return json.loads((workdir / 'result.json').read_text())


def test_a_small_search_on_cifar10_reaches_its_accuracy(tmp_path):
  result = run_search(
    tmp_path / 'run',
    'cifar10',
    '--config=configs/cifar10_small.py',
    '--config.seed=3',
    '--config.completion.enabled=false',
  )
  assert result['num_evaluations'] == 24
  assert result['best']['fitness'] >= 0.48


def test_the_configuration_near_the_papers_scale_runs_for_one_evaluation(tmp_path):
  result = run_search(
    tmp_path / 'run',
    'cifar10',
    '--config=configs/cifar10_quarter.py',
    '--config.dataset.num_train=512',
    '--config.dataset.num_validation=256',
    '--config.batch_size=64',
    '--config.budget_epochs=4',
    '--config.checkpoint_epochs=(4,)',
  )
  (checkpoint,) = result['checkpoints']
  assert (result['num_evaluations'], checkpoint['epochs']) == (1, 4)
  assert checkpoint['test_accuracy'] > 0.15


def test_a_baseline_runs_on_cifar10(tmp_path):
  result = run_search(
    tmp_path / 'run',
    'cifar10',
    '--config=configs/cifar10_small.py:baseline_1',
    '--config.budget_epochs=16',
    '--config.completion.epochs=(2,)',
    '--config.completion.learning_rates=(1e-3,)',
  )
  assert result['checkpoints'][0]['test_accuracy'] > 0.15


def test_the_papers_settings_run_on_fashion_mnist(tmp_path):
  result = run_search(
    tmp_path / 'run',
    'fashion_mnist',
    '--config=configs/fashion_mnist.py',
    '--config.budget_epochs=8',
    '--config.dataset.num_train=10000',
    '--config.completion.enabled=false',
  )
  assert result['best']['fitness'] > 0.35


def test_the_papers_settings_run_on_cifar10_at_full_size(tmp_path):
  result = run_search(
    tmp_path / 'run',
    'cifar10',
    '--config=configs/cifar10.py',
    '--config.budget_epochs=4',
    '--config.dataset.num_train=2560',
    '--config.completion.enabled=false',
  )
  assert result['epochs_used'] == 4
