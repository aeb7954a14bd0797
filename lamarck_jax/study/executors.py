"""Executors of a study's runs: processes of this machine, or a Ray cluster.

Slurm's is in `slurm`. All take a `Task` and return a `concurrent.futures.Future`. Its
result is None, or the reason why the run failed; an exception means that the process
died, and that the run can be resumed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import sys
import traceback
from typing import Any, Protocol, TextIO

from ml_collections import config_dict

from lamarck_jax.data import files
from lamarck_jax.errors import StorageError, UserError
from lamarck_jax.run_directory import dataset_record, durable
from lamarck_jax.runtime import devices, gpu_sharing, ray_cluster, worker_processes
from lamarck_jax.study import checked_files

# None, or why a run failed; an exception if its process died.
Outcome = concurrent.futures.Future[str | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """One run of a study.

  Attributes:
    setting: Name of its setting.
    seed: Its seed.
    config: Its configuration.
    workdir: Its run directory.
    log: File for its standard output and standard error.
    xla_cache_dir: Folder of compiled programs, as `compilation_cache.enable` takes it.
  """

  setting: str
  seed: int
  config: config_dict.ConfigDict
  workdir: pathlib.Path
  log: pathlib.Path
  xla_cache_dir: str | None

  @property
  def name(self) -> str:
    """The path of its run directory within the study."""
    return f'{self.setting}/seed{self.seed}'

  @property
  def finished(self) -> bool:
    """Whether it has a result that can be read, of its own events."""
    try:
      changed = (self.workdir / 'result.json').stat().st_mtime_ns
    except OSError:
      return False
    return _has_result(self.workdir, changed)

  def epochs_used(self) -> int:
    """Returns the training epochs used so far, according to its events on disk."""
    path = self.workdir / 'events.jsonl'
    with contextlib.suppress(UserError, ValueError, LookupError, TypeError):
      # Whatever follows the last line break is an incomplete line, or empty.
      *lines, _ = durable.read_bytes(path).split(b'\n') if path.exists() else [b'']
      return int(json.loads(lines[-1])['epochs_used']) if lines else 0
    return 0  # It cannot be read, which the run says when it starts.


@functools.cache
def _has_result(workdir: pathlib.Path, changed: int) -> bool:
  """Returns whether a run's result can be read, which takes all of its events.

  Args:
    workdir: The run directory.
    changed: When the result was written last; asked again, the answer is the same.
  """
  with contextlib.suppress(UserError):
    return checked_files.read_result(workdir) is not None
  return False


class Executor(Protocol):
  """Where runs are performed.

  Attributes:
    num_workers: Maximum number of concurrent runs.
  """

  num_workers: int

  def submit(self, task: Task) -> Outcome:
    """Starts a run, or queues it; returns a future of `perform`'s result."""

  def close(self) -> None:
    """Ends all runs that have not ended."""


def perform(task: Task) -> str | None:
  """Runs a search in the calling process, which must be a worker of its own.

  Returns:
    None, or why the search failed, in one line.
  """
  try:
    opened = _open_log(task.log)
  except OSError as error:
    return f'log: got {task.log}, want a file to append to: {error.strerror}'
  with opened as log, _redirected(log):
    try:
      # These import JAX, which must find the environment that the worker was given.
      from lamarck_jax import search
      from lamarck_jax.report import html_page
      from lamarck_jax.runtime import process

      process.configure(task.config, task.xla_cache_dir)
      # The data of a run that was begun are recorded, those of a new one soon.
      begun = dataset_record.read(task.workdir) is not None
      if begun:
        _check(task)
      search.run(task.config, task.workdir, None if begun else _check_once(task))
      html_page.write_if_possible(task.workdir)
    except (StorageError, UserError) as error:
      print(f'error: {error}', file=log)
      return ' '.join(str(error).split())
    except Exception as error:
      traceback.print_exc()
      return ' '.join(f'{type(error).__name__}: {error}'.split())
  return None


def _check(task: Task) -> None:
  """Raises UserError if a run's data are not those of the study's runs before it."""
  from lamarck_jax.study import results

  results.check_run(task.workdir.parents[1], task.setting, task.seed)


def _check_once(task: Task) -> Callable[[Mapping[str, Any]], None]:
  """Returns what checks a run at its first event."""
  checked: list[bool] = []

  def check(event: Mapping[str, Any]) -> None:
    del event
    if not checked:
      checked.append(True)
      _check(task)

  return check


def _open_log(path: pathlib.Path) -> TextIO:
  """Opens a log for appending; a pipe would wait for a reader.

  Raises:
    OSError: If it cannot be opened, or is no regular file.
  """
  flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
  descriptor = os.open(path, flags, 0o666)
  try:
    files.check_regular(path, os.fstat(descriptor))
    return open(descriptor, 'a')
  except BaseException:
    os.close(descriptor)
    raise


@contextlib.contextmanager
def _redirected(file: TextIO) -> Iterator[None]:
  """Redirects standard output and error to a file, for native libraries too."""
  streams = (sys.stdout, sys.stderr)
  saved = [os.dup(number) for number in (1, 2)]
  try:
    for stream, number in zip(streams, (1, 2)):
      stream.flush()
      os.dup2(file.fileno(), number)
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
      yield
  finally:
    file.flush()
    for copy, number in zip(saved, (1, 2)):
      os.dup2(copy, number)
      os.close(copy)


class LocalExecutor:
  """Worker processes on this machine, each with cores of its own, or with a GPU.

  Attributes:
    num_workers: Maximum number of concurrent runs.
  """

  def __init__(
    self, num_workers: int | None = None, activation_bytes: int | None = None
  ):
    """Divides the machine among workers.

    Args:
      num_workers: Their number; by default one per core, or where there are GPUs as
        many for each as `gpu_sharing.searches_per_gpu` says.
      activation_bytes: Size of the runs' largest activations in bytes, if known.
    """
    cores, gpus = devices.available_cores(), devices.available_gpus()
    if not num_workers and gpus:
      num_workers = len(gpus) * gpu_sharing.searches_per_gpu(
        activation_bytes, devices.gpu_memory(gpus), len(cores) // len(gpus)
      )
    self.num_workers = num_workers or len(cores)
    self._resources = worker_processes.resources(self.num_workers, cores, gpus)
    # The worker of each run in progress, and the process that the run has to itself.
    self._busy: dict[Outcome, int] = {}
    self._pools: dict[int, concurrent.futures.ProcessPoolExecutor] = {}

  def submit(self, task: Task) -> Outcome:
    """Starts a run on a free worker; returns a future of `perform`'s result."""
    for future in [future for future in self._busy if future.done()]:
      # Its process ends while that of the next run starts.
      self._pools.pop(self._busy.pop(future)).shutdown(wait=False)
    worker = min(set(range(self.num_workers)) - set(self._busy.values()))
    # A process per run, since settings such as JAX's devices hold for the process.
    pool = self._pools[worker] = concurrent.futures.ProcessPoolExecutor(
      max_workers=1,
      mp_context=multiprocessing.get_context('spawn'),
      initializer=_initialise_worker,
      initargs=self._resources[worker],
    )
    future = pool.submit(perform, task)
    self._busy[future] = worker
    return future

  def close(self) -> None:
    """Ends all workers, even in the middle of a run."""
    done = [future for future in self._busy if future.done()]
    if len(done) < len(self._pools):
      for process in multiprocessing.active_children():
        process.kill()
    for pool in self._pools.values():
      pool.shutdown(cancel_futures=True)


def _initialise_worker(cores: Sequence[int], environment: Mapping[str, str]) -> None:
  """Confines a worker to its cores and GPU, before JAX initialises."""
  worker_processes.initialise(environment)
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, cores)


class RayExecutor:
  """Tasks of a Ray cluster.

  The package must be installed on every node, and the study's directory must have the
  same path on all of them.

  Attributes:
    num_workers: Maximum number of runs submitted to Ray at a time, which starts as
      many of them as the cluster has room for.
  """

  def __init__(
    self,
    address: str | None = None,
    *,
    cpus_per_run: float = 1,
    gpus_per_run: float = 0,
    num_workers: int | None = None,
  ):
    """Joins a cluster, or starts one on this machine.

    Args:
      address: As `ray.init` takes it; None starts a cluster on this machine, unless
        the environment variable RAY_ADDRESS names one.
      cpus_per_run: CPUs that each run asks for.
      gpus_per_run: GPUs that each run asks for; 0.25 gives a GPU, and its memory, to
        four runs at a time.
      num_workers: Maximum number of runs at a time; unlimited by default.

    Raises:
      UserError: If Ray is not installed, or the cluster cannot be reached.
    """
    needed = {'CPU': cpus_per_run, 'GPU': gpus_per_run}
    self._ray = ray = ray_cluster.join(address, needed, 'a run')
    self.num_workers = num_workers or 2**31
    self._perform = ray.remote(
      num_cpus=cpus_per_run,
      num_gpus=gpus_per_run,
      max_calls=1,  # A process per run, since its settings hold for the process.
      max_retries=0,  # The runner retries, and counts.
      runtime_env={'env_vars': ray_cluster.environment(cpus_per_run, gpus_per_run)},
    )(perform)

  def submit(self, task: Task) -> Outcome:
    """Submits a run to Ray; returns a future of `perform`'s result."""
    return self._perform.remote(task).future()

  def close(self) -> None:
    """Leaves the cluster, which ends the runs still in progress."""
    self._ray.shutdown()
