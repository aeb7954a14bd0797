"""Workers on a Ray cluster, one actor each.

The package must be installed on every node. Nodes need neither the data set nor the run
directory: the data go through Ray's object store, and the search records.
"""

from collections.abc import Callable
import concurrent.futures
from typing import Any

from ml_collections import config_dict

from lamarck_jax.data.datasets import Dataset
from lamarck_jax.runtime import ray_cluster
from lamarck_jax.trial import Candidate
from lamarck_jax.workers.evaluator import Evaluator
from lamarck_jax.workers.pool import Kind, Report


class RayEngine:
  """Actors of a Ray cluster.

  Attributes:
    num_workers: Their number; those for which the cluster has no room yet wait.
  """

  def __init__(
    self,
    num_workers: int,
    xla_cache_dir: str | None = None,
    *,
    address: str | None = None,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
  ):
    """Joins a cluster, or starts one on this machine.

    Args:
      num_workers: Number of workers.
      xla_cache_dir: Folder of compiled programs on every node.
      address: As `ray.init` takes it; None starts a cluster on this machine, unless
        the environment variable RAY_ADDRESS names one.
      cpus_per_worker: CPUs that each worker asks for.
      gpus_per_worker: GPUs that each worker asks for; 0.25 gives a GPU, and its memory,
        to four.

    Raises:
      UserError: If Ray is not installed, or the cluster cannot be reached.
    """
    self.num_workers = num_workers
    self._xla_cache_dir = xla_cache_dir
    needed = {'CPU': cpus_per_worker, 'GPU': gpus_per_worker}
    self._ray = ray = ray_cluster.join(address, needed, 'a worker')
    environment = ray_cluster.environment(cpus_per_worker, gpus_per_worker)
    self._actor = ray.remote(
      num_cpus=cpus_per_worker,
      num_gpus=gpus_per_worker,
      runtime_env={'env_vars': environment},
    )(Evaluator)

  def start(
    self,
    index: int,
    config: config_dict.ConfigDict,
    report: Callable[[Report], None],
  ) -> 'RayWorker':
    """Begins to start a worker."""
    return RayWorker(self._ray, self._actor.remote(config, self._xla_cache_dir), report)

  def share(self, dataset: Dataset) -> Any:
    """Returns a reference to the data set in the object store."""
    return self._ray.put(dataset)

  def close(self) -> None:
    """Leaves the cluster."""
    self._ray.shutdown()


class RayWorker:
  """An actor with an `Evaluator`."""

  def __init__(self, ray: Any, actor: Any, report: Callable[[Report], None]):
    """Takes the module, the actor and where its reports go."""
    self._ray, self._actor, self._report = ray, actor, report

  def load(self, dataset: Any) -> None:
    """Begins to load the data set."""
    self._watch(self._actor.load.remote(dataset), Kind.READY)

  def evaluate(self, candidate: Candidate) -> None:
    """Begins to evaluate a candidate."""
    self._watch(self._actor.evaluate.remote(candidate), Kind.OUTCOME)

  def kill(self) -> None:
    """Ends the actor, if Ray can reach it."""
    self._ray.kill(self._actor)

  def _watch(self, reference: Any, kind: Kind) -> None:
    """Reports the result of a call once it is there."""

    def report(future: concurrent.futures.Future[Any]) -> None:
      error = future.exception()
      if error is None:
        self._report(Report(self, kind, future.result()))
      elif isinstance(error, self._ray.exceptions.RayTaskError):
        self._report(Report(self, Kind.ERROR, error.cause))
      else:  # The actor, its node or an object on it is lost.
        lines = str(error).splitlines() or ['']
        reason = f'{type(error).__name__}: {lines[0]}'
        self._report(Report(self, Kind.DIED, reason))

    reference.future().add_done_callback(report)
