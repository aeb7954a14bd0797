"""What augmentation costs a training step.

  python -m benchmarks.augmentation_speed [--out=FILE] [--rounds=31]

For networks at batch 512, epochs with flips and shifts of up to four pixels (one at
8x8) and epochs without alternate in one process. The figure is the ratio of their times
in each round, by the clock and by the seconds of CPU that the process used; on a busy
machine only the latter means much.
"""

import argparse
import time

import jax
import numpy as np

from benchmarks import common
from lamarck_jax import model, training
from lamarck_jax.data import datasets
from lamarck_jax.data.augmentation import NO_AUGMENTATION, Augmentation
from lamarck_jax.genotype import Genotype
from lamarck_jax.runtime import allocator, devices

BATCH_SIZE = 512
NUM_CLASSES = 10

# Name -> side of the images, network, most pixels of a shift, steps in an epoch.
CASES = {
  'small': (32, common.NETWORKS['small'], 4, 4),
  'mid': (32, common.NETWORKS['mid'], 4, 1),
  '8x8': (8, '16c3 32c3s2', 1, 44),
}


def measure(name: str, rounds: int) -> dict[str, dict[str, float]]:
  """Returns milliseconds of a step and ratios of one case."""
  side, network, shift, num_steps = CASES[name]
  rng = np.random.default_rng(0)

  def split(num_examples: int) -> datasets.Split:
    images = rng.integers(0, 256, (num_examples, side, side, 3)).astype(np.uint8)
    labels = rng.integers(NUM_CLASSES, size=num_examples).astype(np.int32)
    return datasets.Split(images, labels)

  names = tuple(map(str, range(NUM_CLASSES)))
  train = split(BATCH_SIZE * num_steps)
  dataset = datasets.Dataset('random', train, split(8), split(8), names)
  genotype, key = Genotype.parse(network), jax.random.key(0)
  variables = model.init_variables(key, genotype, 3, NUM_CLASSES)
  trainers = {
    'off': training.Trainer(
      dataset, batch_size=BATCH_SIZE, augmentation=NO_AUGMENTATION
    ),
    'on': training.Trainer(
      dataset, batch_size=BATCH_SIZE, augmentation=Augmentation(True, shift)
    ),
  }
  clock: dict[str, list[float]] = {name: [] for name in trainers}
  cpu: dict[str, list[float]] = {name: [] for name in trainers}
  for index in range(rounds + 1):
    # Each comes first in every other round.
    for name in sorted(trainers, reverse=index % 2 == 0):
      start, cpu_start = time.perf_counter(), time.process_time()
      trained = trainers[name].train(key, genotype, variables, [1e-3])
      jax.block_until_ready(trained)
      if index:  # The first round compiles.
        clock[name].append((time.perf_counter() - start) / num_steps * 1e3)
        cpu[name].append((time.process_time() - cpu_start) / num_steps * 1e3)
  return {
    'milliseconds': common.summary(clock['off']),
    'cpu_milliseconds': common.summary(cpu['off']),
    'ratio': common.summary([on / off for on, off in zip(clock['on'], clock['off'])]),
    'cpu_ratio': common.summary([on / off for on, off in zip(cpu['on'], cpu['off'])]),
  }


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', type=common.path, help='JSON file for the figures')
  parser.add_argument('--rounds', type=int, default=31)
  parser.add_argument('--case', choices=CASES, help='only this one')
  args = parser.parse_args()
  allocator.keep_freed_memory()
  devices.configure_cpu_devices(BATCH_SIZE, 32)
  names = [args.case] if args.case else list(CASES)
  results = {name: measure(name, args.rounds) for name in names}

  def text(figure: dict[str, float]) -> str:
    return f'{figure["median"]:.3f} ({figure["min"]:.3f}-{figure["max"]:.3f})'

  rows = [
    [
      name,
      result['milliseconds']['median'],
      result['cpu_milliseconds']['median'],
      text(result['ratio']),
      text(result['cpu_ratio']),
      args.rounds,
    ]
    for name, result in results.items()
  ]
  common.write_json(args.out, {'batch_size': BATCH_SIZE, 'cases': results})
  common.print_table(
    ['network', 'step, ms', 'CPU ms', 'on / off', 'by CPU time', 'n'], rows
  )


if __name__ == '__main__':
  main()
