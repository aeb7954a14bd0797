"""The search: ask, inherit, train, evaluate, tell, record (Section 3.1); it resumes.

`_search` has the loop. A `Trial` is one child on its way through it, with its limits
and its clock. How the run is recorded and restored is in `run_directory`.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import datetime
import math
import os
from typing import Any

from absl import logging
import jax
from ml_collections import config_dict

from lamarck_jax import (
  completion,
  flops,
  initialisation,
  metrics,
  model,
  population,
  warm_start,
)
from lamarck_jax import config as config_lib
from lamarck_jax.data.augmentation import Augmentation
from lamarck_jax.genotype import Genotype
from lamarck_jax.model import Variables
from lamarck_jax.run_directory import dataset_record, history, lock, records
from lamarck_jax.run_directory.progress import Progress, print_dataset
from lamarck_jax.runtime import (
  allocator,
  devices,
  environment,
  jax_settings,
  paths,
  stopwatch,
)
from lamarck_jax.search_state import (
  Purpose,
  SearchState,
  initial_state,
  random_key,
)
from lamarck_jax.training import Trainer

Event = dict[str, Any]


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


@jax_settings.applied()
def run(
  config: config_dict.ConfigDict,
  workdir: str | os.PathLike[str],
  on_event: Callable[[Event], None] | None = None,
) -> dict[str, Any]:
  """Runs a search, or resumes the one in the directory.

  Inside, this thread has the settings of JAX that a search needs (`jax_settings`).

  Args:
    config: A configuration, see `lamarck_jax.config`.
    workdir: The run directory; made if it is not there.
    on_event: Called with the event of every evaluation once it is recorded.

  Returns:
    The content of `result.json`.

  Raises:
    UserError: If the configuration, the directory or the data set is unfit, or another
      process is in the directory.
    StorageError: If the directory cannot be written any more.
  """
  config_lib.validate(config)
  workdir = paths.local('workdir', workdir)
  records.check(workdir, config.to_dict())
  if (result := history.read_result(workdir)) is not None:
    dataset_record.check_finished(config.dataset, workdir)
    logging.info('%s holds a finished search', workdir)
    return result
  warm_start.check(config, workdir)
  dataset, dataset_of_run = dataset_record.load(config.dataset, workdir)
  devices.check_platform()
  source = warm_start.load(config, workdir)
  trainer = Trainer(
    dataset,
    batch_size=config.batch_size,
    compute_dtype=config.compute_dtype,
    augmentation=Augmentation(**config.augmentation),
    class_weights=config.class_weights,
  )
  del dataset  # The device has it now.
  with contextlib.closing(trainer), lock.locked(workdir) as folder:
    directory = records.RunDirectory(workdir, config.to_dict(), folder)
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    directory.write_dataset(dataset_of_run)
    warm_start.record(source, directory)
    directory.write_start(trainer.description, {'time': time, **environment.machine()})
    print_dataset(trainer.description)
    state = _search(config, directory, trainer, source, on_event)
    outcomes = _complete(config, state, directory, trainer)
    result = history.result(directory.read_events(), state.evolution.best, outcomes)
    directory.write_result(result)
  return result


def _search(
  config: config_dict.ConfigDict,
  directory: records.RunDirectory,
  trainer: Trainer,
  source: warm_start.Source | None,
  on_event: Callable[[Event], None] | None,
) -> SearchState:
  """Runs the algorithm to the end of the budget, from where the directory has it."""
  *_, channels = trainer.image_shape

  def shapes(genotype: Genotype) -> Variables:
    return model.variable_shapes(genotype, channels, trainer.num_classes)

  initial = initial_state(config, initialisation.preference(config, trainer))
  state, living = history.restore(directory, initial, shapes)
  state = warm_start.begin(state, source, directory, trainer.class_names)
  with Progress(config.budget_epochs, state.evolution.epochs_used) as progress:
    while not state.evolution.done:
      trial = Trial(config, state, trainer, progress)
      with trial.failures_noted():
        variables = trial.inherit(living)
        variables = trial.train(variables)
        trial.fitness = trial.evaluate(variables)
        living[trial.evaluation] = variables
      state = state.tell(trial.child, trial.fitness)
      event = _record(directory, trial, state, living)
      living = {number: living[number] for number in state.living}
      if on_event:
        on_event(event)
      allocator.release_freed_memory()  # What compilers left behind, above all.
  return state


class Trial:
  """One child on its way through the loop.

  Attributes:
    state: The state of the search that asked for it.
    evaluation: Index of the evaluation.
    offspring: What the search has asked for.
    child: Its genotype.
    r2: Of the fit behind a crossover's seam, if there was one.
    fitness_before: Its validation accuracy before training, if it got that far.
    fitness: The same after training.
    measures: Each of `metrics.MEASURES` after training, once they are known.
    failure: Why it could not be evaluated, or None.
    flops: Operations to classify one example.
    examples: Number of training examples that it sees.
    stopwatch: The time that each phase takes.
    progress: What a person sees.
  """

  def __init__(
    self,
    config: config_dict.ConfigDict,
    state: SearchState,
    trainer: Trainer,
    progress: Progress,
  ):
    """Asks for the child, and starts the clock."""
    self.stopwatch = stopwatch.Stopwatch()
    self.state, self.evaluation = state, state.evolution.num_evaluations
    self.offspring = state.ask()[0]
    self.child = self.offspring.genotype
    self.r2: float | None = None
    self.fitness_before: float | None = None
    self.fitness: float | None = None
    self.measures: Mapping[str, float | None] = dict.fromkeys(metrics.MEASURES)
    self.failure: str | None = None
    shape = trainer.image_shape
    self.flops = flops.network_flops(self.child, shape, trainer.num_classes)
    self.examples = config.epochs_per_evaluation * trainer.examples_per_epoch
    self.progress = progress
    self._config, self._trainer = config, trainer

  def inherit(self, living: Mapping[int, Variables]) -> Variables:
    """Returns the child's initial variables, made from its parents' if it has any."""
    self._check_size()
    key, parents = self.state.key(Purpose.INITIALISATION), self.offspring.parents
    variables, self.r2 = initialisation.initial_variables(
      key,
      self.offspring,
      [living[parent.evaluation] for parent in parents],
      self._trainer,
      self._config,
    )
    self.stopwatch.lap('mutate')
    return variables

  def train(self, variables: Variables) -> Variables:
    """Returns the variables after e epochs; measures the accuracy before as well."""
    trainer, child = self._trainer, self.child
    self.progress.training(self.evaluation, child)
    trainer.compile(child)
    self.stopwatch.lap('compile')
    self.fitness_before = self._measure(variables)[self._config.fitness]
    self.stopwatch.lap('birth')
    # Only now, since tracing takes the interpreter, and that pass is short.
    trainer.compile_ahead(list(self._successors()))
    key, rates = self.state.key(Purpose.TRAINING), learning_rates(self._config)
    variables = trainer.train(key, child, variables, rates, self._check_epoch)
    self.stopwatch.lap('train')
    return variables

  def evaluate(self, variables: Variables) -> float:
    """Returns the fitness, a measure on the validation split."""
    self.measures = measures = self._measure(variables)
    self.stopwatch.lap('evaluate')
    return measures[self._config.fitness]

  def _measure(self, variables: Variables) -> dict[str, float]:
    confusion = self._trainer.confusion(self.child, variables, 'validation')
    return metrics.measures(confusion)

  @contextlib.contextmanager
  def failures_noted(self) -> Iterator[None]:
    """Notes why a child cannot be evaluated; a broken device ends the search."""
    try:
      yield
    except (_CandidateError, jax.errors.JaxRuntimeError, MemoryError) as error:
      self._trainer.check_device()
      self.failure = ' '.join(f'{error}'.split())[:500] or type(error).__name__
      logging.warning(
        'evaluation %d of %s failed: %s', self.evaluation, self.child, self.failure
      )

  def _check_size(self) -> None:
    """Raises _CandidateError if the child is larger than the configuration allows."""
    *_, channels = self._trainer.image_shape
    classes = self._trainer.num_classes
    parameters = model.num_parameters(self.child, channels, classes)
    for name, value in (('max_parameters', parameters), ('max_flops', self.flops)):
      if self._config[name] is not None and value > self._config[name]:
        raise _CandidateError(f'{value} is above {name}, {self._config[name]}')

  def _check_epoch(self, epoch: int, loss: float) -> None:
    """Raises _CandidateError after an epoch that diverged, or took too long."""
    self.progress.epoch()
    if not math.isfinite(loss):
      raise _CandidateError(f'the loss of epoch {epoch + 1} is {loss}')
    limit = self._config.max_seconds_per_evaluation
    if limit is not None and self.stopwatch.elapsed > limit:
      raise _CandidateError(f'it takes longer than max_seconds_per_evaluation, {limit}')

  def _successors(self) -> Iterator[Genotype]:
    """Yields the children that may come next.

    Keys are folded, so they depend on this one's fitness only in whether it wins.
    """
    for fitness in (-1.0, 2.0):  # Worse than any, and better than any.
      following = self.state.tell(self.child, fitness)
      if not following.evolution.done:
        yield following.ask()[0].genotype


class _CandidateError(Exception):
  """A candidate is above a limit, or its training diverged."""


def _record(
  directory: records.RunDirectory,
  trial: Trial,
  state: SearchState,
  variables: Mapping[int, Variables],
) -> Event:
  """Writes a trial and the weights that the state after it needs; returns the event."""
  if trial.evaluation in state.needed:
    directory.write_weights(trial.evaluation, variables[trial.evaluation])
  trial.stopwatch.lap('record')
  seconds, child, fitness = trial.stopwatch.seconds, trial.child, trial.fitness
  before, best = trial.state.evolution, state.evolution.best
  parents = trial.offspring.parents
  event = {
    'evaluation': trial.evaluation,
    **child.to_json(),
    'parent': parents[0].evaluation if parents else None,
    'mutation': trial.offspring.operators,
    'fitness_at_birth': trial.fitness_before,
    'fitness': fitness or 0.0,
    **trial.measures,
    'failure': trial.failure,
    'accepted': trial.state.accepts(child, fitness),
    'niche': before.niche.origin.evaluation if before.niche else None,
    'epochs_used': state.evolution.epochs_used,
    'flops': trial.examples * trial.flops,
    'seconds': seconds,
    'best_fitness': best.fitness if best else 0.0,
  }
  if before.preference.standard_errors:
    event['best'] = best.evaluation if best else None
  if isinstance(before, population.PopulationState):
    event |= population.event_fields(before, trial.offspring, trial.r2)
  directory.append_event(event)
  directory.keep_weights(state.needed)
  examples_per_second = trial.examples / seconds.get('train', math.inf)
  trial.progress.evaluated(event, child, examples_per_second)
  return event


def _complete(
  config: config_dict.ConfigDict,
  state: SearchState,
  directory: records.RunDirectory,
  trainer: Trainer,
) -> list[dict[str, Any]]:
  """Trains the checkpoints to completion; returns their outcomes (Section 4.1)."""
  outcomes: list[dict[str, Any]] = []
  if not config.completion.enabled:
    return outcomes
  for budget, individual in state.checkpoints.items():
    if individual is None:
      continue  # The first evaluation alone exceeded this budget.
    key = random_key(config.seed, individual.evaluation, Purpose.COMPLETION)
    rates, shrink = completion.schedule(config), config.completion.shrink
    outcome = completion.complete(key, individual, directory, trainer, rates, shrink)
    outcomes.append({'epochs': budget, **outcome})
  return outcomes
