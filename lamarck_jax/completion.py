"""Trains checkpoints to completion, for the test set (Sections 4.1 and 4.2)."""

import time
from typing import Any

from absl import logging
import jax
from ml_collections import config_dict

from lamarck_jax import metrics, training
from lamarck_jax.errors import DamagedError
from lamarck_jax.evolution import Individual
from lamarck_jax.inheritance import shrink_and_perturb
from lamarck_jax.model import Variables
from lamarck_jax.run_directory import records, training_state
from lamarck_jax.run_directory.progress import CompletionProgress
from lamarck_jax.training import Trainer, TrainingState

# The share of the time that saving may take.
SAVING_SHARE = 0.05

# Folded into the key for fresh weights; training folds in the index of each epoch.
_FRESH = 2**31


def schedule(config: config_dict.ConfigDict) -> list[float]:
  """Returns the learning rate of every epoch of completion (Section 4.2).

  `completion.epochs` has the last epoch of each phase, `completion.learning_rates` its
  rate.
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
  shrink: float = 1.0,
) -> dict[str, Any]:
  """Trains an individual on from its weights, then evaluates it on the test set once.

  The outcome and the final weights go to the run directory; where they are there
  already, nothing is trained. The state of training is saved there on the way, and an
  interrupted completion is resumed from it.

  Args:
    key: Draws the permutations, the augmentation and the fresh weights.
    individual: Its weights are in the directory.
    learning_rates: The learning rate of every epoch.
    shrink: Share of its weights to start with, see `inheritance.shrink_and_perturb`.

  Returns:
    `evaluation`, the genotype's fields, `fitness` before completion, and after it
    `training_accuracy`, `validation_accuracy`, `test_accuracy`,
    `test_balanced_accuracy`, `test_accuracy_by_class` (None for a class without test
    examples), `test_confusion` [class, predicted class] and `seconds`.
  """
  outcome = directory.read_completed(individual.evaluation)
  if outcome is not None:
    return outcome
  start = time.monotonic()
  genotype, num_epochs = individual.genotype, len(learning_rates)
  variables = directory.read_weights(individual.evaluation)
  variables = shrink_and_perturb(jax.random.fold_in(key, _FRESH), variables, shrink)
  initial = trainer.initial_state(genotype, variables)
  state, first_epoch = _restore(initial, directory, individual.evaluation)
  state = trainer.put_state(state)
  last_save, save_seconds = start, 0.0
  with CompletionProgress(
    individual.evaluation, genotype, num_epochs, first_epoch
  ) as progress:
    for epoch in range(first_epoch, num_epochs):
      rate = learning_rates[epoch]
      state, _ = trainer.train_epoch(key, genotype, state, epoch, rate)
      progress.epoch()
      now = time.monotonic()
      if save_seconds <= SAVING_SHARE * (now - last_save):
        content = training_state.to_arrays(state, epoch + 1)
        directory.write_completing(individual.evaluation, content)
        last_save = time.monotonic()
        save_seconds = last_save - now
    variables = trainer.variables(genotype, state)
    if (name := training.not_finite(variables)) is not None:
      logging.warning(
        'completion of evaluation %d: %s is not finite, so its accuracies are a guess;'
        ' want lower completion.learning_rates',
        individual.evaluation,
        name,
      )
    outcome = _outcome(individual, variables, trainer)
    outcome['seconds'] = round(time.monotonic() - start, 3)
    directory.write_completed(individual.evaluation, outcome, variables)
    progress.tested(outcome)
  return outcome


def _outcome(
  individual: Individual, variables: Variables, trainer: Trainer
) -> dict[str, Any]:
  """Returns what is recorded of a completed individual, but for the seconds."""
  genotype = individual.genotype
  confusion = trainer.confusion(genotype, variables, 'test')
  by_class = metrics.accuracy_by_class(confusion)
  return {
    'evaluation': individual.evaluation,
    **genotype.to_json(),
    'fitness': individual.fitness,
    'training_accuracy': trainer.accuracy(genotype, variables, 'train'),
    'validation_accuracy': trainer.accuracy(genotype, variables, 'validation'),
    'test_accuracy': metrics.accuracy(confusion),
    'test_balanced_accuracy': metrics.balanced_accuracy(confusion),
    'test_accuracy_by_class': dict(zip(trainer.class_names, by_class)),
    'test_confusion': confusion.tolist(),
  }


def _restore(
  initial: TrainingState, directory: records.RunDirectory, evaluation: int
) -> tuple[TrainingState, int]:
  """Returns the state that was saved last, or the initial one, and its epochs."""
  try:
    content = directory.read_completing(evaluation)
    return training_state.from_arrays(content, initial) if content else (initial, 0)
  except (DamagedError, ValueError) as error:
    logging.warning('%s; completing from the start', error)
    return initial, 0
