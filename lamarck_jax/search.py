"""The search: ask, inherit, train, tell, record; it resumes itself."""

from collections.abc import Callable, Mapping
import dataclasses
import datetime
import enum
import functools
import math
import os
import time
from typing import Any

from absl import logging
import jax
from ml_collections import config_dict

from lamarck_jax import (
  completion,
  evolution,
  flops,
  inheritance,
  model,
  mutation,
  net2net,
)
from lamarck_jax import config as config_lib
from lamarck_jax.data import datasets
from lamarck_jax.errors import DamagedError, UserError
from lamarck_jax.evolution import EvolutionState, Individual
from lamarck_jax.genotype import Genotype, SearchSpace
from lamarck_jax.model import Variables
from lamarck_jax.run_directory import lock, records
from lamarck_jax.run_directory.progress import Progress, print_dataset
from lamarck_jax.runtime import allocator, environment
from lamarck_jax.training import Trainer

Event = dict[str, Any]


class Purpose(enum.IntEnum):
  """What a random key is for; the numbers are part of what a seed means."""

  MUTATION = 0
  NICHING = 1
  INITIALISATION = 2
  TRAINING = 3
  COMPLETION = 4


def random_key(seed: int, evaluation: int, purpose: Purpose) -> jax.Array:
  """Returns the key of one use of randomness.

  Keys are folded, never carried along, so a resumed search draws the same.

  Args:
    seed: The seed of the search.
    evaluation: Index of the evaluation that the key is for.
    purpose: What it is for.
  """
  key = jax.random.fold_in(jax.random.key(seed), evaluation)
  return jax.random.fold_in(key, purpose)


@dataclasses.dataclass(frozen=True)
class SearchState:
  """The algorithm's state and the checkpoints: a fold of `tell` over the events.

  Attributes:
    seed: The seed of the search.
    evolution: State of the (1+1)-EA.
    checkpoints: The best individual so far at each budget, in epochs.
  """

  seed: int
  evolution: EvolutionState
  checkpoints: dict[int, Individual | None]

  def tell(self, child: Genotype, fitness: float | None) -> 'SearchState':
    """Returns the state after an evaluation, as `evolution.tell` does."""
    key = random_key(self.seed, self.evolution.num_evaluations, Purpose.NICHING)
    state = evolution.tell(key, self.evolution, child, fitness)
    checkpoints = {
      # The last evaluation may exceed the whole budget; it counts all the same.
      budget: state.best
      if state.epochs_used <= budget or budget == state.budget_epochs
      else best
      for budget, best in self.checkpoints.items()
    }
    return SearchState(self.seed, state, checkpoints)

  @property
  def living(self) -> set[int]:
    """The evaluations of the individuals that can still have children."""
    niche = self.evolution.niche
    individuals = {self.evolution.parent, niche.origin if niche else None}
    return {individual.evaluation for individual in individuals if individual}

  @property
  def needed(self) -> set[int]:
    """The evaluations whose weights are still needed."""
    best = self.checkpoints.values()
    return self.living | {individual.evaluation for individual in best if individual}


def initial_state(config: config_dict.ConfigDict) -> SearchState:
  """Returns the state before the first evaluation of a configuration."""
  space = config.search_space
  state = evolution.init(
    SearchSpace(
      tuple(space.filters),
      tuple(space.kernel_sizes),
      tuple(space.strides),
      space.max_downsampling,
    ),
    budget_epochs=config.budget_epochs,
    epochs_per_evaluation=config.epochs_per_evaluation,
    niching_rate=config.niching.rate,
    niching_iterations=config.niching.iterations,
  )
  budgets = [n for n in config.checkpoint_epochs if n < config.budget_epochs]
  return SearchState(
    config.seed, state, dict.fromkeys([*budgets, config.budget_epochs])
  )


def learning_rates(config: config_dict.ConfigDict) -> list[float]:
  """Returns the learning rate of every epoch of an evaluation.

  The paper's is constant (Section 4.2). A cosine goes from it to 0 within the
  evaluation, and each epoch has the rate of its middle.

  Args:
    config: The configuration.
  """
  epochs = config.epochs_per_evaluation
  if config.learning_rate_schedule == 'constant':
    return [config.learning_rate] * epochs
  return [
    config.learning_rate * (1 + math.cos(math.pi * (epoch + 0.5) / epochs)) / 2
    for epoch in range(epochs)
  ]


def run(
  config: config_dict.ConfigDict,
  workdir: str | os.PathLike[str],
  on_event: Callable[[Event], None] | None = None,
) -> dict[str, Any]:
  """Runs a search, or goes on with the one in the directory.

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
  if records.read_result(workdir) is not None:
    result = records.RunDirectory(workdir, config.to_dict()).read_result()
    assert result is not None
    logging.info('%s holds a finished search', workdir)
    return result
  records.check(workdir, config.to_dict())

  dataset = datasets.load(**config.dataset)
  if len(dataset.train.labels) < config.batch_size:
    raise UserError(
      f'config.batch_size: got {config.batch_size}, want at most the number of'
      f' training examples, {len(dataset.train.labels)}'
    )
  trainer = Trainer(
    dataset, batch_size=config.batch_size, compute_dtype=config.compute_dtype
  )
  with lock.locked(workdir):
    directory = records.RunDirectory(workdir, config.to_dict())
    start = {
      'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
      **environment.machine(),
    }
    directory.write_start(dataset.description, start)
    print_dataset(dataset.description)
    return _run(config, directory, trainer, on_event)


def _run(
  config: config_dict.ConfigDict,
  directory: records.RunDirectory,
  trainer: Trainer,
  on_event: Callable[[Event], None] | None,
) -> dict[str, Any]:
  """Runs a search in a directory that no other process uses; see `run`."""
  # Restore ------------------------------------------------------------------
  state, living, events = _restore(config, directory, trainer)
  directory.keep_weights(state.needed)
  if events:
    logging.info('going on after %d evaluations in %s', len(events), directory.path)

  # Search -------------------------------------------------------------------
  with Progress(config.budget_epochs, state.evolution.epochs_used) as progress:
    while not state.evolution.done:
      state, living, event = _evaluate(
        config, state, living, trainer, directory, progress
      )
      events.append(event)
      if on_event:
        on_event(event)

  # Complete -----------------------------------------------------------------
  best = state.evolution.best
  if best is None:
    raise UserError(
      f'search: none of {len(events)} networks could be evaluated; the last:'
      f' {events[-1]["failure"]}'
    )
  result = {
    'best': {
      'evaluation': best.evaluation,
      **best.genotype.to_json(),
      'fitness': best.fitness,
    },
    'num_evaluations': state.evolution.num_evaluations,
    'epochs_used': state.evolution.epochs_used,
    'flops': sum(event['flops'] for event in events),
    'seconds': round(sum(event['seconds']['total'] for event in events), 3),
    'checkpoints': [],
  }
  if config.completion.enabled:
    for budget, individual in state.checkpoints.items():
      if individual is None:
        continue  # The first evaluation alone exceeded this budget.
      key = random_key(config.seed, individual.evaluation, Purpose.COMPLETION)
      rates = completion.schedule(config)
      outcome = completion.complete(key, individual, directory, trainer, rates)
      result['checkpoints'].append({'epochs': budget, **outcome})
  directory.write_result(result)
  return result


def _restore(
  config: config_dict.ConfigDict, directory: records.RunDirectory, trainer: Trainer
) -> tuple[SearchState, dict[int, Variables], list[Event]]:
  """Reads how far a search has come.

  Where weights that are needed are damaged, the search goes back to the last event for
  which they are not, and repeats what followed.

  Returns:
    The state, the variables of the individuals that can have children, the events.
  """
  events = directory.read_events()
  states = [initial_state(config)]
  for event in events:
    fitness = None if event.get('failure') else event['fitness']
    states.append(states[-1].tell(Genotype.from_json(event), fitness))

  @functools.cache
  def read(number: int) -> Variables:
    variables = directory.read_weights(number)
    genotype = Genotype.from_json(events[number])
    model.check_variables(
      variables, genotype, trainer.image_shape[-1], trainer.num_classes
    )
    return variables

  damage = ''
  for count in reversed(range(len(states))):
    try:
      needed = {number: read(number) for number in states[count].needed}
      break
    except (DamagedError, ValueError) as error:
      damage = damage or str(error)
  if damage:
    logging.warning(
      '%s; going back from evaluation %d to %d', damage, len(events), count
    )
    directory.keep_events(count)
  state = states[count]
  living = {number: needed[number] for number in state.living}
  return state, living, events[:count]


def _evaluate(
  config: config_dict.ConfigDict,
  state: SearchState,
  living: Mapping[int, Variables],
  trainer: Trainer,
  directory: records.RunDirectory,
  progress: Progress,
) -> tuple[SearchState, dict[int, Variables], Event]:
  """Makes, trains, evaluates and records one child.

  Args:
    config: The configuration.
    state: The state of the search.
    living: Variables of the individuals that can have children, by evaluation.
    trainer: The trainer of the data set.
    directory: The run directory.
    progress: What a person sees.

  Returns:
    The new state, the variables of the individuals living in it, the event.
  """
  evaluation, parent = state.evolution.num_evaluations, state.evolution.parent
  key = functools.partial(random_key, config.seed, evaluation)
  stopwatch = _Stopwatch()

  child = evolution.ask(key(Purpose.MUTATION), state.evolution)
  network_flops = flops.network_flops(child, trainer.image_shape, trainer.num_classes)
  variables: Variables = {}
  fitness_at_birth = fitness = failure = None
  try:
    _check_limits(config, child, network_flops, trainer)
    if parent is None:
      variables = model.init_variables(
        key(Purpose.INITIALISATION), child, trainer.image_shape[-1], trainer.num_classes
      )
    else:
      variables = _inherit(
        config,
        key(Purpose.INITIALISATION),
        parent.genotype,
        living[parent.evaluation],
        child,
        trainer,
      )
    stopwatch.lap('mutate')

    progress.training(evaluation, child)
    trainer.compile(child)
    stopwatch.lap('compile')
    _compile_ahead(state, child, trainer)
    fitness_at_birth = trainer.accuracy(child, variables, 'validation')
    stopwatch.lap('birth')
    variables = trainer.train(
      key(Purpose.TRAINING),
      child,
      variables,
      learning_rates(config),
      on_epoch=functools.partial(_check_epoch, config, stopwatch, progress),
    )
    stopwatch.lap('train')
    fitness = trainer.accuracy(child, variables, 'validation')
    stopwatch.lap('evaluate')
  except (_CandidateError, jax.errors.JaxRuntimeError, MemoryError) as error:
    trainer.check_device()
    failure = ' '.join(f'{error}'.split())[:500] or type(error).__name__
    logging.warning('evaluation %d of %s failed: %s', evaluation, child, failure)

  niche = state.evolution.niche
  state = state.tell(child, fitness)
  if evaluation in state.needed:
    directory.write_weights(evaluation, variables)
  stopwatch.lap('record')

  examples = config.epochs_per_evaluation * trainer.examples_per_epoch
  best = state.evolution.best
  event = {
    'evaluation': evaluation,
    **child.to_json(),
    'parent': parent.evaluation if parent else None,
    'mutation': mutation.describe(parent.genotype, child) if parent else [],
    'fitness_at_birth': fitness_at_birth,
    'fitness': fitness or 0.0,
    'failure': failure,
    'accepted': fitness is not None and (parent is None or fitness > parent.fitness),
    'niche': niche.origin.evaluation if niche else None,
    'epochs_used': state.evolution.epochs_used,
    'flops': examples * network_flops,
    'seconds': stopwatch.seconds,
    'best_fitness': best.fitness if best else 0.0,
  }
  directory.append_event(event)
  directory.keep_weights(state.needed)
  progress.evaluated(event, child, examples / stopwatch.seconds.get('train', math.inf))

  allocator.release_freed_memory()  # What compilers left behind, above all.
  candidates = {**living, evaluation: variables}
  return state, {number: candidates[number] for number in state.living}, event


def _inherit(
  config: config_dict.ConfigDict,
  key: jax.Array,
  parent: Genotype,
  parent_variables: Variables,
  child: Genotype,
  trainer: Trainer,
) -> Variables:
  """Returns a child's variables by the configuration's mode of inheritance."""
  moments = None
  if config.inheritance == 'net2net':
    moments = net2net.moments(trainer.activations(parent, parent_variables))
  return inheritance.inherit(
    key,
    parent,
    parent_variables,
    child,
    config.inheritance,
    parent_moments=moments,
    image_shape=trainer.image_shape[:2],
    noise=config.inheritance_noise,
  )


class _CandidateError(Exception):
  """A candidate is above a limit, or its training diverged."""


def _check_limits(
  config: config_dict.ConfigDict, child: Genotype, network_flops: int, trainer: Trainer
) -> None:
  """Raises _CandidateError if a child is larger than the configuration allows."""
  parameters = model.num_parameters(child, trainer.image_shape[-1], trainer.num_classes)
  for name, value in (('max_parameters', parameters), ('max_flops', network_flops)):
    if config[name] is not None and value > config[name]:
      raise _CandidateError(f'{value} is above {name}, {config[name]}')


def _check_epoch(
  config: config_dict.ConfigDict,
  stopwatch: '_Stopwatch',
  progress: Progress,
  epoch: int,
  loss: float,
) -> None:
  """Raises _CandidateError after an epoch that went wrong, or took too long."""
  progress.epoch()
  if not math.isfinite(loss):
    raise _CandidateError(f'the loss of epoch {epoch + 1} is {loss}')
  limit = config.max_seconds_per_evaluation
  if limit is not None and stopwatch.elapsed > limit:
    raise _CandidateError(f'it takes longer than max_seconds_per_evaluation, {limit}')


def _compile_ahead(state: SearchState, child: Genotype, trainer: Trainer) -> None:
  """Begins to compile what may come after a child, while it is trained.

  The next child depends on this one's fitness only in whether it is accepted.

  Args:
    state: The state in which the child was made.
    child: The child.
    trainer: The trainer of the data set.
  """
  genotypes = []
  for fitness in (-1.0, 2.0):  # Worse than any, and better than any.
    following = state.tell(child, fitness)
    if not following.evolution.done:
      key = random_key(
        state.seed, following.evolution.num_evaluations, Purpose.MUTATION
      )
      genotypes.append(evolution.ask(key, following.evolution))
  trainer.compile_ahead(genotypes)


class _Stopwatch:
  """Measures the phases of an evaluation.

  Attributes:
    seconds: Duration of every phase so far, and their `total`.
  """

  def __init__(self) -> None:
    self._start = self._last = time.monotonic()
    self.seconds = {'total': 0.0}

  @property
  def elapsed(self) -> float:
    """Seconds since the start."""
    return time.monotonic() - self._start

  def lap(self, phase: str) -> None:
    """Ends a phase."""
    now = time.monotonic()
    self.seconds[phase] = round(now - self._last, 4)
    self.seconds['total'] = round(self.seconds['total'] + now - self._last, 4)
    self._last = now
