"""The entry point as a user starts it: a process of its own."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
TINY = [
  '--config.dataset.num_train=96',
  '--config.dataset.num_validation=50',
  '--config.budget_epochs=6',
  '--config.epochs_per_evaluation=1',
  '--config.search_space.filters=(4,8)',
  '--config.search_space.kernel_sizes=(1,3)',
  '--config.checkpoint_epochs=(3,)',
  '--config.completion.epochs=(1,)',
  '--config.completion.learning_rates=(1e-3,)',
]


@pytest.fixture
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
    [*command, *TINY, *flags],
    cwd=cwd,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def read_events(workdir) -> list[dict]:
  path = pathlib.Path(workdir) / 'events.jsonl'
  if not path.exists():
    return []
  lines = path.read_text().splitlines(keepends=True)
  return [
    {**json.loads(line), 'seconds': None} for line in lines if line.endswith('\n')
  ]


def start_and_wait_for_events(command, workdir, count):
  """Starts a search and returns its process once so many events are recorded."""
  process = start(command, '--config.budget_epochs=12', f'--workdir={workdir}')
  deadline = time.monotonic() + 200
  while len(read_events(workdir)) < count:
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.02)
  return process


@pytest.fixture(scope='module')
def undisturbed_run(shared_compilation_cache, tmp_path_factory):
  """Directory and process of a search of 12 evaluations that ran through."""
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  result = run(
    [
      sys.executable,
      str(ROOT / 'run_evolution.py'),
      f'--xla_cache_dir={shared_compilation_cache}',
    ],
    *TINY,
    '--config.budget_epochs=12',
    f'--workdir={workdir}',
  )
  assert result.returncode == 0, result.stderr
  return workdir, result


@pytest.fixture
def undisturbed(undisturbed_run):
  """Directory of a search of 12 evaluations that ran through."""
  return undisturbed_run[0]


def test_a_search_prints_progress_and_what_it_found(undisturbed_run):
  workdir, result = undisturbed_run
  lines = [line for line in result.stderr.splitlines() if line.startswith('epoch ')]
  assert len(lines) == 12
  assert lines[-1].startswith('epoch 12/12  evaluation 11')
  assert 'best network' in result.stdout
  assert 'after 3 epochs' in result.stdout
  assert 'after 12 epochs' in result.stdout
  assert f'report              {workdir / "report.html"}' in result.stdout
  assert (workdir / 'report.html').exists()


def test_the_default_directory_is_named_by_config_setting_and_seed(command, tmp_path):
  result = run(
    command,
    f'--config={ROOT / "configs" / "digits.py"}:baseline_1',
    '--config.seed=3',
    *TINY,
    '--config.budget_epochs=1',
    '--config.completion.enabled=false',
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
    *TINY,
    '--config.dataset.name=npz:clothes.npz',
    '--config.budget_epochs=1',
    '--config.completion.enabled=false',
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


def test_a_search_killed_at_any_moment_goes_on_as_if_it_had_not_been(
  command, undisturbed, tmp_path
):
  workdir = tmp_path / 'run'
  for count in (2, 9):
    process = start_and_wait_for_events(command, workdir, count)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  assert len(read_events(workdir)) < 12
  result = run(command, *TINY, '--config.budget_epochs=12', f'--workdir={workdir}')
  assert result.returncode == 0, result.stderr
  assert read_events(workdir) == read_events(undisturbed)


def test_control_c_stops_cleanly_and_says_how_to_go_on(command, undisturbed, tmp_path):
  workdir = tmp_path / 'run'
  process = start_and_wait_for_events(command, workdir, 3)
  process.send_signal(signal.SIGINT)
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == 130
  assert 'the same command again' in stderr
  assert 'Traceback' not in stderr
  result = run(command, *TINY, '--config.budget_epochs=12', f'--workdir={workdir}')
  assert result.returncode == 0, result.stderr
  assert read_events(workdir) == read_events(undisturbed)


@pytest.mark.parametrize('seconds', [0, 0.3, 1])
def test_control_c_while_a_program_starts_leaves_no_trace(command, tmp_path, seconds):
  flags = ['--config.budget_epochs=5000', '--workdir=run']
  process = start(command, *flags, cwd=tmp_path)
  maps = pathlib.Path(f'/proc/{process.pid}/maps')
  deadline = time.monotonic() + 60
  while 'jaxlib' not in maps.read_text():  # It has begun to import JAX.
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.01)
  time.sleep(seconds)
  process.send_signal(signal.SIGINT)
  _, stderr = process.communicate(timeout=60)
  assert process.returncode in (-signal.SIGINT, 130)
  assert 'Traceback' not in stderr


def test_the_same_command_reports_a_finished_run_at_once(command, undisturbed):
  before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob('*')}
  result = run(command, *TINY, '--config.budget_epochs=12', f'--workdir={undisturbed}')
  assert result.returncode == 0
  assert 'best network' in result.stdout
  assert 'epoch ' not in result.stderr
  assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob('*')} == before


def test_a_directory_with_another_config_is_refused(command, undisturbed):
  result = run(command, *TINY, '--config.seed=9', f'--workdir={undisturbed}')
  assert result.returncode == 2
  assert 'seed' in result.stderr
  assert 'budget_epochs' in result.stderr
  assert len(result.stderr.strip().splitlines()) == 1
