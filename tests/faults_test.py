"""A fault does not end a search, or ends it so that it can be resumed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest

from lamarck_jax import config as config_lib
from lamarck_jax import initialisation, model, net2net, search, training
from lamarck_jax.errors import StorageError, UserError
from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import records
from tests.conftest import (
  ROOT,
  TINY_FLAGS,
  read_events,
  run_program,
  run_until,
  start_search,
)

STORED = ROOT / 'tests' / 'testdata' / 'run_format_2'


# ------------------------------------------------------------------------------
# Bad candidates
# ------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('limit', 'value'), [('max_parameters', 300), ('max_flops', 40000)]
)
def test_a_candidate_above_a_limit_is_recorded_and_is_no_parent(
  tiny_config, tmp_path, undisturbed, limit, value
):
  tiny_config[limit] = value
  tiny_config.completion.enabled = False
  events = read_events(undisturbed(tiny_config)[0])
  failed = [event for event in events if event['failure']]
  assert 0 < len(failed) < len(events) == 8
  for event in failed:
    assert f'is above {limit}, {value}' in event['failure']
    assert event['fitness'] == event['flops'] == 0
    assert not event['accepted']
  numbers = {event['evaluation'] for event in failed}
  assert numbers.isdisjoint(event['parent'] for event in events)
  assert [event['epochs_used'] for event in events] == list(range(1, 9))

  run_until(tiny_config, tmp_path / 'run', failed[0]['evaluation'])
  search.run(tiny_config, tmp_path / 'run')
  assert read_events(tmp_path / 'run') == events


def test_a_candidate_that_takes_too_long_is_recorded(tiny_config, tmp_path):
  tiny_config.max_seconds_per_evaluation = 1e-9
  with pytest.raises(UserError, match='got 8 networks that could not be evaluated'):
    search.run(tiny_config, tmp_path)
  events = read_events(tmp_path)
  assert len(events) == 8
  assert all('max_seconds_per_evaluation' in event['failure'] for event in events)
  assert all(event['flops'] > 0 for event in events)  # One epoch was trained.


def test_a_loss_that_is_not_finite_is_recorded(tiny_config, tmp_path):
  tiny_config.learning_rate = 1e38
  with pytest.raises(UserError, match='the loss of epoch 1 is'):
    search.run(tiny_config, tmp_path)
  assert all(event['fitness'] == 0 for event in read_events(tmp_path))


def test_weights_that_a_last_step_made_infinite_are_recorded_and_not_inherited(
  tiny_config, tmp_path, monkeypatch
):
  train, calls = training.Trainer.train, []

  def diverge(self, key, genotype, variables, *args):
    variables = train(self, key, genotype, variables, *args)
    calls.append(genotype)
    if len(calls) != 2:
      return variables
    params = {**variables['params']}
    name = sorted(params)[0]
    params[name] = jax.tree.map(lambda leaf: leaf * np.inf, params[name])
    return {**variables, 'params': params}

  monkeypatch.setattr(training.Trainer, 'train', diverge)
  tiny_config.completion.enabled = False
  search.run(tiny_config, tmp_path)
  events = read_events(tmp_path)
  assert [bool(event['failure']) for event in events] == [n == 1 for n in range(8)]
  assert 'is not finite after training' in events[1]['failure']
  assert all(event['parent'] != 1 for event in events)


def test_a_completion_that_diverges_is_warned_of(tiny_config, tmp_path, caplog):
  tiny_config.budget_epochs = 1
  tiny_config.checkpoint_epochs = ()
  tiny_config.completion.learning_rates = (1e38,) * len(tiny_config.completion.epochs)
  search.run(tiny_config, tmp_path)
  assert 'completion of evaluation 0: ' in caplog.text
  assert 'is not finite, so its accuracies are a guess' in caplog.text


def test_a_fit_that_is_impossible_is_recorded(tiny_config, tmp_path, monkeypatch):
  inherit = initialisation.initial_variables

  def fail(key, offspring, parent_variables, *args):
    if parent_variables:
      infinite = net2net.Moments(np.zeros(2), np.full((2, 2), np.inf), np.zeros((2, 2)))
      net2net.least_squares(infinite, infinite.mean, infinite.covariance)
    return inherit(key, offspring, parent_variables, *args)

  monkeypatch.setattr(initialisation, 'initial_variables', fail)
  tiny_config.completion.enabled = False
  search.run(tiny_config, tmp_path)
  failures = {event['failure'] for event in read_events(tmp_path)}
  assert failures == {None, 'activations are too large for a fit of least squares'}


@pytest.mark.slow
def test_a_search_survives_candidates_that_run_out_of_memory(tmp_path):
  """The limit is real, and a single activation of 60,000 filters exceeds it.

  Activations that nearly reach it would leave too little memory for the libraries
  that XLA calls, which then abort the process.
  """
  program = textwrap.dedent("""
    import resource, sys
    import jax
    from lamarck_jax.runtime import allocator
    from lamarck_jax import config, search
    allocator.keep_freed_memory()
    config = config.get_config()
    config.dataset.name = 'digits'
    config.dataset.num_train = 96
    config.dataset.num_validation = 50
    config.budget_epochs = 5
    config.epochs_per_evaluation = 1
    config.batch_size = 96
    config.search_space.filters = (4, 60000)
    config.search_space.kernel_sizes = (1, 3)
    config.completion.enabled = False
    jax.numpy.zeros(3).block_until_ready()
    pages = int(open('/proc/self/statm').read().split()[0])
    limit = pages * resource.getpagesize() + 1000 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    search.run(config, sys.argv[1])
  """)
  process = subprocess.run(
    [sys.executable, '-c', program, str(tmp_path / 'run')],
    cwd=ROOT,
    check=False,
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert process.returncode == 0, process.stderr
  events = read_events(tmp_path / 'run')
  assert len(events) == 5
  failures = [event['failure'] for event in events if event['failure']]
  # XLA names the cause; a library that it calls reports only the failure.
  out_of_memory = ('ut of memory', 'llocat', 'YNNPACK operation failed')
  assert any(text in reason for reason in failures for text in out_of_memory), failures
  assert len(failures) < 5
  assert records.read_result(tmp_path / 'run')['best']['fitness'] > 0


@pytest.mark.slow
def test_data_that_do_not_fit_the_memory_are_named_with_their_size():
  program = textwrap.dedent("""
    import pathlib, resource
    import jax, numpy as np
    from lamarck_jax import config, errors, trial
    from lamarck_jax.data import datasets
    images = np.zeros((25_600, 64, 64, 3), np.uint8)
    labels = np.arange(25_600) % 2
    train = datasets.Split(images, labels)
    few = datasets.Split(images[:8], labels[:8])
    data = datasets.Dataset('large', train, few, few, ('a', 'b'))
    jax.devices()
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
    limit = pages * resource.getpagesize() + 200 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
      trial.make_trainer(config.get_config(), data)
    except errors.UserError as error:
      print(error)
  """)
  assert run_program(program).startswith('dataset: got 300 MiB of images, want what')


def test_a_device_that_has_failed_ends_the_search(tiny_config, tmp_path, monkeypatch):
  """Otherwise every later candidate would be recorded as failed."""
  run_until(tiny_config, tmp_path / 'run', 2)

  def fail(*_args, **_kwargs):
    raise MemoryError('lost')

  monkeypatch.setattr(training.Trainer, 'train', fail)
  monkeypatch.setattr(training.Trainer, 'check_device', fail)
  with pytest.raises(MemoryError):
    search.run(tiny_config, tmp_path / 'run')
  assert len(read_events(tmp_path / 'run')) == 3


# ------------------------------------------------------------------------------
# Damaged and full directories
# ------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'how', ['flipped', 'cut', 'gone', 'of another network', 'of another seed']
)
def test_a_search_with_damaged_weights_repeats_evaluations_to_the_same_result(
  tiny_config, tmp_path, undisturbed, how, caplog
):
  workdir = tmp_path / 'run'
  run_until(tiny_config, workdir, 6)
  path = max((workdir / 'weights').iterdir())
  content = bytearray(path.read_bytes())
  if how == 'flipped':
    content[-1] ^= 1
    path.write_bytes(content)
  elif how == 'cut':
    path.write_bytes(content[:-40])
  elif how == 'gone':
    path.unlink()
  else:
    number = int(path.stem)
    genotype = Genotype.from_json(records.read_events(workdir)[number])
    if how == 'of another network':
      genotype = Genotype.parse('4c5 4c5 4c5')
    key = search.random_key(0, 0, search.Purpose.TRAINING)
    other = model.init_variables(key, genotype, 1, 10)
    directory = records.RunDirectory(workdir, tiny_config.to_dict())
    directory.write_weights(number, other)
  damaged = path.read_bytes() if path.exists() else None
  search.run(tiny_config, workdir)
  assert 'going back from evaluation 7' in caplog.text
  kept = workdir / 'cut-1' / 'weights' / path.name
  assert (kept.read_bytes() if kept.exists() else None) == damaged
  assert read_events(workdir) == read_events(undisturbed(tiny_config)[0])


def test_a_search_on_a_full_disk_is_resumed_once_there_is_room(
  tiny_config, tmp_path, undisturbed, monkeypatch
):
  workdir = tmp_path / 'run'
  write, count = os.write, 0

  def full(descriptor, content):
    nonlocal count
    count += 1
    if count > 9:
      raise OSError(28, 'No space left on device')
    return write(descriptor, content)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'write', full)
    with pytest.raises(StorageError, match='No space left on device'):
      search.run(tiny_config, workdir)
  recorded = read_events(workdir)
  assert 0 < len(recorded) < 8
  search.run(tiny_config, workdir)
  assert read_events(workdir) == read_events(undisturbed(tiny_config)[0])
  assert read_events(workdir)[: len(recorded)] == recorded


def test_a_directory_that_vanishes_is_not_said_to_be_kept(tiny_config, tmp_path):
  workdir = tmp_path / 'run'
  with pytest.raises(StorageError, match=r'got .*run deleted, want'):
    search.run(tiny_config, workdir, lambda event: shutil.rmtree(workdir))


def test_a_run_directory_stored_in_the_repository_loads_and_resumes(tmp_path):
  shutil.copytree(STORED, tmp_path / 'run')
  (tmp_path / 'run' / 'result.json').unlink()
  path = tmp_path / 'run' / 'events.jsonl'
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b''.join(lines[:-1]) + lines[-1][:20])

  config = config_lib.get_config()
  with config.unlocked():
    config.update(records.read_config(STORED))
  result = search.run(config, tmp_path / 'run')
  expected = records.read_result(STORED)
  assert result['num_evaluations'] == expected['num_evaluations'] == 4
  assert result['best']['genotype'] == expected['best']['genotype']
  # It keeps its version, which has no digests.
  assert (
    json.loads((tmp_path / 'run' / 'config.json').read_text())['format_version'] == 2
  )
  assert all(
    event.keys()
    == read_events(STORED)[0].keys()
    | {'fitness_at_birth', 'accuracy', 'balanced_accuracy'}
    for event in read_events(tmp_path / 'run')[3:]
  )


# ------------------------------------------------------------------------------
# Processes
# ------------------------------------------------------------------------------

LONG = '--config.budget_epochs=1000'


def test_sigterm_ends_within_the_grace_of_a_scheduler_and_loses_nothing(
  shared_compilation_cache, tmp_path
):
  """Slurm sends SIGTERM, and SIGKILL some ten seconds later."""
  process = start_search(shared_compilation_cache, tmp_path / 'run', 3, LONG)
  process.send_signal(signal.SIGTERM)
  _, stderr = process.communicate(timeout=10)
  assert process.returncode == 143
  assert 'run the same command again to resume' in stderr
  assert 'Traceback' not in stderr
  before = read_events(tmp_path / 'run')
  process = start_search(shared_compilation_cache, tmp_path / 'run', 3, LONG)
  process.kill()
  process.communicate()
  assert read_events(tmp_path / 'run')[: len(before)] == before


@pytest.mark.parametrize(('grace', 'num_signals'), [(1, 1), (600, 2)])
def test_a_signal_during_a_long_native_call_ends_the_process(grace, num_signals):
  """An epoch of a large network is such a call, and may take longer than the grace."""
  program = textwrap.dedent(f"""
    import ctypes
    from lamarck_jax.runtime import signals
    signals.GRACE_SECONDS = {grace}
    signals.install()
    print('ready', flush=True)
    mutex = ctypes.create_string_buffer(64)
    while True:  # The second time it never returns.
      ctypes.CDLL(None).pthread_mutex_lock(mutex)
  """)
  process = subprocess.Popen(
    [sys.executable, '-c', program], cwd=ROOT, stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == 'ready\n'
  for _ in range(num_signals):
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
  process.wait(timeout=30)
  process.stdout.close()
  assert process.returncode == 143


def test_a_second_process_in_a_directory_is_refused_and_told_of_the_first(
  shared_compilation_cache, tmp_path
):
  process = start_search(shared_compilation_cache, tmp_path / 'run', 3, LONG)
  second = subprocess.run(
    [
      sys.executable,
      str(ROOT / 'run_evolution.py'),
      f'--workdir={tmp_path / "run"}',
      *TINY_FLAGS,
      LONG,
    ],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert process.poll() is None
  process.kill()
  process.communicate()
  assert second.returncode == 2
  assert len(second.stderr.strip().splitlines()) == 1
  assert f'process {process.pid} on {socket.gethostname()}' in second.stderr
  # The killed process has left its lock, which must not stop the next one.
  process = start_search(shared_compilation_cache, tmp_path / 'run', 3, LONG)
  process.kill()
  process.communicate()


def test_the_events_of_a_stopped_run_are_complete_json_lines(tiny_config, tmp_path):
  run_until(tiny_config, tmp_path, 1)
  lines = (tmp_path / 'events.jsonl').read_text().splitlines()
  assert [json.loads(line)['evaluation'] for line in lines] == [0, 1]
