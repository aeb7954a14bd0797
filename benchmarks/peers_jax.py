"""A search of `benchmarks.peers` that trains with `lamarck_jax.training.Trainer`.

  python -m benchmarks.peers_jax TASK

TASK is a file of `benchmarks.peers`. Its method is a setting of this package, or
`optuna`: TPE over the same search space, with fresh weights and median pruning.
"""

import contextlib
import pathlib
from typing import Any

import jax
from ml_collections import config_dict

from benchmarks import peers_attempt
from benchmarks.peers_attempt import Attempt
from lamarck_jax import completion, model, search
from lamarck_jax.data import datasets
from lamarck_jax.data.augmentation import Augmentation
from lamarck_jax.genotype import Block, Genotype
from lamarck_jax.model import Variables
from lamarck_jax.run_directory import records
from lamarck_jax.runtime import process
from lamarck_jax.search import Purpose
from lamarck_jax.training import Trainer

# Pruning shortens the evaluations, so they may take baseline II's epochs.
OPTUNA_EPOCHS = 16

# A network, its weights after its evaluation, and the number of the evaluation.
Found = tuple[Genotype, Variables, int]


class _TimeIsUp(Exception):
  """Ends a search from the callback that it calls after every evaluation."""


def search_setting(attempt: Attempt, config: config_dict.ConfigDict) -> Found:
  """Searches with a setting of this package; returns the best network."""
  workdir = pathlib.Path(attempt.task['scratch']) / 'run'
  best: dict[str, Any] = {}

  def on_event(event: dict[str, Any]) -> None:
    attempt.evaluations += 1
    if event['failure'] is None and attempt.record(event['fitness']):
      best.update(event)
    if best:
      epoch_seconds = best['seconds']['train'] / config.epochs_per_evaluation
      if attempt.is_over(epoch_seconds * len(completion.schedule(config))):
        raise _TimeIsUp

  with contextlib.suppress(_TimeIsUp):
    search.run(config, workdir, on_event)
  directory = records.RunDirectory(workdir, config.to_dict())
  number = best['evaluation']
  return Genotype.from_json(best), directory.read_weights(number), number


def search_optuna(
  attempt: Attempt,
  config: config_dict.ConfigDict,
  trainer: Trainer,
  epochs: int = OPTUNA_EPOCHS,
) -> Found:
  """Searches with Optuna's TPE and median pruning; returns the best network.

  A trial trains a network for `epochs` epochs and reports its validation accuracy after
  each; a pruned one has no result.
  """
  import optuna

  num_completion = len(completion.schedule(config))
  best: list[Found] = []
  epoch_seconds = [0.0]

  def objective(trial: optuna.Trial) -> float:
    attempt.evaluations += 1
    genotype = suggest(trial, config)
    key = search.random_key(config.seed, trial.number, Purpose.INITIALISATION)
    variables = model.init_variables(
      key, genotype, trainer.image_shape[-1], trainer.num_classes
    )
    trainer.compile(genotype)
    start = attempt.elapsed
    key = search.random_key(config.seed, trial.number, Purpose.TRAINING)
    state, accuracy = trainer.initial_state(genotype, variables), 0.0
    for epoch in range(epochs):
      state, _ = trainer.train_epoch(key, genotype, state, epoch, config.learning_rate)
      variables = trainer.variables(genotype, state)
      accuracy = trainer.accuracy(genotype, variables, 'validation')
      trial.report(accuracy, epoch)
      mean = (attempt.elapsed - start) / (epoch + 1)
      # A trial is as long as several evaluations of ours: the clock may end it.
      if best and attempt.is_over(epoch_seconds[0] * num_completion, mean):
        trial.study.stop()
        raise optuna.TrialPruned
      if trial.should_prune():
        raise optuna.TrialPruned
    if attempt.record(accuracy):
      best[:] = [(genotype, variables, trial.number)]
      epoch_seconds[0] = (attempt.elapsed - start) / epochs
    return accuracy

  def stop(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    del trial
    if best and attempt.is_over(epoch_seconds[0] * num_completion, 0.0):
      study.stop()

  study = optuna.create_study(
    direction='maximize',
    sampler=optuna.samplers.TPESampler(seed=config.seed),
    pruner=optuna.pruners.MedianPruner(),
  )
  study.optimize(objective, callbacks=[stop])
  return best[0]


def suggest(trial: Any, config: config_dict.ConfigDict) -> Genotype:
  """Returns a network of the search space, as deep as random search may draw it."""
  space = config.search_space
  blocks: list[Block] = []
  downsampling = 0
  for i in range(trial.suggest_int('depth', 1, config.random_search.max_blocks)):
    filters = trial.suggest_categorical(f'filters_{i}', tuple(space.filters))
    size = trial.suggest_categorical(f'kernel_size_{i}', tuple(space.kernel_sizes))
    stride = 1
    if downsampling < space.max_downsampling:
      stride = trial.suggest_categorical(f'stride_{i}', tuple(space.strides))
    downsampling += stride > 1
    blocks.append(Block(filters, size, stride))
  return Genotype(tuple(blocks))


def main() -> None:
  """Searches, completes the best network and evaluates it once on the test set."""
  attempt = peers_attempt.begin()
  config = config_dict.ConfigDict(attempt.task['config'])
  # Its own cache, empty at first: no method finds programs that another has compiled.
  process.configure(config, str(pathlib.Path(attempt.task['scratch']) / 'xla'))
  run(attempt, config)


def _make_trainer(config: config_dict.ConfigDict) -> Trainer:
  return Trainer(
    datasets.load(**config.dataset),
    batch_size=config.batch_size,
    compute_dtype=config.compute_dtype,
    augmentation=Augmentation(**config.augmentation),
  )


def run(attempt: Attempt, config: config_dict.ConfigDict) -> None:
  """Does what `main` says, in a process that is configured already."""
  if attempt.task['method'] == 'optuna':
    trainer = _make_trainer(config)
    genotype, variables, number = search_optuna(attempt, config, trainer)
  else:
    genotype, variables, number = search_setting(attempt, config)
    trainer = _make_trainer(config)
  search_seconds = round(attempt.elapsed, 2)
  key = search.random_key(config.seed, number, Purpose.COMPLETION)
  variables = trainer.train(key, genotype, variables, completion.schedule(config))
  jax.block_until_ready(variables)
  usage = attempt.usage()
  *_, channels = trainer.image_shape
  attempt.write(
    search_seconds=search_seconds,
    **usage,
    network=str(genotype),
    parameters=model.num_parameters(genotype, channels, trainer.num_classes),
    validation_accuracy=trainer.accuracy(genotype, variables, 'validation'),
    test_accuracy=trainer.accuracy(genotype, variables, 'test'),
  )


if __name__ == '__main__':
  main()
