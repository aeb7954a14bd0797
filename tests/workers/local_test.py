"""Searches with worker processes of this machine, which are killed."""

import os
import pathlib
import signal
import subprocess
import textwrap
import time

import pytest

from tests.conftest import ROOT, read_events, run_program, start_search
from tests.search_test import assert_same_run
from tests.workers.conftest import FLAGS, children

THIRTY = '--config.budget_epochs=30'
TWO_WORKERS = '--num_workers=2'


@pytest.mark.slow
def test_a_population_whose_workers_are_killed_is_that_of_one_process(
  shared_compilation_cache, tmp_path
):
  program = textwrap.dedent("""
    import multiprocessing, pathlib, sys
    from lamarck_jax import search
    from lamarck_jax.runtime import process
    from lamarck_jax.workers.local import LocalEngine
    from lamarck_jax.workers.pool import Workers
    from tests.workers.conftest import make_population_config

    cache, path = sys.argv[1], pathlib.Path(sys.argv[2])
    config = make_population_config()
    process.configure(config, cache)
    search.run(config, path / 'one')

    def kill_a_worker(event):
      if event['evaluation'] == 2:
        killed.append(multiprocessing.active_children()[-1])
        killed[-1].kill()

    class Engine(LocalEngine):
      def start(self, *arguments):
        worker = super().start(*arguments)
        evaluate = worker.evaluate

        def kill_all(candidate):
          evaluate(candidate)
          if candidate.evaluation == 0 and not killed:
            killed.extend(multiprocessing.active_children())
            for process in killed:
              process.kill()

        worker.evaluate = kill_all
        return worker

    killed = []
    search.run(config, path / 'two', kill_a_worker, Workers(Engine(2, cache)))
    assert [process.exitcode for process in killed] == [-9] * 3
    assert not multiprocessing.active_children()
  """)
  path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
  run_program(program, str(shared_compilation_cache), str(tmp_path), PYTHONPATH=path)
  assert_same_run(tmp_path / 'one', tmp_path / 'two')
  events = read_events(tmp_path / 'one')
  assert any(len(event['parents']) == 2 for event in events)


@pytest.fixture(scope='module')
def one_process(shared_compilation_cache, tmp_path_factory):
  """The directory of a search of thirty evaluations in one process."""
  workdir = tmp_path_factory.mktemp('one') / 'run'
  finish(start_search(shared_compilation_cache, workdir, 1, *FLAGS, THIRTY))
  return workdir


def finish(process: subprocess.Popen) -> None:
  assert process.wait(400) == 0, process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize('num_workers', [1, 2, 3])
def test_the_number_of_workers_changes_no_event(
  one_process, shared_compilation_cache, tmp_path, num_workers
):
  flags = (*FLAGS, THIRTY, f'--num_workers={num_workers}')
  finish(start_search(shared_compilation_cache, tmp_path / 'run', 1, *flags))
  assert_same_run(one_process, tmp_path / 'run')


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_search_leaves_no_worker_and_resumes(
  one_process, shared_compilation_cache, tmp_path, number
):
  flags = (shared_compilation_cache, tmp_path / 'run')
  for num_events in (1, 3, 6):
    process = start_search(*flags, num_events, *FLAGS, THIRTY, TWO_WORKERS)
    workers = children(process.pid)
    assert len(workers) == 3  # With the one that the two are forked from.
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    assert 'Traceback' not in stderr
    deadline = time.monotonic() + 30
    while any(pathlib.Path(f'/proc/{worker}').exists() for worker in workers):
      assert time.monotonic() < deadline
      time.sleep(0.1)
  finish(start_search(*flags, 6, *FLAGS, THIRTY, TWO_WORKERS))
  assert_same_run(one_process, tmp_path / 'run')


@pytest.mark.slow
def test_a_search_goes_on_without_the_process_that_workers_are_forked_from(
  one_process, shared_compilation_cache, tmp_path
):
  flags = (*FLAGS, THIRTY, TWO_WORKERS)
  process = start_search(shared_compilation_cache, tmp_path / 'run', 1, *flags)
  server, worker, _ = children(process.pid)
  os.kill(server, signal.SIGKILL)
  os.kill(worker, signal.SIGKILL)  # Its replacement is forked from another one.
  finish(process)
  assert_same_run(one_process, tmp_path / 'run')


@pytest.mark.slow
def test_a_candidate_that_takes_too_long_fails_in_a_worker(
  shared_compilation_cache, tmp_path
):
  limit = '--config.max_seconds_per_evaluation=1e-9'
  process = start_search(
    shared_compilation_cache, tmp_path / 'run', 7, *FLAGS, limit, TWO_WORKERS
  )
  _, stderr = process.communicate(timeout=100)
  assert process.returncode == 2
  assert 'got 7 networks that could not be evaluated' in stderr
  events = read_events(tmp_path / 'run')
  assert all('max_seconds_per_evaluation' in event['failure'] for event in events)
