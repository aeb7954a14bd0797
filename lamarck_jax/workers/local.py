"""Worker processes on this machine, each with its share of cores or of a GPU."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
from multiprocessing import connection as connections
import os
import pickle
import queue
import signal
import threading
import traceback
from typing import Any

from ml_collections import config_dict

from lamarck_jax.data.datasets import Dataset
from lamarck_jax.runtime import devices, worker_processes
from lamarck_jax.trial import Candidate
from lamarck_jax.workers import fork_server
from lamarck_jax.workers.evaluator import Evaluator
from lamarck_jax.workers.pool import Kind, Report

# What `multiprocessing` takes for the exit status of a process whose fork server has
# died; the process itself may live.
_UNKNOWN = 255


class LocalEngine:
  """Processes of this machine.

  The first one waits a second for the process that all are forked from, unless
  `fork_server.start` was called before.

  Attributes:
    num_workers: Their number.
  """

  def __init__(self, num_workers: int, xla_cache_dir: str | None = None):
    """Divides the machine.

    Args:
      num_workers: Number of workers. Each gets as many threads as its share of the
        cores, and its own GPU or a share of one.
      xla_cache_dir: Folder of compiled programs, see `compilation_cache.enable`.
    """
    self.num_workers = num_workers
    self._xla_cache_dir = xla_cache_dir
    cores = devices.available_cores()[: devices.num_cores()]
    resources = worker_processes.resources(num_workers, cores, devices.available_gpus())
    # The share is a number of threads, not certain cores, which may be busy otherwise.
    self._environments = [
      {'PJRT_NPROC': str(len(share)), **environment} for share, environment in resources
    ]

  def start(
    self,
    index: int,
    config: config_dict.ConfigDict,
    report: Callable[[Report], None],
  ) -> 'LocalWorker':
    """Begins to start a worker."""
    environment = {**os.environ, **self._environments[index]}
    return LocalWorker(config, self._xla_cache_dir, environment, report)

  def share(self, dataset: Dataset) -> Dataset:
    """Returns the data set."""
    return dataset

  def close(self) -> None:
    """Does nothing: the workers have been killed."""


class LocalWorker:
  """A process of this machine."""

  def __init__(
    self,
    config: config_dict.ConfigDict,
    xla_cache_dir: str | None,
    environment: Mapping[str, str],
    report: Callable[[Report], None],
  ):
    """Begins to start the process; arguments as in `LocalEngine` and its `start`."""
    context = fork_server.start()
    self._connection, remote = context.Pipe()
    self._process = context.Process(
      target=_run,
      args=(environment, devices.available_cores(), remote, config, xla_cache_dir),
      daemon=True,
    )
    self._report = report
    # The process that it is forked from may have died, which `_receive` finds out.
    with contextlib.suppress(EOFError, OSError):
      self._process.start()
    remote.close()  # So that the pipe ends with the process.
    # Sending waits until the process reads, which it does once it has started JAX.
    self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for target in (self._send, self._receive):
      threading.Thread(target=target, daemon=True).start()

  def load(self, dataset: Dataset) -> None:
    """Begins to send the data set."""
    self._outbox.put(dataset)

  def evaluate(self, candidate: Candidate) -> None:
    """Begins to send a candidate."""
    self._outbox.put(candidate)

  def kill(self) -> None:
    """Ends the process."""
    if self._process.pid is not None:
      self._process.kill()
      if self._process.exitcode == _UNKNOWN:
        with contextlib.suppress(ProcessLookupError):
          os.kill(self._process.pid, signal.SIGKILL)
      self._process.join()
    self._outbox.put(None)

  def _send(self) -> None:
    try:
      while (message := self._outbox.get()) is not None:
        self._connection.send(message)
    except OSError:
      pass  # It died, which `_receive` reports.
    except Exception as error:  # Such as too little memory for a copy of the data.
      self._report(Report(self, Kind.ERROR, error))

  def _receive(self) -> None:
    try:
      while True:
        self._report(Report(self, *self._connection.recv()))
    # The other end of the pipe is a process that this one has started, and nobody else;
    # a message is torn where that process died while sending.
    except (EOFError, OSError, pickle.UnpicklingError):
      self._report(Report(self, Kind.DIED, self._how_it_ended()))
    except Exception as error:  # Or the search would wait for ever.
      self._report(Report(self, Kind.ERROR, error))

  def _how_it_ended(self) -> str:
    if self._process.pid is None:
      return 'not started'
    self._process.join()
    code = self._process.exitcode or 0
    return f'signal {-code}' if code < 0 else f'exit status {code}'


def _run(environment: Mapping[str, str], cores: Sequence[int], *arguments: Any) -> None:
  """Serves a search, inside a worker, with its environment and on its cores."""
  # Until here they are those of the process that this one was forked from.
  for name in os.environ.keys() - environment.keys():
    del os.environ[name]
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, cores)
  worker_processes.initialise(environment)
  _serve(*arguments)


def _serve(
  connection: connections.Connection,
  config: config_dict.ConfigDict,
  xla_cache_dir: str | None,
) -> None:
  """Evaluates the candidates that come through a pipe."""

  def receive() -> Any:
    with _search_may_end():
      return connection.recv()

  def send(*report: Any) -> None:
    with _search_may_end():
      connection.send(report)

  try:
    evaluator = Evaluator(config, xla_cache_dir)
    evaluator.load(receive())
    send(Kind.READY)
    while True:
      send(Kind.OUTCOME, evaluator.evaluate(receive(), lambda: send(Kind.EPOCH)))
  except _SearchEnded:
    return
  except Exception as error:
    error.add_note(f'In a worker:\n{traceback.format_exc()}')
    with contextlib.suppress(OSError):
      connection.send((Kind.ERROR, _picklable(error)))


class _SearchEnded(Exception):
  """The pipe to the search has ended."""


@contextlib.contextmanager
def _search_may_end() -> Iterator[None]:
  """Tells an error of the pipe from one of an evaluation."""
  try:
    yield
  except (EOFError, OSError) as error:
    raise _SearchEnded from error


def _picklable(error: Exception) -> Exception:
  """Returns an error that another process can raise."""
  try:
    pickle.loads(pickle.dumps(error))
  except Exception:
    return RuntimeError(f'{type(error).__name__}: {error}')
  return error
