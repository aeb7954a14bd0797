"""A training step beside a thread that traces blocks, by the interpreter's interval.

  python -m benchmarks.beside_tracing [--rounds=5] [--out=FILE] [--tiny]

The networks are so small that a step takes the time to start its programs, for which
the training thread needs the interpreter. `default` is Python's interval of 5 ms, after
which a thread that computes gives it away; `ours` that of `lamarck_jax.xla.tracing`.
The cases alternate in one process. Nothing is compiled but the small networks.
"""

import argparse
from collections.abc import Iterator, Sequence
import concurrent.futures
import contextlib
import itertools
import sys
import threading
import time
from typing import Any

from benchmarks import common

NETWORKS = {1: '8c1', 3: '8c1 8c1 8c1', 6: '8c1 8c1 8c1 8c1 8c1 8c1'}
# Filters, kernel size, stride and channels of what is traced meanwhile.
TRACED = ((64, 3, 1, 32), (32, 5, 2, 256), (128, 3, 2, 96), (256, 1, 1, 64))
BATCH_SIZE, IMAGE_SIZE, STEPS = 32, 8, 20


@contextlib.contextmanager
def tracing_thread(mesh: Any) -> Iterator[list[float]]:
  """Traces blocks, over and over, in another thread; yields the seconds of each."""
  import jax
  import jax.numpy as jnp

  from lamarck_jax import training
  from lamarck_jax.xla import fused_block, programs, sharding

  def trace(filters: int, kernel_size: int, stride: int, channels: int) -> None:
    shape = (BATCH_SIZE, 2 * IMAGE_SIZE, 2 * IMAGE_SIZE, channels)
    programs.compile_block(
      training.BLOCK_FUNCTIONS,
      fused_block.ConvBlock(filters, kernel_size, stride),
      jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding.sharded(mesh)),
      lambda traced, options: traced,  # type: ignore[arg-type, return-value]
    )

  done, seconds = threading.Event(), []

  def run() -> None:
    for block in itertools.cycle(TRACED):
      if done.is_set():
        return
      start = time.perf_counter()
      trace(*block)
      seconds.append(time.perf_counter() - start)

  with concurrent.futures.ThreadPoolExecutor(1) as threads:
    running = threads.submit(run)
    try:
      # The first one loads more than the others.
      while not seconds and not running.done():
        time.sleep(0.01)
      seconds.clear()
      yield seconds
    finally:
      done.set()
    running.result()
  jax.clear_caches()


def measure(rounds: int, steps: int, least_seconds: float) -> Iterator[dict[str, Any]]:
  """Yields the figures of each network: milliseconds a step, and a traced block.

  Args:
    rounds: Figures of each kind.
    steps: Of an epoch.
    least_seconds: A figure is the mean of as many epochs as take this long, and in
      which a block is traced.
  """
  import jax

  from lamarck_jax import model, training
  from lamarck_jax.genotype import Genotype
  from lamarck_jax.runtime import devices
  from lamarck_jax.xla import tracing

  devices.configure_cpu_devices(BATCH_SIZE, IMAGE_SIZE)
  dataset = common.random_dataset(IMAGE_SIZE, 1, steps * BATCH_SIZE)
  trainer = training.Trainer(dataset, batch_size=BATCH_SIZE)
  key = jax.random.key(0)
  intervals = {'default': sys.getswitchinterval(), 'ours': tracing.SWITCH_INTERVAL}
  for num_blocks, text in NETWORKS.items():
    genotype = Genotype.parse(text)
    variables = model.init_variables(key, genotype, 1, dataset.num_classes)
    state = trainer.initial_state(genotype, variables)

    def step_ms(
      traced: Sequence[float] = (0.0,), genotype: Any = genotype, state: Any = state
    ) -> float:
      start, epochs = time.perf_counter(), 0
      while not epochs or not traced or time.perf_counter() - start < least_seconds:
        trainer.train_epoch(key, genotype, state, 0, 1e-3)
        epochs += 1
      return (time.perf_counter() - start) / (epochs * steps) * 1e3

    found: dict[str, list[float]] = {}
    for _ in range(rounds):
      step_ms()  # JAX has no cache yet, or none any more.
      found.setdefault('alone', []).append(step_ms())
      for name, interval in intervals.items():
        tracing.SWITCH_INTERVAL = interval
        step_ms()
        with tracing_thread(trainer.data.mesh) as seconds:
          found.setdefault(name, []).append(step_ms(seconds))
          traced = seconds.copy()
        found.setdefault(f'traced_{name}', []).extend(s * 1e3 for s in traced)
    tracing.SWITCH_INTERVAL = intervals['ours']
    figures = {f'{name}_ms': common.summary(row) for name, row in found.items()}
    yield {'blocks': num_blocks, **figures}
  trainer.close()


def table(rows: list[dict[str, Any]]) -> None:
  """Prints one line for each network."""
  names = [name for name in rows[0] if name != 'blocks']
  common.print_table(
    ['blocks', *(name.replace('_', ' ').replace(' ms', ', ms') for name in names)],
    [[row['blocks'], *(row[name]['median'] for name in names)] for row in rows],
  )


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--out', type=common.path, help='JSON file for the figures')
  parser.add_argument('--tiny', action='store_true', help='two rounds of few steps')
  args = parser.parse_args()
  sizes = (2, 5, 0.1) if args.tiny else (args.rounds, STEPS, 1.0)
  rows = []
  for row in measure(*sizes):
    rows.append(row)
    common.write_json(args.out, {'rows': rows})
  table(rows)


if __name__ == '__main__':
  main()
