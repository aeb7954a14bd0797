"""Trains checkpoints to completion and tests them (Sections 4.1 and 4.2)."""

from collections.abc import Mapping
import time
from typing import Any

from absl import logging
import jax
from ml_collections import config_dict

from lamarck_jax import records
from lamarck_jax.evolution import Individual
from lamarck_jax.training import Trainer


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
  already, nothing is trained.

  Args:
    key: A JAX random key.
    individual: The individual; its weights are in the directory.
    directory: The run directory.
    trainer: The trainer of the search's data set.
    learning_rates: The learning rate of every epoch.

  Returns:
    `evaluation`, the genotype's fields, `fitness` before completion, and
    `validation_accuracy`, `test_accuracy` and `seconds` after it.
  """
  outcome = directory.read_completed(individual.evaluation)
  if outcome is not None:
    return outcome
  logging.info(
    'training evaluation %d to completion: %s',
    individual.evaluation,
    individual.genotype,
  )
  start = time.monotonic()
  genotype = individual.genotype
  variables: Mapping[str, Any] = directory.read_weights(individual.evaluation)
  variables = trainer.train(key, genotype, variables, learning_rates)
  outcome = {
    'evaluation': individual.evaluation,
    **records.genotype_to_json(genotype),
    'fitness': individual.fitness,
    'validation_accuracy': trainer.accuracy(genotype, variables, 'validation'),
    'test_accuracy': trainer.accuracy(genotype, variables, 'test'),
    'seconds': round(time.monotonic() - start, 3),
  }
  directory.write_completed(individual.evaluation, outcome, variables)
  return outcome
