"""Resident memory and memory maps of a process over many evaluations.

  python -m benchmarks.memory [--evaluations=1000] [--out=FILE]

One process trains tiny networks for an epoch each. Every network becomes the parent of
the next, so that new programs are compiled all the time. Resident memory is read after
each evaluation; it varies by a few percent with the programs loaded at that moment, so
the table gives the median, minimum and maximum of the last 50 evaluations. Linux only:
the figures come from /proc.
"""

import argparse
import pathlib
import statistics
import tempfile

import jax
import numpy as np

from benchmarks import common
from lamarck_jax import genotype as genotype_lib
from lamarck_jax import inheritance, model, mutation
from lamarck_jax.data import datasets
from lamarck_jax.runtime import allocator, compilation_cache
from lamarck_jax.training import Trainer


def resident_mb() -> float:
  """Returns the resident memory of this process in MB."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith('VmRSS:'):
      return int(line.split()[1]) / 1024
  raise OSError('/proc/self/status has no VmRSS')


def num_maps() -> int:
  """Returns the number of memory maps of this process."""
  return len(pathlib.Path('/proc/self/maps').read_text().splitlines())


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--evaluations', type=int, default=1000)
  parser.add_argument('--out', type=common.path, help='JSON file of the figures')
  args = parser.parse_args()

  # A fresh cache, since programs read from one take less memory than compiled ones.
  with tempfile.TemporaryDirectory() as xla_cache_dir:
    compilation_cache.enable(xla_cache_dir)
    figures = evaluate(args.evaluations)
  header = ['evaluation', 'resident MB', 'minimum', 'maximum', 'most memory maps']
  common.write_json(args.out, {'columns': header, 'rows': figures})
  common.print_table(header, figures)


def evaluate(num_evaluations: int) -> list[tuple[int, float, float, float, int]]:
  """Returns a row of the table for every hundred evaluations."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (64, 16, 16, 3)).astype(np.uint8)
  split = datasets.Split(images, rng.integers(10, size=64).astype(np.int32))
  dataset = datasets.Dataset('random', split, split, split, tuple('0123456789'))
  trainer = Trainer(dataset, batch_size=32)
  space = genotype_lib.SearchSpace(filters=(2, 4, 6, 8, 10, 12, 14, 16))

  genotype = genotype_lib.random_genotype(jax.random.key(0), space)
  variables = model.init_variables(jax.random.key(0), genotype, 3, 10)
  history = {genotype}
  megabytes: list[float] = []
  maps: list[int] = []
  figures = []
  for evaluation in range(1, num_evaluations + 1):
    key = jax.random.key(evaluation)
    child = mutation.mutate(key, genotype, space, history)
    inherited = inheritance.inherit(key, genotype, variables, child)
    variables = trainer.train(key, child, inherited, [1e-3])
    trainer.accuracy(child, variables, 'validation')
    allocator.release_freed_memory()  # `search` does so too.
    genotype = child
    history.add(child)
    megabytes.append(resident_mb())
    maps.append(num_maps())
    if evaluation % 100 == 0:
      last = megabytes[-50:]
      middle = statistics.median(last)
      figures.append((evaluation, middle, min(last), max(last), max(maps[-50:])))
      print(*figures[-1], flush=True)
  return figures


if __name__ == '__main__':
  main()
