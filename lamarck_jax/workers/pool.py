"""A generation of candidates in, their outcomes out, in order.

Workers are processes and die: they are killed by a person or for want of memory, or
their machine is lost. Then the candidate is evaluated again, which gives the same
outcome, since its keys follow from its index and all workers compute alike.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import enum
import queue
from typing import Any, NamedTuple, Protocol

from absl import logging
from ml_collections import config_dict

from lamarck_jax import flops
from lamarck_jax.data.datasets import Dataset
from lamarck_jax.errors import UserError
from lamarck_jax.run_directory.progress import Progress
from lamarck_jax.trial import Candidate, Outcome

# A candidate whose workers died this often has failed. The last time it is evaluated
# alone: beside others there may have been too little memory for it.
MAX_DEATHS = 3


class Kind(enum.Enum):
  """What a worker reports."""

  READY = enum.auto()  # It can evaluate; once.
  EPOCH = enum.auto()  # An epoch of its candidate has ended.
  OUTCOME = enum.auto()  # That of its candidate.
  ERROR = enum.auto()  # An exception, which is neither its own nor its candidate's end.
  DIED = enum.auto()  # Why, in words.


class Report(NamedTuple):
  """A report of a worker.

  Attributes:
    worker: Which one.
    kind: What it reports.
    value: An outcome, an exception or text, by kind.
  """

  worker: 'Worker'
  kind: Kind
  value: Any = None


class Worker(Protocol):
  """A process that evaluates one candidate at a time, and reports."""

  def load(self, dataset: Any) -> None:
    """Begins to load what `Engine.share` returned; READY follows."""

  def evaluate(self, candidate: Candidate) -> None:
    """Begins to evaluate; OUTCOME follows."""

  def kill(self) -> None:
    """Ends the process at once, whatever it does."""


class Engine(Protocol):
  """Where workers run.

  Attributes:
    num_workers: Their number.
  """

  num_workers: int

  def start(
    self,
    index: int,
    config: config_dict.ConfigDict,
    report: Callable[[Report], None],
  ) -> Worker:
    """Begins to start a worker, which calls `report` from any thread.

    Args:
      index: Which of `num_workers` it is; a replacement has that of the dead one.
      config: The search's.
      report: Called with every report.
    """

  def share(self, dataset: Dataset) -> Any:
    """Returns the data set in the form in which workers get it."""

  def close(self) -> None:
    """Leaves; all workers have been killed."""


class Workers:
  """The workers of a search."""

  def __init__(self, engine: Engine):
    """Takes where they run; `start` starts them."""
    self._engine = engine
    self._reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
    self._index: dict[Worker, int] = {}  # Of every living worker.
    self._idle: list[Worker] = []
    self._busy: dict[Worker, Candidate] = {}
    self._failed_starts = 0
    self._waiting: collections.deque[Candidate] = collections.deque()
    self._outcomes: dict[int, Outcome] = {}
    self._deaths: collections.Counter[int] = collections.Counter()

  def start(self, config: config_dict.ConfigDict) -> None:
    """Begins to start the processes."""
    self._config = config
    for index in range(self._engine.num_workers):
      self._start_worker(index)

  def send_dataset(self, dataset: Dataset) -> None:
    """Begins to give the data set to all workers, and to those that replace them."""
    self._shapes = dataset.image_shape, dataset.num_classes
    self._dataset = self._engine.share(dataset)
    for worker in self._index:
      worker.load(self._dataset)

  def evaluate(
    self, candidates: Sequence[Candidate], progress: Progress
  ) -> Iterator[Outcome]:
    """Yields the outcome of each candidate, in their order, as soon as it is known.

    Raises:
      UserError: If no worker can be started.
      Exception: The error of a worker that is not its candidate's failure.
    """
    # The largest first, or one of them might begin when all others have ended.
    self._waiting.extend(sorted(candidates, key=self._cost, reverse=True))
    for candidate in candidates:
      while candidate.evaluation not in self._outcomes:
        self._assign(progress)
        self._take(self._reports.get(), progress)
      yield self._outcomes.pop(candidate.evaluation)

  def close(self) -> None:
    """Ends all workers, even in the middle of an evaluation."""
    for worker in self._index:
      worker.kill()
    self._index.clear()
    self._engine.close()

  def _cost(self, candidate: Candidate) -> int:
    return flops.network_flops(candidate.genotype, *self._shapes)

  def _start_worker(self, index: int) -> Worker:
    worker = self._engine.start(index, self._config, self._reports.put)
    self._index[worker] = index
    return worker

  def _assign(self, progress: Progress) -> None:
    """Gives waiting candidates to idle workers."""
    while self._waiting and self._idle:
      if self._busy and any(map(self._is_last_try, self._next_and_running())):
        return
      worker, candidate = self._idle.pop(0), self._waiting.popleft()
      self._busy[worker] = candidate
      progress.training(candidate.evaluation, candidate.genotype)
      worker.evaluate(candidate)

  def _next_and_running(self) -> list[Candidate]:
    return [self._waiting[0], *self._busy.values()]

  def _is_last_try(self, candidate: Candidate) -> bool:
    return self._deaths[candidate.evaluation] == MAX_DEATHS - 1

  def _take(self, report: Report, progress: Progress) -> None:
    """Takes account of a report."""
    worker = report.worker
    if worker not in self._index:
      return  # It has been replaced.
    match report.kind:
      case Kind.READY:
        self._failed_starts = 0
        self._idle.append(worker)
      case Kind.EPOCH:
        progress.epoch(self._busy[worker].evaluation)
      case Kind.OUTCOME:
        evaluation = self._busy.pop(worker).evaluation
        self._outcomes[evaluation] = report.value
        progress.trained(evaluation)
        self._idle.append(worker)
      case Kind.ERROR:
        raise report.value
      case Kind.DIED:
        self._replace(worker, report.value)

  def _replace(self, worker: Worker, reason: str) -> None:
    """Starts another worker; its candidate waits again, unless that is in vain."""
    index = self._index.pop(worker)
    worker.kill()
    candidate = self._busy.pop(worker, None)
    if candidate:
      self._count_death(candidate, reason)
    elif worker in self._idle:
      self._idle.remove(worker)
    else:
      self._failed_starts += 1
      if self._failed_starts == MAX_DEATHS:
        raise UserError(
          f'num_workers: got {self._engine.num_workers}, of which none could be started'
          f' {MAX_DEATHS} times ({reason}), want workers that live'
        )
    self._start_worker(index).load(self._dataset)

  def _count_death(self, candidate: Candidate, reason: str) -> None:
    evaluation = candidate.evaluation
    self._deaths[evaluation] += 1
    if self._deaths[evaluation] < MAX_DEATHS:
      logging.warning(
        'the worker of evaluation %d died (%s); it is evaluated again',
        evaluation,
        reason,
      )
      self._waiting.appendleft(candidate)
    else:
      failure = f'its worker died {MAX_DEATHS} times: {reason}'
      self._outcomes[evaluation] = Outcome(failure=failure)
