"""Tests of run_evolution.py as users run it, in a process of its own."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.conftest import ROOT, TINY_FLAGS, read_events, start_search

# Values of a tuple given twice are joined.
WITHOUT_CHECKPOINTS = [flag for flag in TINY_FLAGS if 'checkpoint_epochs' not in flag]

# One takes some ten milliseconds: there must be many left where a search is stopped.
FORTY = '--config.budget_epochs=40'


@pytest.fixture(scope='module')
def command(shared_compilation_cache):
  return [
    sys.executable,
    str(ROOT / 'run_evolution.py'),
    f'--xla_cache_dir={shared_compilation_cache}',
  ]


def run(command, *flags, cwd=ROOT):
  return subprocess.run(
    [*command, *flags], cwd=cwd, capture_output=True, text=True, timeout=240
  )


def start(command, *flags, cwd=ROOT):
  return subprocess.Popen(
    [*command, *TINY_FLAGS, *flags],
    cwd=cwd,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.fixture(scope='module')
def finished(command, tmp_path_factory):
  """Directory and process of a search of 40 evaluations without interruption."""
  workdir = tmp_path_factory.mktemp('finished') / 'run'
  result = run(command, *TINY_FLAGS, FORTY, f'--workdir={workdir}')
  assert result.returncode == 0, result.stderr
  return workdir, result


def test_a_search_prints_progress_and_its_result(finished):
  workdir, result = finished
  lines = [line for line in result.stderr.splitlines() if line.startswith('epoch ')]
  assert len(lines) == 40
  assert lines[-1].startswith('epoch 40/40  evaluation 39')
  assert 'best network' in result.stdout
  assert 'after 3 epochs' in result.stdout
  assert 'after 40 epochs' in result.stdout
  assert f'report              {workdir / "report.html"}' in result.stdout
  assert (workdir / 'report.html').exists()


def test_the_default_directory_is_named_by_config_setting_and_seed(command, tmp_path):
  result = run(
    command,
    f'--config={ROOT / "configs" / "digits.py"}:baseline_1',
    '--config.seed=3',
    *WITHOUT_CHECKPOINTS,
    '--config.budget_epochs=1',
    cwd=tmp_path,
  )
  assert result.returncode == 0, result.stderr
  assert len(read_events(tmp_path / 'runs' / 'digits-baseline_1-seed3')) == 1


def test_the_default_directory_of_own_data_has_its_name(command, tmp_path):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (200, 8, 8)).astype(np.uint8)
  np.savez(tmp_path / 'clothes.npz', x_train=images, y_train=np.arange(200) % 2)
  result = run(
    command,
    *WITHOUT_CHECKPOINTS,
    '--config.dataset.name=npz:clothes.npz',
    '--config.budget_epochs=1',
    cwd=tmp_path,
  )
  assert result.returncode == 0, result.stderr
  assert result.stderr.startswith('npz:clothes.npz: ')
  assert (tmp_path / 'runs' / 'clothes-lamarckian-seed0' / 'result.json').exists()


def test_help_answers_quickly(command):
  start = time.monotonic()
  result = run(command, '--help')
  assert time.monotonic() - start < 3
  assert '--config' in result.stdout
  assert '--workdir' in result.stdout


@pytest.mark.parametrize(
  ('flags', 'named'),
  [
    (['--config.seed=abc'], 'seed'),
    (['--config.seed=1.5'], 'seed'),
    (['--config.seeed=1'], 'seeed'),
    (['--config.batch_size=0'], 'config.batch_size'),
    (['--config.inheritance=some'], 'config.inheritance'),
    (['--config.niching=3'], 'niching'),
    (['--config=nowhere.py'], 'nowhere.py'),
    (['--config=configs/digits.py:baseline_3'], 'baseline_3'),
    (['--unknown=1'], 'unknown'),
    (['stray'], 'stray'),
  ],
)
def test_bad_flags_are_one_line_and_status_2(command, tmp_path, flags, named):
  result = run(command, *flags, f'--workdir={tmp_path / "run"}')
  assert result.returncode == 2
  assert len(result.stderr.strip().splitlines()) == 1
  assert named in result.stderr
  assert not (tmp_path / 'run').exists()


def test_a_killed_search_is_resumed_with_the_same_events(
  shared_compilation_cache, command, finished, tmp_path
):
  workdir = tmp_path / 'run'
  for count in (2, 9):
    process = start_search(shared_compilation_cache, workdir, count, FORTY)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  assert len(read_events(workdir)) < 40
  result = run(command, *TINY_FLAGS, FORTY, f'--workdir={workdir}')
  assert result.returncode == 0, result.stderr
  assert read_events(workdir) == read_events(finished[0])


def test_control_c_ends_without_a_traceback_and_says_how_to_resume(
  shared_compilation_cache, command, finished, tmp_path
):
  workdir = tmp_path / 'run'
  process = start_search(shared_compilation_cache, workdir, 3, FORTY)
  process.send_signal(signal.SIGINT)
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == 130
  assert 'run the same command again to resume' in stderr
  assert 'Traceback' not in stderr
  result = run(command, *TINY_FLAGS, FORTY, f'--workdir={workdir}')
  assert result.returncode == 0, result.stderr
  assert read_events(workdir) == read_events(finished[0])


@pytest.mark.parametrize('seconds', [0, 0.3, 1])
def test_control_c_while_a_program_starts_ends_without_a_traceback(
  command, tmp_path, seconds
):
  flags = ['--config.budget_epochs=5000', '--workdir=run']
  process = start(command, *flags, cwd=tmp_path)
  maps = pathlib.Path(f'/proc/{process.pid}/maps')
  deadline = time.monotonic() + 60
  while 'jaxlib' not in maps.read_text():  # It is importing JAX.
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.01)
  time.sleep(seconds)
  process.send_signal(signal.SIGINT)
  _, stderr = process.communicate(timeout=60)
  assert process.returncode in (-signal.SIGINT, 130)
  assert 'Traceback' not in stderr


def test_the_same_command_reports_a_finished_run_at_once(command, finished):
  workdir, _ = finished
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
  result = run(command, *TINY_FLAGS, FORTY, f'--workdir={workdir}')
  assert result.returncode == 0
  assert 'best network' in result.stdout
  said = f'{workdir} holds a finished search; its data were not compared\n'
  assert result.stderr == said
  assert {path: path.stat().st_mtime_ns for path in workdir.rglob('*')} == before


def test_a_directory_with_another_config_is_refused(command, finished):
  workdir, _ = finished
  result = run(command, *TINY_FLAGS, '--config.seed=9', f'--workdir={workdir}')
  assert result.returncode == 2
  assert 'seed' in result.stderr
  assert 'budget_epochs' in result.stderr
  assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_run_killed_within_epochs_of_augmented_training_ends_the_same(
  shared_compilation_cache, command, tmp_path
):
  flags = [
    '--config.augmentation.flip=true',
    '--config.augmentation.shift=2',
    '--config.inheritance_shrink=0.8',
    '--config.completion.shrink=0.8',
    '--config.dataset.num_train=1000',
    '--config.batch_size=2',  # An epoch takes a tenth of a second or more.
    '--config.budget_epochs=6',
    # A phase after that of TINY_FLAGS, long enough for a machine that gets faster.
    '--config.completion.epochs=(16,)',
    '--config.completion.learning_rates=(1e-3,)',
  ]
  undisturbed, workdir = tmp_path / 'undisturbed', tmp_path / 'run'
  result = run(command, *TINY_FLAGS, *flags, f'--workdir={undisturbed}')
  assert result.returncode == 0, result.stderr
  lines = (undisturbed / 'events.jsonl').read_text().splitlines()
  epoch = min(json.loads(line)['seconds']['train'] for line in lines)

  process = start_search(shared_compilation_cache, workdir, 1, *flags)
  time.sleep(epoch / 4)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert len(read_events(workdir)) < 6
  process = start_search(shared_compilation_cache, workdir, 6, *flags)
  deadline = time.monotonic() + 60
  while not any((workdir / 'weights').glob('completing_*')):
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.02)
  time.sleep(epoch / 4)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert not any((workdir / 'completed').iterdir())

  result = run(command, *TINY_FLAGS, *flags, f'--workdir={workdir}')
  assert result.returncode == 0, result.stderr
  assert read_events(workdir) == read_events(undisturbed)
  for path in (undisturbed / 'weights').glob('*.safetensors'):
    assert (workdir / 'weights' / path.name).read_bytes() == path.read_bytes()
