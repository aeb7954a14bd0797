"""Networks of a published study, completed from fresh weights."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

RUN = 'float32/seed1'


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
