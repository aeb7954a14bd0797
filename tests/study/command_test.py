"""`python -m lamarck_jax.study` as a user starts it."""

import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from lamarck_jax.study import results
from tests.study.conftest import DIGITS, ROOT, TINY


def command(cache, *arguments):
  overrides = [f'--config.{name}={value}' for name, value in TINY.items()]
  return [
    sys.executable,
    '-m',
    'lamarck_jax.study',
    f'--config={DIGITS}',
    f'--xla_cache_dir={cache}',
    *overrides,
    *arguments,
  ]


def run_command(cache, *arguments):
  return subprocess.run(
    command(cache, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=240
  )


def test_one_command_leaves_results_tables_and_figures(
  shared_compilation_cache, tmp_path
):
  result = run_command(
    shared_compilation_cache,
    f'--workdir={tmp_path}',
    '--settings=lamarckian,baseline_1',
    '--num_seeds=1',
    '--num_workers=2',
  )
  assert result.returncode == 0, result.stderr
  assert 'lamarckian/seed0 finished' in result.stderr
  assert 'Test accuracy after completion' in result.stdout
  names = {path.name for path in tmp_path.iterdir()}
  assert {'results.json', 'table.txt', 'table.csv', 'table.tex'} <= names
  assert {'accuracy.png', 'num_blocks.pdf', 'architecture.png'} <= names
  assert 'report.html' in names
  assert (tmp_path / 'lamarckian/seed0/report.html').exists()
  assert len(results.load(tmp_path / 'results.json').settings) == 2

  # A failure is one of the command, whether or not the tables know of the run.
  result = run_command(
    shared_compilation_cache,
    f'--workdir={tmp_path}',
    f'--settings=lamarckian,bad=lamarckian+dataset.name=npz:{tmp_path}/none.npz',
    '--num_seeds=1',
  )
  assert result.returncode == 1
  assert 'failed: bad/seed0: ' in result.stderr

  # What outputs replace is not taken from others; other files may be there.
  others = tmp_path / 'others'
  others.mkdir()
  (others / 'nohup.out').write_text('')
  shutil.copy(tmp_path / 'accuracy.png', others)
  result = run_command(shared_compilation_cache, f'--workdir={others}')
  assert result.returncode == 2
  assert f'got {others} with accuracy.png but no study.json' in result.stderr


@pytest.mark.slow
def test_a_study_that_is_ended_leaves_no_worker_behind(
  shared_compilation_cache, tmp_path
):
  arguments = [f'--workdir={tmp_path}', '--settings=lamarckian', '--num_seeds=2']
  for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
    process = subprocess.Popen(
      command(
        shared_compilation_cache,
        *arguments,
        '--num_workers=2',
        '--config.budget_epochs=400',
      ),
      cwd=ROOT,
      stderr=subprocess.PIPE,
      text=True,
    )
    events = tmp_path / 'lamarckian' / 'seed0' / 'events.jsonl'
    before = events.stat().st_size if events.exists() else 0
    deadline = time.monotonic() + 200
    while not events.exists() or events.stat().st_size == before:
      assert process.poll() is None, process.stderr.read()
      assert time.monotonic() < deadline
      time.sleep(0.05)
    children = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children')
    pids = children.read_text().split()
    assert len(pids) >= 2
    process.send_signal(number)
    process.wait(timeout=60)
    assert process.returncode == status, process.stderr.read()
    process.stderr.close()
    while any(_is_alive(pid) for pid in pids):
      assert time.monotonic() < deadline
      time.sleep(0.05)


def _is_alive(pid: str) -> bool:
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().split()[2] != 'Z'
  except FileNotFoundError:
    return False


@pytest.mark.parametrize(
  ('flags', 'named'),
  [
    (['--num_seeds=0'], 'num_seeds'),
    (['--engine=mpi'], 'engine'),
    (['--settings=lamarckian,baseline_9'], 'baseline_9'),
    (['--config.batch_size=0'], 'config.batch_size'),
    (['--workdir='], 'workdir'),
    (['--config='], 'config'),
  ],
)
def test_bad_flags_are_one_line_and_status_2(tmp_path, flags, named):
  result = run_command('', f'--workdir={tmp_path / "study"}', *flags)
  assert result.returncode == 2, result.stderr
  assert len(result.stderr.strip().splitlines()) == 1, result.stderr
  assert named in result.stderr
  assert not (tmp_path / 'study').exists()
