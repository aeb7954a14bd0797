"""Completes a study's networks from inherited and from fresh weights.

  python -m benchmarks.fresh_completion STUDY --out=FILE [--epochs=N]

A study completes a checkpoint from the weights of its search, which inheritance has
trained for longer. Here the network of every finished run's last checkpoint, or of that
at N epochs, is also completed from fresh weights, on the same schedule, where only the
architecture matters; the former's accuracies are those of the run's result. Those on
the training images show which of the two overfits. No weights are read, so a published
study will do. The same command resumes after an interruption.
"""

import argparse
from collections.abc import Iterator
import json
import pathlib
from typing import Any

import jax
from ml_collections import config_dict
import numpy as np

from benchmarks import common
from lamarck_jax import completion, model, search, trial
from lamarck_jax.data import datasets
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import records
from lamarck_jax.runtime import process
from lamarck_jax.training import Trainer

# By their names in the trainer, those in a result.
_SPLITS = {'train': 'training', 'validation': 'validation', 'test': 'test'}


def find_checkpoints(
  study: pathlib.Path, epochs: int | None
) -> Iterator[tuple[pathlib.Path, dict[str, Any]]]:
  """Yields the directory of each finished run and its completed checkpoint.

  Args:
    study: Directory of the study.
    epochs: The checkpoint's budget; None: the last.

  Raises:
    UserError: If a run has no such checkpoint.
  """
  for path in sorted(study.glob('*/seed*')):
    result = records.read_result(path)
    if result is None:
      continue
    budgets = {entry['epochs']: entry for entry in result['checkpoints']}
    wanted = epochs or max(budgets, default=None)
    if wanted not in budgets:
      raise UserError(f'epochs: got {wanted} for {path}, want one of {sorted(budgets)}')
    yield path, budgets[wanted]


def measure(
  path: pathlib.Path, checkpoint: dict[str, Any], trainer: Trainer
) -> dict[str, Any]:
  """Returns accuracies of a network, completed from its weights and from fresh ones."""
  config = config_dict.ConfigDict(records.read_config(path))
  genotype = Genotype.from_json(checkpoint)
  number = checkpoint['evaluation']
  key = search.random_key(config.seed, number, search.Purpose.COMPLETION)
  fresh = model.init_variables(
    jax.random.fold_in(key, 0), genotype, trainer.image_shape[-1], trainer.num_classes
  )
  variables = trainer.train(key, genotype, fresh, completion.schedule(config))
  return {
    'setting': path.parent.name,
    'seed': config.seed,
    'epochs': checkpoint['epochs'],
    'genotype': str(genotype),
    'searched': {
      split: checkpoint[f'{name}_accuracy'] for split, name in _SPLITS.items()
    },
    'fresh': {split: trainer.accuracy(genotype, variables, split) for split in _SPLITS},
  }


def print_means(runs: list[dict[str, Any]]) -> None:
  """Prints mean and standard deviation of each setting and checkpoint."""
  rows = []
  for setting, epochs in sorted({(run['setting'], run['epochs']) for run in runs}):
    group = [
      run for run in runs if (run['setting'], run['epochs']) == (setting, epochs)
    ]
    row = [setting, epochs, len(group)]
    for name in ('searched', 'fresh'):
      for split in ('train', 'test'):
        values = 100 * np.array([run[name][split] for run in group])
        std = values.std(ddof=1) if len(values) > 1 else float('nan')
        row.append(f'{values.mean():.1f}±{std:.1f}')
    rows.append(row)
  header = ['setting', 'epochs', 'n', 'searched: train', 'test', 'fresh: train', 'test']
  common.print_table(header, rows)


def main() -> None:
  """Completes the networks that are missing from the file, and prints means."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('study', type=common.path)
  parser.add_argument('--out', required=True, type=common.path)
  parser.add_argument('--epochs', type=int)
  arguments = parser.parse_args()

  out = arguments.out
  runs = json.loads(out.read_text())['runs'] if out.exists() else []
  done = {(run['setting'], run['seed'], run['epochs']) for run in runs}
  trainers: dict[str, Trainer] = {}  # Settings may differ in augmentation, for example.
  for path, checkpoint in find_checkpoints(arguments.study, arguments.epochs):
    seed = int(path.name.removeprefix('seed'))
    if (path.parent.name, seed, checkpoint['epochs']) in done:
      continue
    config = config_dict.ConfigDict(records.read_config(path))
    if not trainers:
      process.configure(config)
    fields = ('dataset', 'batch_size', 'compute_dtype', 'augmentation', 'class_weights')
    kind = str([config[field] for field in fields])
    if kind not in trainers:
      trainers[kind] = trial.make_trainer(config, datasets.load(**config.dataset))
    runs.append(measure(path, checkpoint, trainers[kind]))
    common.write_json(out, {'runs': runs})
  print_means(runs)


if __name__ == '__main__':
  main()
