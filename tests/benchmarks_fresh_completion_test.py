"""Networks of a published study, completed from fresh weights."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import fresh_completion
from lamarck_jax import search
from tests.conftest import ROOT, make_tiny_config

RUN = 'float32/seed1'


@pytest.mark.slow
def test_completes_with_the_class_weights_of_the_search(tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  labels = np.arange(300) % 10 // 9  # One of ten is of the second class.
  np.savez(
    tmp_path / 'own.npz',
    x_train=rng.integers(0, 256, (300, 8, 8), np.uint8),
    y_train=labels,
  )
  fresh = {}
  for weights in ('none', 'balanced'):
    config = make_tiny_config()
    with config.unlocked(), config.ignore_type():
      config.dataset.update({'name': f'npz:{tmp_path / "own.npz"}', 'num_train': None})
    config.class_weights, config.checkpoint_epochs = weights, (1,)
    config.budget_epochs = 1
    search.run(config, tmp_path / weights / 'study' / 'seed0')
    out = tmp_path / f'{weights}.json'
    argv = ['', str(tmp_path / weights), f'--out={out}']
    monkeypatch.setattr(sys, 'argv', argv)
    fresh_completion.main()
    (run,) = json.loads(out.read_text())['runs']
    fresh[weights] = run['fresh']
  assert fresh['none'] != fresh['balanced']


@pytest.mark.slow
def test_completes_a_published_network_once(tmp_path):
  study, out = tmp_path / 'study', tmp_path / 'fresh.json'
  shutil.copytree(ROOT / 'docs/results/bfloat16/digits' / RUN, study / RUN)
  command = [sys.executable, '-m', 'benchmarks.fresh_completion', study, f'--out={out}']

  first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
  written = out.stat().st_mtime_ns
  again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

  (run,) = json.loads(out.read_text())['runs']
  result = json.loads((study / RUN / 'result.json').read_text())
  checkpoint = result['checkpoints'][-1]
  assert (run['setting'], run['seed'], run['epochs']) == ('float32', 1, 64)
  assert run['searched'] == {
    'train': checkpoint['training_accuracy'],
    'validation': checkpoint['validation_accuracy'],
    'test': checkpoint['test_accuracy'],
  }
  assert run['fresh'].keys() == run['searched'].keys()
  assert run['fresh'] != run['searched']
  assert all(0.9 < accuracy <= 1 for accuracy in run['fresh'].values())
  assert first.stdout == again.stdout
  assert out.stat().st_mtime_ns == written
