import concurrent.futures
import contextlib
import json
import os
import pathlib
import signal
from typing import Any

import numpy as np
import pytest

from lamarck_jax.errors import UserError
from lamarck_jax.run_directory import dataset_record, records
from lamarck_jax.runtime import devices
from lamarck_jax.study import executors, results, runner
from tests.study.conftest import ROOT, called_often, make_tasks, run_locally


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
  """The tasks of an uninterrupted study of two seeds, 16 evaluations each."""
  workdir = tmp_path_factory.mktemp('study')
  tasks = make_tasks(workdir, shared_compilation_cache, budget_epochs=16)
  assert run_locally(tasks) == {}
  return tasks


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.skipif(devices.num_cores() < 2, reason='wants two cores')
def test_a_run_after_another_has_the_devices_that_it_has_alone(
  shared_compilation_cache, tmp_path
):
  # Small batches have one JAX device, large ones one per core, which rounds otherwise.
  def events(name, *batch_sizes):
    tasks = []
    for size in batch_sizes:
      tasks += make_tasks(
        tmp_path / name / str(size),
        shared_compilation_cache,
        num_seeds=1,
        **{'batch_size': size, 'dataset.num_train': 512},
      )
    assert not run_locally(tasks, num_workers=1)
    return [{**event, 'crc32': None} for event in read_events(tasks[-1])]

  assert events('alone', 256) == events('after', 8, 256)


def test_a_study_whose_worker_is_killed_has_the_results_of_an_uninterrupted_one(
  undisturbed, shared_compilation_cache, tmp_path
):
  tasks = make_tasks(tmp_path, shared_compilation_cache, budget_epochs=16)
  killed = []

  def kill_a_worker():
    if not killed and 3 <= len(read_events(tasks[0])) < 16:
      killed.extend(workers()[:1])
      os.kill(killed[0], signal.SIGKILL)

  with called_often(kill_a_worker):
    assert run_locally(tasks, num_workers=2) == {}
  assert killed
  assert_same_events(tasks, undisturbed)


def test_a_run_that_fails_is_named_and_the_others_continue(
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


class _GivingUpExecutor:
  """Gives up a worker that does not answer, as Ray gives up a node, while it lives."""

  num_workers = 1

  def __init__(self):
    self._executor = executors.LocalExecutor(2)
    self.attempts: list[executors.Outcome] = []
    self._given_up = executors.Outcome()

  def submit(self, task):
    self.attempts.append(self._executor.submit(task))
    return self.attempts[-1] if len(self.attempts) > 1 else self._given_up

  @property
  def waits(self) -> bool:
    return not self._given_up.done()

  def give_up(self):
    self._given_up.set_exception(RuntimeError('no heartbeat'))

  def close(self):
    self._executor.close()


def test_a_worker_that_was_given_up_and_lives_stops_with_one_line(
  undisturbed, shared_compilation_cache, tmp_path
):
  (task, *_) = make_tasks(tmp_path, shared_compilation_cache, budget_epochs=16)
  task.log.parent.mkdir(parents=True)
  executor = _GivingUpExecutor()
  stopped: list[int] = []

  def stop_the_worker():
    if executor.waits and (count := len(read_events(task))) >= 3:
      if count < 16:
        stopped.extend(workers())
        os.kill(stopped[0], signal.SIGSTOP)
      executor.give_up()  # Also if it was missed, or the runner would wait for ever.

  try:
    with called_often(stop_the_worker):
      assert runner.run([task], executor) == {}
    assert stopped
    assert len(executor.attempts) == 2
    os.kill(stopped[0], signal.SIGCONT)
    line = executor.attempts[0].result(timeout=100)
  finally:
    for process in stopped:
      os.kill(process, signal.SIGCONT)
    executor.close()
  assert 'nothing was written since' in line
  assert 'Traceback' not in task.log.read_text()
  assert_same_events([task], undisturbed[:1])


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

  def run(tasks, disturb, address=None, then=lambda: None):
    for task in tasks:
      task.log.parent.mkdir(parents=True, exist_ok=True)
    disturbed = []

    def look():
      if not disturbed and any(3 <= len(read_events(task)) < 16 for task in tasks):
        disturbed.append(disturb())
      elif disturbed:
        then()

    executor = executors.RayExecutor(address)
    try:
      with called_often(look):
        assert runner.run(tasks, executor) == {}
    finally:
      executor.close()
    assert disturbed

  return run


def assert_same_events(tasks, others) -> None:
  for task, other in zip(tasks, others, strict=True):
    assert len(read_events(task)) == 16
    assert read_events(task) == read_events(other)


def test_a_ray_study_whose_worker_is_killed_has_the_results_of_an_uninterrupted_one(
  run_on_ray, undisturbed, shared_compilation_cache, tmp_path
):
  tasks = make_tasks(tmp_path, shared_compilation_cache, budget_epochs=16)
  run_on_ray(tasks, lambda: os.kill(ray_workers()[0], signal.SIGKILL))
  assert_same_events(tasks, undisturbed)


def test_a_ray_study_that_loses_a_node_continues_on_the_others(
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


@pytest.mark.slow
def test_a_ray_node_that_was_given_up_and_lives_writes_nothing_more(
  run_on_ray, undisturbed, shared_compilation_cache, tmp_path
):
  cluster_utils = pytest.importorskip('ray.cluster_utils')
  cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={'num_cpus': 0})
  (task, *_) = make_tasks(tmp_path, shared_compilation_cache, budget_epochs=16)
  stopped: list[int] = []

  def give_up():
    (worker,) = ray_workers()
    os.kill(worker, signal.SIGSTOP)
    stopped.append(worker)
    status = pathlib.Path(f'/proc/{worker}/status').read_text()
    parent = int(status.partition('PPid:')[2].split()[0])
    (node,) = [
      node
      for node in nodes
      if parent in [info.process.pid for info in node.all_processes['raylet']]
    ]
    cluster.remove_node(node, allow_graceful=False)
    return True

  try:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    run_on_ray([task], give_up, cluster.address, lambda: _continue(task, stopped))
  finally:
    for worker in stopped:
      with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)
    cluster.shutdown()
  assert_same_events([task], undisturbed[:1])


def _continue(task, stopped) -> None:
  """Continues stopped workers once the next attempt has recorded more."""
  number = len(read_events(task))
  if stopped and number >= 7:
    with contextlib.suppress(ProcessLookupError):
      os.kill(stopped[0], signal.SIGCONT)


class _DyingExecutor:
  """Stands for workers that die at once, whatever they run."""

  num_workers = 1

  def submit(self, task):
    future = executors.Outcome()
    future.set_exception(RuntimeError('died'))
    return future


def test_a_run_whose_worker_dies_repeatedly_without_progress_has_failed(
  shared_compilation_cache, tmp_path
):
  tasks = make_tasks(tmp_path, shared_compilation_cache)
  failures = runner.run(tasks, _DyingExecutor())
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


def test_overrides_apply_to_every_setting_and_seeds_count_up(tmp_path):
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


class Recorder:
  """An executor that notes the runs that it gets."""

  num_workers = 1

  def __init__(self) -> None:
    self.names: list[str] = []

  def submit(self, task: executors.Task) -> executors.Outcome:
    self.names.append(task.name)
    future: executors.Outcome = concurrent.futures.Future()
    future.set_result(None)
    return future

  def close(self) -> None:
    pass


def test_own_images_lie_at_one_place_for_all_workers_and_are_compared_if_moved(
  tmp_path, monkeypatch
):
  """A worker may have another current directory, and a finished run is not read."""
  monkeypatch.chdir(tmp_path)
  labels = np.arange(60) % 3
  np.savez('a.npz', x_train=np.zeros((60, 8, 8), np.uint8), y_train=labels)
  (tmp_path / 'b.npz').write_bytes((tmp_path / 'a.npz').read_bytes())

  def make(name: str) -> list[executors.Task]:
    overrides = {'dataset.name': f'npz:{name}', 'dataset.num_train': 32}
    config = str(ROOT / 'configs' / 'digits.py')
    overrides |= {'dataset.num_validation': 9, 'batch_size': 32}
    return runner.make_tasks(config, overrides, ['lamarckian'], 1, tmp_path / 'study')

  (task,) = make('a.npz')
  assert task.config.dataset.name == f'npz:{tmp_path}/a.npz'
  _, record = dataset_record.load(task.config.dataset, task.workdir)
  directory = records.RunDirectory(task.workdir, task.config.to_dict())
  directory.write_dataset(record)
  best = {'genotype': [[4, 3, 1]]}
  directory.write_result({'flops': 1, 'seconds': 1, 'best': best, 'checkpoints': []})
  for name, submitted in (('./a.npz', []), ('b.npz', ['lamarckian/seed0'])):
    recorder: Any = Recorder()
    assert runner.run(make(name), recorder) == {}
    assert recorder.names == submitted


def test_a_variant_is_a_setting_with_values_of_its_own(tmp_path):
  tasks = make_tasks(
    tmp_path,
    '',
    settings=(
      'baseline_1',
      'slow=lamarckian+learning_rate=3e-4+completion.enabled=False',
      'tiny=baseline_1+search_space.filters=(4,6)+max_flops=5',
    ),
    num_seeds=1,
    learning_rate=0.01,
  )
  assert [task.name for task in tasks] == [
    'baseline_1/seed0',
    'slow/seed0',
    'tiny/seed0',
  ]
  plain, slow, tiny = (task.config for task in tasks)
  assert (slow.setting, slow.inheritance) == ('slow', 'lamarckian')
  assert (tiny.setting, tiny.inheritance) == ('tiny', 'none')
  # Its own values take precedence over those for all settings.
  rates = [config.learning_rate for config in (plain, slow, tiny)]
  assert rates == [0.01, 3e-4, 0.01]
  enabled = [config.completion.enabled for config in (plain, slow, tiny)]
  assert enabled == [True, False, True]
  assert (tiny.search_space.filters, tiny.max_flops) == ((4, 6), 5)
  assert plain.search_space.filters == (4, 8)


@pytest.mark.parametrize(
  ('text', 'wanted'),
  [
    ('lamarckian+learning_rate=1', 'want SETTING or NAME=SETTING'),
    ('a/b=lamarckian+learning_rate=1', 'letters, digits'),
    ('=lamarckian+learning_rate=1', 'letters, digits'),
    ('slow=lamarckian', 'want SETTING or NAME=SETTING'),
    ('baseline_1=lamarckian+learning_rate=1', 'not a setting'),
    ('slow=lamarckian+learning_rat=1', "got 'learning_rat=1'"),
    ('slow=lamarckian+learning_rate', 'FIELD=VALUE'),
    ('slow=lamarckian+learning_rate=fast', 'learning_rate'),
    ('slow=baseline_9+learning_rate=1', 'baseline_9'),
  ],
)
def test_a_variant_that_is_none_is_refused(tmp_path, text, wanted):
  with pytest.raises(UserError, match='got') as error:
    make_tasks(tmp_path, '', settings=('baseline_1', text), num_seeds=1)
  assert wanted in str(error.value)


def test_a_study_starts_from_a_network_in_every_setting(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=r'config\.init_from: got .*nowhere'):
    make_tasks(tmp_path, '', settings=('lamarckian',), init_from='nowhere')
  tasks = make_tasks(
    tmp_path,
    '',
    settings=('lamarckian', 'baseline_1', 'random_search', 'w=net2net+init_from=8c1'),
    num_seeds=1,
    init_from='4c3 8c3s2',
  )
  starts = [task.config.init_from for task in tasks]
  assert starts == ['4c3 8c3s2', '4c3 8c3s2', '4c3 8c3s2', '8c1']


def test_two_settings_of_one_name_are_refused(tmp_path):
  with pytest.raises(UserError, match="got 'lamarckian' twice"):
    make_tasks(tmp_path, '', settings=('lamarckian', 'lamarckian'), num_seeds=1)


def test_a_directory_of_another_study_is_refused_before_anything_runs(
  undisturbed, shared_compilation_cache
):
  root = undisturbed[0].workdir.parent.parent
  with pytest.raises(UserError, match='budget_epochs'):
    make_tasks(root, shared_compilation_cache, budget_epochs=17)
