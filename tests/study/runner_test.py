import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from lamarck_jax.errors import UserError
from lamarck_jax.study import executors, results, runner

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = str(ROOT / 'configs' / 'digits.py')
TINY = {
  'dataset.num_train': 96,
  'dataset.num_validation': 50,
  'budget_epochs': 6,
  'epochs_per_evaluation': 1,
  'search_space.filters': (4, 8),
  'search_space.kernel_sizes': (1, 3),
  'checkpoint_epochs': (3,),
  'completion.epochs': (1,),
  'completion.learning_rates': (1e-3,),
}


def make_tasks(workdir, cache, *, settings=('lamarckian',), num_seeds=2, **overrides):
  return runner.make_tasks(
    DIGITS, {**TINY, **overrides}, settings, num_seeds, workdir, str(cache)
  )


def run_locally(tasks, num_workers=2, **callbacks):
  for task in tasks:
    task.log.parent.mkdir(parents=True, exist_ok=True)
  engine = executors.LocalEngine(num_workers)
  try:
    return runner.run(tasks, engine, **callbacks)
  finally:
    engine.close()


def read_events(task) -> list[dict]:
  path = task.workdir / 'events.jsonl'
  if not path.exists():
    return []
  lines = path.read_bytes().split(b'\n')[:-1]
  return [{**json.loads(line), 'seconds': None} for line in lines]


def workers() -> list[int]:
  """The worker processes of this process."""
  children = pathlib.Path(f'/proc/{os.getpid()}/task/{os.getpid()}/children')
  return [
    int(pid)
    for pid in children.read_text().split()
    if b'spawn_main' in pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()
  ]


@pytest.fixture(scope='module')
def undisturbed(shared_compilation_cache, tmp_path_factory):
  """The tasks of a study of two seeds that ran through, 16 evaluations each."""
  workdir = tmp_path_factory.mktemp('study')
  tasks = make_tasks(workdir, shared_compilation_cache, budget_epochs=16)
  assert run_locally(tasks) == {}
  return tasks


def test_runs_are_ordinary_run_directories_and_are_skipped_once_finished(
  shared_compilation_cache, tmp_path
):
  settings = ('lamarckian', 'baseline_1')
  tasks = make_tasks(tmp_path, shared_compilation_cache, settings=settings, num_seeds=1)
  ended = []
  assert run_locally(tasks, on_end=lambda task, reason: ended.append(task.name)) == {}
  assert sorted(ended) == ['baseline_1/seed0', 'lamarckian/seed0']
  for setting in settings:
    assert (tmp_path / setting / 'seed0' / 'result.json').exists()

  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
  ended.clear()
  assert run_locally(tasks, on_end=lambda task, reason: ended.append(task.name)) == {}
  assert ended == []
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before


def test_a_study_whose_worker_is_killed_ends_as_if_it_had_not_been(
  undisturbed, shared_compilation_cache, tmp_path
):
  tasks = make_tasks(tmp_path, shared_compilation_cache, budget_epochs=16)
  killed = []

  def kill_a_worker():
    if not killed and 3 <= len(read_events(tasks[0])) < 16:
      killed.extend(workers()[:1])
      os.kill(killed[0], signal.SIGKILL)

  stop = threading.Event()

  def watch():
    while not stop.wait(0.02):
      kill_a_worker()

  watcher = threading.Thread(target=watch)
  watcher.start()
  try:
    assert run_locally(tasks, num_workers=2) == {}
  finally:
    stop.set()
    watcher.join()
  assert killed
  assert_same_events(tasks, undisturbed)


def test_a_run_that_fails_is_named_and_the_others_go_on(
  shared_compilation_cache, tmp_path
):
  tasks = make_tasks(tmp_path, shared_compilation_cache)
  tasks[0].workdir.mkdir(parents=True)
  (tasks[0].workdir / 'stray').write_text('')
  failures = run_locally(tasks, num_workers=1)
  assert [task.name for task in failures] == ['lamarckian/seed0']
  assert 'no config.json' in failures[tasks[0]]
  assert tasks[1].finished

  names = {task.name: reason for task, reason in failures.items()}
  results.write_plan(tmp_path, [(task.setting, task.seed) for task in tasks], names)
  setting = results.load(tmp_path).settings[0]
  assert [run.seed for run in setting.runs] == [1]
  assert 'no config.json' in setting.missing[0]


def ray_workers() -> list[int]:
  """The processes that perform runs for Ray on this machine."""
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
      if path.read_bytes().startswith(b'ray::perform'):
        found.append(int(path.parent.name))
  return found


@pytest.fixture
def run_on_ray(monkeypatch):
  """Runs tasks on a Ray cluster; calls a function as soon as a run has events."""
  pytest.importorskip('ray')
  monkeypatch.setenv('PYTHONPATH', str(ROOT))  # For the workers.

  def run(tasks, disturb, address=None):
    for task in tasks:
      task.log.parent.mkdir(parents=True, exist_ok=True)
    disturbed = []

    def on_wait():
      if not disturbed and any(3 <= len(read_events(task)) < 16 for task in tasks):
        disturbed.append(disturb())

    engine = executors.RayEngine(address)
    try:
      assert runner.run(tasks, engine, on_wait=on_wait) == {}
    finally:
      engine.close()
    assert disturbed

  return run


def assert_same_events(tasks, others) -> None:
  for task, other in zip(tasks, others, strict=True):
    assert len(read_events(task)) == 16
    assert read_events(task) == read_events(other)


def test_a_ray_study_whose_worker_is_killed_ends_as_if_it_had_not_been(
  run_on_ray, undisturbed, shared_compilation_cache, tmp_path
):
  tasks = make_tasks(tmp_path, shared_compilation_cache, budget_epochs=16)
  run_on_ray(tasks, lambda: os.kill(ray_workers()[0], signal.SIGKILL))
  assert_same_events(tasks, undisturbed)


def test_a_ray_study_that_loses_a_node_goes_on_with_the_others(
  run_on_ray, undisturbed, shared_compilation_cache, tmp_path
):
  cluster_utils = pytest.importorskip('ray.cluster_utils')
  cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={'num_cpus': 0})
  try:
    lost, _ = [cluster.add_node(num_cpus=1) for _ in range(2)]
    tasks = make_tasks(tmp_path, shared_compilation_cache, budget_epochs=16)
    run_on_ray(
      tasks,
      lambda: cluster.remove_node(lost, allow_graceful=False),
      cluster.address,
    )
  finally:
    cluster.shutdown()
  assert_same_events(tasks, undisturbed)


def test_a_ray_cluster_that_is_not_there_is_refused_at_once():
  pytest.importorskip('ray')
  with pytest.raises(UserError, match='ray_address'):
    executors.RayEngine('127.0.0.1:1')


class _DyingEngine:
  """Every run's process dies at once."""

  num_workers = 1

  def submit(self, task):
    future = executors.Outcome()
    future.set_exception(RuntimeError('died'))
    return future


def test_a_run_whose_worker_dies_again_and_again_is_given_up(
  shared_compilation_cache, tmp_path
):
  tasks = make_tasks(tmp_path, shared_compilation_cache)
  failures = runner.run(tasks, _DyingEngine())
  assert list(failures) == tasks
  assert 'died 3 times without progress' in failures[tasks[0]]


def test_results_are_collected_from_the_run_directories(undisturbed, tmp_path):
  root = undisturbed[0].workdir.parent.parent
  results.write_plan(root, [(task.setting, task.seed) for task in undisturbed])
  collected = results.load(root)
  (setting,) = collected.settings
  assert (collected.dataset, collected.budget_epochs) == ('digits', 16)
  assert collected.checkpoint_epochs == (3, 16)
  assert setting.missing == {}
  for task, run in zip(undisturbed, setting.runs, strict=True):
    events = read_events(task)
    assert run.best_fitness == tuple(event['best_fitness'] for event in events)
    assert run.epochs == tuple(range(1, 17))
    best = max(events, key=lambda event: event['fitness'])
    assert run.best_num_blocks[-1] == len(best['genotype'])
    assert run.flops == sum(event['flops'] for event in events)
    assert run.test_accuracy.keys() == {3, 16}


def test_overrides_hold_for_every_setting_and_seeds_count_from_the_first(tmp_path):
  tasks = make_tasks(tmp_path, '', settings=('lamarckian', 'baseline_1'), seed=5)
  assert [task.name for task in tasks] == [
    'lamarckian/seed5',
    'baseline_1/seed5',
    'lamarckian/seed6',
    'baseline_1/seed6',
  ]
  assert [task.config.inheritance for task in tasks[:2]] == ['lamarckian', 'none']
  assert {task.config.budget_epochs for task in tasks} == {6}
  assert [task.config.seed for task in tasks] == [5, 5, 6, 6]


def test_a_directory_of_another_study_is_refused_before_anything_runs(
  undisturbed, shared_compilation_cache
):
  root = undisturbed[0].workdir.parent.parent
  with pytest.raises(UserError, match='budget_epochs'):
    make_tasks(root, shared_compilation_cache, budget_epochs=17)


def test_each_worker_has_its_own_cores_and_gpus_are_shared_out(monkeypatch):
  monkeypatch.setattr(executors.devices, 'available_cores', lambda: [0, 1, 2, 3, 4, 5])
  monkeypatch.setattr(executors.devices, 'available_gpus', lambda: [])
  shares = [cores for cores, _ in executors.LocalEngine(3)._environments]
  assert shares == [[0, 1], [2, 3], [4, 5]]
  assert executors.LocalEngine().num_workers == 6
  shares = [cores for cores, _ in executors.LocalEngine(8)._environments]
  assert all(len(cores) == 1 for cores in shares)

  monkeypatch.setattr(executors.devices, 'available_gpus', lambda: ['3', '5'])
  assert executors.LocalEngine().num_workers == 2
  environments = [env for _, env in executors.LocalEngine(4)._environments]
  devices = [env['CUDA_VISIBLE_DEVICES'] for env in environments]
  assert devices == ['3', '5', '3', '5']
  fractions = {env['XLA_PYTHON_CLIENT_MEM_FRACTION'] for env in environments}
  assert fractions == {'0.375'}


# ------------------------------------------------------------------------------
# The command
# ------------------------------------------------------------------------------


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
    (['--engine=slurm'], 'engine'),
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
