"""Completes a study's networks from inherited and from fresh weights.

  python -m benchmarks.fresh_completion STUDY --out=FILE

A study completes a checkpoint from the weights of its search, which inheritance has
trained for longer. Here the network of every finished run's last checkpoint is also
completed from fresh weights, on the same schedule, where only the architecture matters.
Accuracies on the training images show which of the two overfits.

STUDY must still have its weights. The same command resumes after an interruption.
"""

import argparse
import json
import pathlib
from typing import Any

import jax
from ml_collections import config_dict
import numpy as np

from benchmarks import common
from lamarck_jax import completion, model, search
from lamarck_jax.data import datasets
from lamarck_jax.data.augmentation import Augmentation
from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import records
from lamarck_jax.runtime import process
from lamarck_jax.training import Trainer

_SPLITS = ('train', 'validation', 'test')


def measure(path: pathlib.Path, trainer: Trainer) -> dict[str, Any]:
  """Returns accuracies of a run's last checkpoint, completed from both weights."""
  config = config_dict.ConfigDict(records.read_config(path))
  result = records.read_result(path)
  assert result is not None
  checkpoint = result['checkpoints'][-1]
  genotype = Genotype.from_json(checkpoint)
  number = checkpoint['evaluation']
  key = search.random_key(config.seed, number, search.Purpose.COMPLETION)
  fresh = model.init_variables(
    jax.random.fold_in(key, 0), genotype, trainer.image_shape[-1], trainer.num_classes
  )
  directory = records.RunDirectory(path, config.to_dict())
  networks = {
    'searched': directory.read_completed_weights(number),
    'fresh': trainer.train(key, genotype, fresh, completion.schedule(config)),
  }
  return {
    'setting': path.parent.name,
    'seed': config.seed,
    'genotype': str(genotype),
    **{
      name: {split: trainer.accuracy(genotype, variables, split) for split in _SPLITS}
      for name, variables in networks.items()
    },
  }


def main() -> None:
  """Completes the networks that are missing from the file, and prints means."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('study')
  parser.add_argument('--out', required=True)
  arguments = parser.parse_args()

  out = pathlib.Path(arguments.out)
  runs = json.loads(out.read_text())['runs'] if out.exists() else []
  done = {(run['setting'], run['seed']) for run in runs}
  trainer = None
  for path in sorted(pathlib.Path(arguments.study).glob('*/seed*')):
    seed = int(path.name.removeprefix('seed'))
    if (path.parent.name, seed) in done or not (path / 'result.json').exists():
      continue
    if trainer is None:
      config = config_dict.ConfigDict(records.read_config(path))
      process.configure(config)
      dataset = datasets.load(**config.dataset)
      trainer = Trainer(
        dataset,
        batch_size=config.batch_size,
        augmentation=Augmentation(**config.augmentation),
      )
    runs.append(measure(path, trainer))
    common.write_json(arguments.out, {'runs': runs})

  rows = []
  for setting in sorted({run['setting'] for run in runs}):
    group = [run for run in runs if run['setting'] == setting]
    row = [setting, len(group)]
    for name in ('searched', 'fresh'):
      for split in ('train', 'test'):
        values = 100 * np.array([run[name][split] for run in group])
        std = values.std(ddof=1) if len(values) > 1 else float('nan')
        row.append(f'{values.mean():.1f}±{std:.1f}')
    rows.append(row)
  header = ['setting', 'n', 'searched: train', 'test', 'fresh: train', 'test']
  common.print_table(header, rows)


if __name__ == '__main__':
  main()
