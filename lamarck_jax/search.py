"""The search: ask, evaluate, tell, record (Section 3.1); it resumes.

`_search` has the loop over generations, of which the (1+1)-EA has one child each.
`trial` has what happens to a child, here or in a worker. How the run is recorded
and restored is in `run_directory`.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import datetime
import itertools
import math
import os
from typing import Any

from absl import logging
from ml_collections import config_dict

from lamarck_jax import (
  completion,
  flops,
  initialisation,
  model,
  population,
  trial,
  warm_start,
)
from lamarck_jax import config as config_lib
from lamarck_jax.data.source import Source
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
from lamarck_jax.trial import Candidate, Outcome
from lamarck_jax.workers.pool import Workers

Event = dict[str, Any]


@jax_settings.applied()
def run(
  config: config_dict.ConfigDict,
  workdir: str | os.PathLike[str],
  on_event: Callable[[Event], None] | None = None,
  workers: Workers | None = None,
  source: Source | None = None,
) -> dict[str, Any]:
  """Runs a search, or resumes the one in the directory.

  Inside, this thread has the settings of JAX that a search needs (`jax_settings`).

  Args:
    config: A configuration, see `lamarck_jax.config`.
    workdir: The run directory; made if it is not there.
    on_event: Called with the event of every evaluation once it is recorded.
    workers: They train the children of a generation side by side, see
      `lamarck_jax.workers`, and are closed at the end. By default this process trains
      one child after another.
    source: The data set, if the program has it as arrays; see `data.arrays`.

  Returns:
    The content of `result.json`.

  Raises:
    UserError: If the configuration, the directory or the data set is unfit, or another
      process is in the directory.
    StorageError: If the directory cannot be written any more.
  """
  with contextlib.closing(workers) if workers else contextlib.nullcontext():
    config_lib.validate(config)
    workdir = paths.local('workdir', workdir)
    records.check(workdir, config.to_dict())
    if (result := history.read_result(workdir)) is not None:
      compared = dataset_record.check_finished(config.dataset, workdir, source)
      what = 'the same data' if compared else 'its data were not compared'
      logging.info('%s holds a finished search; %s', workdir, what)
      return result
    warm_start.check(config, workdir)
    if workers:
      workers.start(config)  # They start JAX while this process reads the data.
    dataset, dataset_of_run = dataset_record.load(config.dataset, workdir, source)
    devices.check_platform()
    start = warm_start.load(config, workdir, dataset_of_run)
    trainer = trial.make_trainer(config, dataset)
    if workers:
      workers.send_dataset(dataset)
    del dataset  # The device has it now.
    with contextlib.closing(trainer), lock.locked(workdir) as folder:
      directory = records.RunDirectory(workdir, config.to_dict(), folder)
      warm_start.record(start, directory)
      _write_start(directory, trainer, dataset_of_run)
      state = _search(config, directory, trainer, start, workers, on_event)
      if workers:
        workers.close()  # Completion has the machine to itself.
      outcomes = _complete(config, state, directory, trainer)
      result = history.result(directory.read_events(), state.evolution.best, outcomes)
      directory.write_result(result)
  return result


def _write_start(
  directory: records.RunDirectory,
  trainer: Trainer,
  dataset_of_run: dataset_record.DatasetRecord,
) -> None:
  """Records and prints what the run starts with."""
  time = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
  directory.write_dataset(dataset_of_run)
  directory.write_start(trainer.description, {'time': time, **environment.machine()})
  print_dataset(trainer.description)


def _search(
  config: config_dict.ConfigDict,
  directory: records.RunDirectory,
  trainer: Trainer,
  start: warm_start.Source | None,
  workers: Workers | None,
  on_event: Callable[[Event], None] | None,
) -> SearchState:
  """Runs the algorithm to the end of the budget, from where the directory has it."""
  *_, channels = trainer.image_shape

  def shapes(genotype: Genotype) -> Variables:
    return model.variable_shapes(genotype, channels, trainer.num_classes)

  initial = initial_state(config, initialisation.preference(config, trainer))
  state, living = history.restore(directory, initial, shapes)
  state = warm_start.begin(state, start, directory, trainer.class_names)
  with Progress(config.budget_epochs, state.evolution.epochs_used) as progress:
    while not state.evolution.done:
      generation = _ask(state, living)
      if workers:
        outcomes = workers.evaluate(generation, progress)
      else:
        outcomes = trial.one_by_one(config, trainer, generation, progress)
      for candidate in generation:
        outcome = next(outcomes)
        if outcome.variables is not None:
          living[candidate.evaluation] = outcome.variables
        else:
          name = f'evaluation {candidate.evaluation} of {candidate.genotype}'
          logging.warning('%s failed: %s', name, outcome.failure)
        asked, state = (
          state,
          state.tell(candidate.genotype, outcome.fitness, outcome.correct),
        )
        event = _event(config, trainer, asked, candidate, outcome, state)
        _record(directory, event, outcome, state)
        rate = _examples(config, trainer) / outcome.seconds.get('train', math.inf)
        progress.evaluated(event, candidate.genotype, rate)
        living = {number: living[number] for number in state.living}
        if on_event:
          on_event(event)
        allocator.release_freed_memory()  # What compilers left behind, above all.
  return state


def _examples(config: config_dict.ConfigDict, trainer: Trainer) -> int:
  """Returns the number of training examples that an evaluation sees."""
  return config.epochs_per_evaluation * trainer.examples_per_epoch


def _ask(state: SearchState, living: Mapping[int, Variables]) -> list[Candidate]:
  """Returns the children that can be evaluated side by side."""
  offspring = state.ask()
  genotypes = [child.genotype for child in offspring]
  successors = [tuple(genotypes[i : i + 1]) for i in range(1, len(genotypes) + 1)]
  if len(genotypes) == 1:
    successors = [tuple(_guesses(state, *genotypes))]
  return [
    Candidate(
      evaluation,
      child,
      tuple(living[parent.evaluation] for parent in child.parents),
      following,
    )
    for evaluation, child, following in zip(
      itertools.count(state.evolution.num_evaluations), offspring, successors
    )
  ]


def _guesses(state: SearchState, child: Genotype) -> Iterator[Genotype]:
  """Yields the networks that may come after an only child.

  Keys are folded, so they depend on its fitness only in whether it wins.
  """
  for fitness in (-1.0, 2.0):  # Worse than any, and better than any.
    following = state.tell(child, fitness)
    if not following.evolution.done:
      yield following.ask()[0].genotype


def _event(
  config: config_dict.ConfigDict,
  trainer: Trainer,
  asked: SearchState,
  candidate: Candidate,
  outcome: Outcome,
  told: SearchState,
) -> Event:
  """Returns the event of an evaluation.

  Args:
    asked: The state that asked for the candidate.
    told: The one that has been told its fitness.
  """
  before, best = asked.evolution, told.evolution.best
  parents, genotype = candidate.offspring.parents, candidate.genotype
  operations = flops.network_flops(genotype, trainer.image_shape, trainer.num_classes)
  event = {
    'evaluation': candidate.evaluation,
    **genotype.to_json(),
    'parent': parents[0].evaluation if parents else None,
    'mutation': candidate.offspring.operators,
    'fitness_at_birth': outcome.fitness_before,
    'fitness': outcome.fitness or 0.0,
    **outcome.measures,
    'failure': outcome.failure,
    'accepted': asked.accepts(genotype, outcome.fitness),
    'niche': before.niche.origin.evaluation if before.niche else None,
    'epochs_used': told.evolution.epochs_used,
    'flops': outcome.epochs * trainer.examples_per_epoch * operations,
    'seconds': outcome.seconds,
    'best_fitness': best.fitness if best else 0.0,
  }
  if before.preference.standard_errors:
    event['best'] = best.evaluation if best else None
  if isinstance(before, population.PopulationState):
    event |= population.event_fields(
      before, candidate.offspring, outcome.r2, outcome.correct
    )
  return event


def _record(
  directory: records.RunDirectory, event: Event, outcome: Outcome, state: SearchState
) -> None:
  """Writes an event, after the weights that the state needs."""
  watch = stopwatch.Stopwatch()
  evaluation = event['evaluation']
  if evaluation in state.needed and outcome.variables is not None:
    directory.write_weights(evaluation, outcome.variables)
  watch.lap('record')
  total = event['seconds']['total'] + watch.seconds['total']
  event['seconds'] |= {'record': watch.seconds['record'], 'total': round(total, 4)}
  directory.append_event(event)
  directory.keep_weights(state.needed)


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
