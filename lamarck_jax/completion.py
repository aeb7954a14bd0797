"""Trains checkpoints to completion and tests them (Sections 4.1 and 4.2)."""

import time
from typing import Any

from absl import logging
import jax
from ml_collections import config_dict
import numpy as np

from lamarck_jax.errors import DamagedError
from lamarck_jax.evolution import Individual
from lamarck_jax.model import Variables
from lamarck_jax.run_directory import records
from lamarck_jax.run_directory.progress import CompletionProgress
from lamarck_jax.training import Trainer, TrainingState

# Saves on the way may take this share of the time.
_SAVING_SHARE = 0.05


def schedule(config: config_dict.ConfigDict) -> list[float]:
  """Returns the learning rate of every epoch.

  Args:
    config: The configuration; `completion.epochs` has the end of each phase,
      `completion.learning_rates` its rate.
  """
  rates: list[float] = []
  for end, rate in zip(config.completion.epochs, config.completion.learning_rates):
    rates += [rate] * (end - len(rates))
  return rates


def complete(
  key: jax.Array,
  individual: Individual,
  directory: records.RunDirectory,
  trainer: Trainer,
  learning_rates: list[float],
) -> dict[str, Any]:
  """Trains an individual on from its saved weights, and tests it once.

  The outcome and the final weights go to the run directory; where they are there
  already, nothing is trained. On the way the state of the training goes there too, and
  an interrupted completion goes on from it.

  Args:
    key: A JAX random key.
    individual: The individual; its weights are in the directory.
    directory: The run directory.
    trainer: The trainer of the search's data set.
    learning_rates: The learning rate of every epoch.

  Returns:
    `evaluation`, the genotype's fields, `fitness` before completion, and after it
    `validation_accuracy`, `test_accuracy`, `test_accuracy_by_class` (None for a class
    without test examples) and `seconds`.
  """
  outcome = directory.read_completed(individual.evaluation)
  if outcome is not None:
    return outcome
  start = time.monotonic()
  genotype, num_epochs = individual.genotype, len(learning_rates)
  state, first_epoch = _restore(individual, directory, trainer)
  last_save, save_seconds = start, 0.0
  with CompletionProgress(
    individual.evaluation, genotype, num_epochs, first_epoch
  ) as progress:
    for epoch in range(first_epoch, num_epochs):
      rate = learning_rates[epoch]
      state, _ = trainer.train_epoch(key, genotype, state, epoch, rate)
      progress.epoch()
      now = time.monotonic()
      if save_seconds <= _SAVING_SHARE * (now - last_save):
        _save(individual, directory, state, epoch + 1)
        last_save = time.monotonic()
        save_seconds = last_save - now
    outcome = _outcome(individual, state.variables, trainer)
    outcome['seconds'] = round(time.monotonic() - start, 3)
    directory.write_completed(individual.evaluation, outcome, state.variables)
    progress.tested(outcome)
  return outcome


def _outcome(
  individual: Individual, variables: Variables, trainer: Trainer
) -> dict[str, Any]:
  """Returns what is recorded of a completed individual, but for the seconds."""
  genotype = individual.genotype
  correct = trainer.num_correct(genotype, variables, 'test')
  totals = trainer.num_examples('test')
  return {
    'evaluation': individual.evaluation,
    **genotype.to_json(),
    'fitness': individual.fitness,
    'validation_accuracy': trainer.accuracy(genotype, variables, 'validation'),
    'test_accuracy': int(correct.sum()) / int(totals.sum()),
    'test_accuracy_by_class': {
      name: int(right) / int(total) if total else None
      for name, right, total in zip(trainer.class_names, correct, totals)
    },
  }


def _save(
  individual: Individual,
  directory: records.RunDirectory,
  state: TrainingState,
  num_epochs: int,
) -> None:
  """Writes the state after so many epochs."""
  leaves = jax.tree.leaves(state)
  arrays = {f'{index:06d}': np.asarray(leaf) for index, leaf in enumerate(leaves)}
  content = {'num_epochs': np.asarray(num_epochs), 'state': arrays}
  directory.write_completing(individual.evaluation, content)


def _restore(
  individual: Individual, directory: records.RunDirectory, trainer: Trainer
) -> tuple[TrainingState, int]:
  """Returns the state that was saved last, and after how many epochs that was."""
  variables = directory.read_weights(individual.evaluation)
  state = trainer.initial_state(individual.genotype, variables)
  try:
    content = directory.read_completing(individual.evaluation)
    if content is None:
      return state, 0
    saved, num_epochs = content['state'], int(content['num_epochs'])
    leaves = [saved[name] for name in sorted(saved)]
    saved_state = jax.tree.unflatten(jax.tree.structure(state), leaves)
    jax.tree.map(_check_leaf, state, saved_state)
  except (DamagedError, LookupError, TypeError, ValueError) as error:
    logging.warning('%s; completing from the start', error)
    return state, 0
  return trainer.put_state(saved_state), num_epochs


def _check_leaf(expected: jax.Array, leaf: np.ndarray) -> None:
  """Raises ValueError if what was saved is not of the shape and type expected."""
  if (expected.shape, expected.dtype) != (leaf.shape, leaf.dtype):
    raise ValueError(f'got {leaf.dtype} {leaf.shape} where it trains {expected}')
