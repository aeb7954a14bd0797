"""What the searches of `benchmarks.peers` share: their task, clock and outcome.

It imports nothing but the standard library, since the process of another tool should
not load JAX.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import sys
import time
from typing import Any

_PACKAGES = (
  'jax',
  'flax',
  'optax',
  'optuna',
  'autokeras',
  'keras',
  'keras-tuner',
  'tensorflow-cpu',
  'numpy',
)


class Attempt:
  """One search of one method with one seed, on the clock since its process started.

  Attributes:
    task: What `benchmarks.peers` asks for: `method`, `seed`, `seconds`, `core`,
      `start`, `config`, `data`, `scratch` and `out`.
    evaluations: Number of networks that were evaluated, or begun.
    best: Best validation accuracy so far.
    curve: Seconds and best validation accuracy, at each improvement.
  """

  def __init__(self, task: dict[str, Any]):
    """Starts without an evaluation."""
    self.task = task
    self.evaluations = 0
    self.best = -1.0
    self.curve: list[tuple[float, float]] = []

  @property
  def elapsed(self) -> float:
    """Seconds since the process was started, imports included."""
    return time.time() - self.task['start']

  def record(self, accuracy: float) -> bool:
    """Records a validation accuracy; returns whether it is the best so far."""
    if accuracy <= self.best:
      return False
    self.best = accuracy
    self.curve.append((round(self.elapsed, 2), accuracy))
    return True

  def is_over(self, reserve: float, another: float | None = None) -> bool:
    """Returns whether to end the search, since no time is left to go on.

    Args:
      reserve: Seconds that the best network still needs after the search.
      another: Seconds of what comes next; None: of an evaluation, the mean so far.
    """
    if another is None:
      another = self.elapsed / max(1, self.evaluations)
    return self.elapsed + another + reserve > self.task['seconds']

  def usage(self) -> dict[str, float]:
    """Returns seconds by the clock, and those of CPU time, so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime
    return {'seconds': round(self.elapsed, 2), 'cpu_seconds': round(cpu, 2)}

  def write(self, **outcome: Any) -> None:
    """Writes what the search has found to the file that the task names."""
    content = {
      'evaluations': self.evaluations,
      'best_validation_accuracy': self.best,
      'curve': self.curve,
      **outcome,
      'versions': _versions(),
    }
    pathlib.Path(self.task['out']).write_text(json.dumps(content))


def begin() -> Attempt:
  """Returns the attempt that the command line names, on its core alone."""
  task = json.loads(pathlib.Path(sys.argv[1]).read_text())
  if task['core'] is not None:
    os.sched_setaffinity(0, {task['core']})
  return Attempt(task)


def _versions() -> dict[str, str]:
  found = {'python': platform.python_version()}
  for package in _PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found
