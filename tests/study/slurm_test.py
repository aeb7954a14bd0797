import os
import pathlib
import signal

import pytest

from lamarck_jax import search
from lamarck_jax.errors import UserError
from lamarck_jax.study import runner, slurm
from tests.study.conftest import ROOT, called_often, make_tasks
from tests.study.runner_test import read_events


def job_processes(folder) -> list[int]:
  """The processes of this machine that perform submitit's jobs of a folder."""
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
      words = path.read_bytes().split(b'\0')
    except (FileNotFoundError, ProcessLookupError):
      continue
    if b'submitit.core._submit' in words and os.fsencode(folder) in words:
      found.append(int(path.parent.name))
  return found


def test_a_study_whose_job_is_killed_has_the_results_of_an_uninterrupted_one(
  shared_compilation_cache, tmp_path, monkeypatch
):
  pytest.importorskip('submitit')
  monkeypatch.setenv('PYTHONPATH', str(ROOT))  # For the jobs.
  (task,) = make_tasks(
    tmp_path, shared_compilation_cache, num_seeds=1, budget_epochs=16
  )
  task.log.parent.mkdir(parents=True)
  folder = tmp_path / 'logs' / 'slurm'
  killed = []

  def kill_the_job():
    if not killed and 3 <= len(read_events(task)) < 16:
      killed.extend(job_processes(folder))
      for process in killed:
        os.kill(process, signal.SIGKILL)

  executor = slurm.SlurmExecutor(folder, cluster='local')
  try:
    with called_often(kill_the_job):
      assert runner.run([task], executor) == {}
  finally:
    executor.close()
  assert killed

  (other,) = make_tasks(
    tmp_path / 'undisturbed', shared_compilation_cache, num_seeds=1, budget_epochs=16
  )
  search.run(other.config, other.workdir)
  assert task.finished
  assert len(read_events(task)) == 16
  assert read_events(task) == read_events(other)


def test_a_job_that_has_not_ended_is_cancelled_when_the_study_ends(
  shared_compilation_cache, tmp_path, monkeypatch
):
  pytest.importorskip('submitit')
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  (task,) = make_tasks(
    tmp_path, shared_compilation_cache, num_seeds=1, budget_epochs=4000
  )
  task.log.parent.mkdir(parents=True)
  folder = tmp_path / 'slurm'
  executor = slurm.SlurmExecutor(folder, cluster='local')
  outcome = executor.submit(task)
  while not read_events(task):
    assert not outcome.done()
  executor.close()
  assert outcome.exception(timeout=200)  # A busy machine takes its time.
  assert not job_processes(folder)


def test_a_machine_without_slurm_is_refused_in_one_line(tmp_path, monkeypatch):
  pytest.importorskip('submitit')
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(UserError, match='sbatch'):
    slurm.SlurmExecutor(tmp_path)


def test_options_that_sbatch_does_not_have_are_refused_in_one_line(tmp_path):
  pytest.importorskip('submitit')
  with pytest.raises(UserError, match=r'^slurm_parameters: got .*bogus[^\n]*$'):
    slurm.SlurmExecutor(tmp_path, cluster='local', parameters={'bogus': '1'})


def test_submitit_that_is_not_installed_is_an_error_that_names_the_package(tmp_path):
  try:
    import submitit  # noqa: F401
  except ImportError:
    with pytest.raises(UserError, match=r'engine: .*pip install'):
      slurm.SlurmExecutor(tmp_path)
  else:
    pytest.skip('submitit is installed')
