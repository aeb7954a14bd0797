"""The executor of a study's runs as Slurm jobs, by submitit.

A job that is preempted, cancelled or out of time ends without a result; the runner
submits the run again, and it resumes.
"""

from collections.abc import Mapping
import concurrent.futures
import pathlib
import shutil
import threading
from typing import Any

from lamarck_jax.errors import UserError
from lamarck_jax.study.executors import Outcome, Task, perform


class SlurmExecutor:
  """Jobs of a Slurm cluster.

  The package must be installed in the same place on every node, and the study's
  directory must have the same path on all of them.

  Attributes:
    num_workers: Maximum number of jobs submitted at a time, which Slurm starts as it
      has room.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    *,
    cpus_per_run: int = 1,
    gpus_per_run: int = 0,
    parameters: Mapping[str, str] | None = None,
    num_workers: int | None = None,
    cluster: str = 'slurm',
  ):
    """Checks that jobs can be submitted.

    Args:
      folder: Where submitit writes scripts, results and logs of jobs; all nodes must
        see it.
      cpus_per_run: CPUs that each job asks for.
      gpus_per_run: GPUs that each job asks for.
      parameters: Further options of `sbatch`, such as {'partition': 'gpu'}.
      num_workers: Maximum number of jobs at a time; unlimited by default.
      cluster: `slurm`, or `local` for processes of this machine without Slurm.

    Raises:
      UserError: If submitit is not installed, there is no `sbatch`, or a parameter is
        unknown.
    """
    try:
      import submitit
    except ImportError as error:
      raise UserError(
        "engine: got 'slurm', want submitit installed: pip install -e '.[slurm]'"
      ) from error
    if cluster == 'slurm' and not shutil.which('sbatch'):
      raise UserError(
        "engine: got 'slurm' without the command sbatch, want a node that submits jobs"
      )
    self.num_workers = num_workers or 2**31
    self._executor = submitit.AutoExecutor(folder, cluster=cluster)
    try:
      self._executor.update_parameters(
        name='lamarck',
        cpus_per_task=cpus_per_run,
        gpus_per_node=gpus_per_run,
        **{f'slurm_{name}': _value(text) for name, text in (parameters or {}).items()},
      )
    except (NameError, TypeError, ValueError, AssertionError) as error:
      reason = ' '.join(str(error).split())
      raise UserError(
        f'slurm_parameters: got {dict(parameters or {})}, want options of sbatch:'
        f' {reason}'
      ) from error
    self._jobs: list[Any] = []

  def submit(self, task: Task) -> Outcome:
    """Submits a run as a job; returns a future of `perform`'s result."""
    job = self._executor.submit(perform, task)
    self._jobs.append(job)
    future: Outcome = concurrent.futures.Future()
    # A job has no callbacks; waiting for it polls its files and, rarely, sacct.
    threading.Thread(target=_follow, args=(job, future), daemon=True).start()
    return future

  def close(self) -> None:
    """Cancels the jobs that have not ended."""
    for job in self._jobs:
      if not job.done():
        job.cancel(check=False)


def _follow(job: Any, future: Outcome) -> None:
  """Gives a future the result of a job, or the exception that ended it."""
  try:
    future.set_result(job.result())
  except Exception as error:
    future.set_exception(error)


def _value(text: str) -> str | int:
  """Returns a number where the text is one, since submitit checks types."""
  return int(text) if text.isdecimal() else text
