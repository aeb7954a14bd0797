"""What runs inside a worker, whoever has started it."""

from collections.abc import Callable

from absl import logging
from ml_collections import config_dict

from lamarck_jax import trial
from lamarck_jax.data.datasets import Dataset
from lamarck_jax.runtime import allocator, devices, jax_settings, process
from lamarck_jax.training import Trainer
from lamarck_jax.trial import Candidate, Outcome


class Evaluator:
  """Evaluates candidates in this process, which is its own."""

  def __init__(self, config: config_dict.ConfigDict, xla_cache_dir: str | None):
    """Sets the process up for a search.

    Args:
      config: The search's.
      xla_cache_dir: Folder of compiled programs, see `compilation_cache.enable`.
    """
    logging.set_verbosity(logging.ERROR)  # The search has warned already.
    process.configure(config, xla_cache_dir)
    self._config = config
    self._trainer: Trainer | None = None

  @jax_settings.applied()
  def load(self, dataset: Dataset) -> None:
    """Puts the data set on the device; it comes before the first candidate.

    Raises:
      UserError: If JAX does not use the GPU that this process was given.
    """
    devices.check_platform()
    self._trainer = trial.make_trainer(self._config, dataset)
    trial.prepare(self._config, self._trainer)

  @jax_settings.applied()
  def evaluate(
    self, candidate: Candidate, on_epoch: Callable[[], None] = lambda: None
  ) -> Outcome:
    """Returns the outcome of a candidate."""
    assert self._trainer is not None
    outcome = trial.evaluate(self._config, self._trainer, candidate, on_epoch)
    allocator.release_freed_memory()
    return outcome
