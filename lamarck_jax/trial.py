"""One fitness evaluation: inherit, train, evaluate (Section 3.1).

A `Candidate` goes in and an `Outcome` comes out. Both are plain data, so an evaluation
is the same in this process (`one_by_one`) and in another one (`workers`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import jax
from ml_collections import config_dict
import numpy as np

from lamarck_jax import activations, flops, initialisation, metrics, model, training
from lamarck_jax.data.augmentation import Augmentation
from lamarck_jax.data.datasets import Dataset
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Genotype
from lamarck_jax.model import Variables
from lamarck_jax.population import Offspring
from lamarck_jax.run_directory.progress import Progress
from lamarck_jax.runtime import stopwatch
from lamarck_jax.search_state import Purpose, random_key
from lamarck_jax.training import Trainer

if TYPE_CHECKING:
  import threadpoolctl


@dataclasses.dataclass(frozen=True)
class Candidate:
  """What an evaluation needs beside the configuration and the data.

  Attributes:
    evaluation: Its index, from which its random keys follow.
    offspring: What the search has asked for.
    parent_variables: The trained variables of each parent.
    successors: Networks that may come next, for compiling them ahead.
  """

  evaluation: int
  offspring: Offspring
  parent_variables: tuple[Variables, ...] = ()
  successors: tuple[Genotype, ...] = ()

  @property
  def genotype(self) -> Genotype:
    """Its architecture."""
    return self.offspring.genotype


@dataclasses.dataclass
class Outcome:
  """What an evaluation has found; what it did not get to is None.

  Attributes:
    variables: The trained variables, on the host; None if it failed.
    r2: Of the fit behind a crossover's seam, if there was one.
    fitness_before: Its fitness before training.
    fitness: The same after training.
    measures: Each of `metrics.MEASURES` after training.
    correct: The validation examples that it classifies correctly, see
      `activations.correct`, if the search needs them.
    failure: Why it could not be evaluated, or None.
    epochs: Number of epochs that it was trained.
    seconds: Duration of each phase, and their `total`.
  """

  variables: Variables | None = None
  r2: float | None = None
  fitness_before: float | None = None
  fitness: float | None = None
  measures: Mapping[str, float | None] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(metrics.MEASURES)
  )
  correct: str | None = None
  failure: str | None = None
  epochs: int = 0
  seconds: dict[str, float] = dataclasses.field(default_factory=lambda: {'total': 0.0})


class _CandidateError(Exception):
  """A candidate is above a limit, or its training diverged."""


def make_trainer(config: config_dict.ConfigDict, dataset: Dataset) -> Trainer:
  """Returns the trainer of a search.

  Raises:
    UserError: If the data set is too small for the configuration, or too large for the
      device.
  """
  try:
    return Trainer(
      dataset,
      batch_size=config.batch_size,
      compute_dtype=config.compute_dtype,
      augmentation=Augmentation(**config.augmentation),
      class_weights=config.class_weights,
    )
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    if not isinstance(error, MemoryError) and 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    splits = (dataset.train, dataset.validation, dataset.test)
    size = sum(split.images.nbytes for split in splits) / 2**20
    reason = ' '.join(f'{error}'.split())[:200]
    raise UserError(
      f'dataset: got {size:,.0f} MiB of images, want what the free memory of'
      f' {jax.devices()[0]} holds: {reason}'
    ) from error


def learning_rates(config: config_dict.ConfigDict) -> list[float]:
  """Returns the learning rate of every epoch of an evaluation.

  The paper's is constant (Section 4.2). A cosine goes from it to 0 within the
  evaluation, and each epoch has the rate of its middle.
  """
  epochs = config.epochs_per_evaluation
  if config.learning_rate_schedule == 'constant':
    return [config.learning_rate] * epochs
  return [
    config.learning_rate * (1 + math.cos(math.pi * (epoch + 0.5) / epochs)) / 2
    for epoch in range(epochs)
  ]


def prepare(config: config_dict.ConfigDict, trainer: Trainer) -> None:
  """Does what takes longer the first time, before there is a candidate."""
  key = random_key(config.seed, 0, Purpose.TRAINING)
  trainer.data.shuffled(jax.random.fold_in(key, 0))
  if config.algorithm == 'population':
    _blas()


def one_by_one(
  config: config_dict.ConfigDict,
  trainer: Trainer,
  candidates: Sequence[Candidate],
  progress: Progress,
) -> Iterator[Outcome]:
  """Yields the outcome of each candidate, evaluated in this process."""
  for candidate in candidates:
    progress.training(candidate.evaluation, candidate.genotype)
    on_epoch = functools.partial(progress.epoch, candidate.evaluation)
    yield evaluate(config, trainer, candidate, on_epoch)


def evaluate(
  config: config_dict.ConfigDict,
  trainer: Trainer,
  candidate: Candidate,
  on_epoch: Callable[[], None],
) -> Outcome:
  """Trains a candidate for e epochs and measures its fitness.

  Args:
    on_epoch: Called after every epoch.

  Raises:
    Exception: If the device computes nothing any more, which is not the candidate's
      failure.
  """
  watch = stopwatch.Stopwatch()
  outcome = Outcome(seconds=watch.seconds)
  genotype = candidate.genotype

  def measure(variables: Variables) -> dict[str, float]:
    return metrics.measures(trainer.confusion(genotype, variables, 'validation'))

  def check_epoch(epoch: int, loss: float) -> None:
    on_epoch()
    outcome.epochs = epoch + 1
    _check_epoch(config, epoch, loss, watch.elapsed)

  try:
    _check_size(config, trainer, genotype)
    variables, outcome.r2 = _initial_variables(config, trainer, candidate)
    watch.lap('mutate')
    trainer.compile(genotype)
    watch.lap('compile')
    outcome.fitness_before = measure(variables)[config.fitness]
    watch.lap('birth')
    # Only now, since tracing takes the interpreter, and that pass is short.
    trainer.compile_ahead(candidate.successors)
    key = random_key(config.seed, candidate.evaluation, Purpose.TRAINING)
    rates = learning_rates(config)
    variables = trainer.train(key, genotype, variables, rates, check_epoch)
    _check_finite(variables)
    watch.lap('train')
    outcome.measures = measures = measure(variables)
    if config.algorithm == 'population' and config.population.mate == 'complementary':
      outcome.correct = activations.correct(trainer, genotype, variables)
    watch.lap('evaluate')
    outcome.fitness, outcome.variables = measures[config.fitness], variables
  # The last is of a fit by least squares, of a child to its parents.
  except (
    _CandidateError,
    jax.errors.JaxRuntimeError,
    MemoryError,
    np.linalg.LinAlgError,
  ) as error:
    trainer.check_device()
    outcome.failure = ' '.join(f'{error}'.split())[:500] or type(error).__name__
    watch.lap('failure')
  return outcome


def _initial_variables(
  config: config_dict.ConfigDict, trainer: Trainer, candidate: Candidate
) -> tuple[Variables, float | None]:
  """Returns a candidate's variables before training, and R^2 of a fit at its seam."""
  with _fixed_blas_threads(config):
    return initialisation.initial_variables(
      random_key(config.seed, candidate.evaluation, Purpose.INITIALISATION),
      candidate.offspring,
      candidate.parent_variables,
      trainer,
      config,
    )


def _fixed_blas_threads(
  config: config_dict.ConfigDict,
) -> contextlib.AbstractContextManager[Any]:
  """Gives NumPy and SciPy in a population a number of threads that is no worker's own.

  It changes the rounding of matrix products and of least squares.
  """
  if config.algorithm != 'population':
    return contextlib.nullcontext()
  return _blas().limit(limits=config.population.cores_per_child, user_api='blas')


@functools.cache
def _blas() -> 'threadpoolctl.ThreadpoolController':
  """Returns the BLAS of NumPy and that of SciPy, which take a while to be found."""
  # Its BLAS is its own, and only what is loaded is found.
  import scipy.linalg  # noqa: F401
  import threadpoolctl

  return threadpoolctl.ThreadpoolController()


def _check_size(
  config: config_dict.ConfigDict, trainer: Trainer, genotype: Genotype
) -> None:
  """Raises _CandidateError if it is larger than the configuration allows."""
  shape, classes = trainer.image_shape, trainer.num_classes
  for name, size in (
    ('max_parameters', lambda: model.num_parameters(genotype, shape[-1], classes)),
    ('max_flops', lambda: flops.network_flops(genotype, shape, classes)),
  ):
    if config[name] is not None and (value := size()) > config[name]:
      raise _CandidateError(f'{value} is above {name}, {config[name]}')


def _check_epoch(
  config: config_dict.ConfigDict, epoch: int, loss: float, elapsed: float
) -> None:
  """Raises _CandidateError after an epoch that diverged, or took too long."""
  if not math.isfinite(loss):
    raise _CandidateError(f'the loss of epoch {epoch + 1} is {loss}')
  limit = config.max_seconds_per_evaluation
  if limit is not None and elapsed > limit:
    raise _CandidateError(f'it takes longer than max_seconds_per_evaluation, {limit}')


def _check_finite(variables: Variables) -> None:
  """Raises _CandidateError if the last step diverged: no loss is taken after it."""
  if (name := training.not_finite(variables)) is not None:
    raise _CandidateError(f'{name} is not finite after training')
