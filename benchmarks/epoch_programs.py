"""Completion as one program per epoch, compared with chained programs per block.

  python -m benchmarks.epoch_programs [--rounds=5] [--out=FILE]

For each network a whole epoch (a loop over its steps) is compiled as one program and
trains from the same state as `Trainer.train_epoch`, interleaved with it, in a process
of its own. CPU seconds are of the process, so that other load of the machine counts
less. The blocks' programs are those that the search has already compiled.
"""

import argparse
import concurrent.futures
import functools
import multiprocessing
import statistics
import time
from typing import Any

import numpy as np

from benchmarks import common

# Network, batch size, image size, channels, training examples.
NETWORKS = (
  ('32c5 16c3s2 32c3', 32, 8, 1, 1137),
  ('64c5 32c5s2 64c3', 64, 16, 3, 1280),
)


def epoch_function(genotype: Any, steps: int, data: Any) -> Any:
  """Returns (state, order, learning rate) -> (state, sum of losses), to be compiled."""
  import jax
  from jax import lax
  import jax.numpy as jnp

  from lamarck_jax import model, training
  from lamarck_jax.model import CLASSIFIER
  from lamarck_jax.xla import fused_block, vectors

  blocks = {
    model.block_name(b): fused_block.ConvBlock(b.filters, b.kernel_size, b.stride)
    for b in genotype.blocks
  }
  head = model.Classifier(common.NUM_CLASSES)

  def step(order: Any, rate: jax.Array, index: jax.Array, carry: Any) -> Any:
    state, total = carry
    state, forward, x = dict(state), {}, data.images(order, index)

    def update(name: str, gradients: Any, batch_stats: Any) -> None:
      params, _, opt_state = state[name]
      vector, opt_state = training.adam_update(
        vectors.ravel(gradients), vectors.ravel(params), opt_state, rate
      )
      state[name] = vectors.unravel(vector, params), batch_stats, opt_state

    for name, block in blocks.items():
      params, batch_stats, _ = state[name]
      x, *forward[name] = training.forward(block, params, batch_stats, x, True)
    (gradients, gradient), _, total = training.head_gradients(
      head, state[CLASSIFIER][0], x, data.targets(order, index), total
    )
    update(CLASSIFIER, gradients, {})
    for name in reversed(blocks):
      pullback, batch_stats = forward[name]
      gradients, *input_gradient = pullback(gradient)
      update(name, gradients, batch_stats)
      gradient = (input_gradient or [None])[0]
    return state, total

  def epoch(state: Any, order: Any, rate: jax.Array) -> Any:
    body = functools.partial(step, order, rate)
    return lax.fori_loop(0, steps, body, (state, jnp.float32(0)))

  return epoch


def measure(
  text: str, batch_size: int, size: int, channels: int, num_train: int, rounds: int
) -> dict[str, Any]:
  """Compiles and trains a network both ways."""
  import jax
  import optax

  from lamarck_jax import model, training
  from lamarck_jax.data import on_device
  from lamarck_jax.data.augmentation import NO_AUGMENTATION
  from lamarck_jax.genotype import Genotype
  from lamarck_jax.runtime import allocator, devices
  from lamarck_jax.xla import compiler, sharding, vectors

  allocator.keep_freed_memory(4 * 64 * batch_size * size**2)
  devices.configure_cpu_devices(batch_size, size)
  genotype = Genotype.parse(text)
  dataset = common.random_dataset(size, channels, num_train)
  trainer = training.Trainer(dataset, batch_size=batch_size)
  data = on_device.DeviceData(dataset, batch_size, NO_AUGMENTATION)
  key, rate = jax.random.key(0), data.put(np.float32(1e-3))
  variables = model.init_variables(key, genotype, channels, common.NUM_CLASSES)
  order = data.shuffled(jax.random.fold_in(key, 0))

  def timed(call: Any) -> tuple[Any, np.ndarray]:
    start = np.array([time.process_time(), time.perf_counter()])
    result = jax.block_until_ready(call())
    return result, np.array([time.process_time(), time.perf_counter()]) - start

  def fresh() -> Any:  # A program may take its buffers.
    params, batch_stats = variables['params'], variables['batch_stats']
    state = {}
    for name in params:
      opt_state = optax.adam(0.0).init(vectors.ravel_on_host(params[name]))
      state[name] = params[name], batch_stats.get(name, {}), opt_state
    return jax.device_put(state, sharding.replicated(data.mesh), may_alias=False)

  initial = trainer.initial_state(genotype, variables)
  trainer.compile(genotype)
  function = epoch_function(genotype, trainer.steps_per_epoch, data)
  options = compiler.block_options(jax.default_backend())
  with jax.set_mesh(data.mesh):
    lowered = jax.jit(function, donate_argnums=0).lower(fresh(), order, rate)
    compiled, compile_seconds = timed(lambda: lowered.compile(options))
  milliseconds = []
  for _ in range(rounds + 1):  # The first one warms up.
    (chained, _), by_block = timed(
      lambda: trainer.train_epoch(key, genotype, initial, 0, 1e-3)
    )
    state = fresh()
    (whole, _), by_epoch = timed(lambda state=state: compiled(state, order, rate))
    milliseconds.append(np.array([by_block, by_epoch]) / trainer.steps_per_epoch * 1e3)
  steps = np.array(milliseconds[1:])  # [round, form, clock]
  params = trainer.variables(genotype, chained)['params']
  difference = max(
    float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-2))
    for name, (others, *_) in whole.items()
    for a, b in zip(*map(jax.tree.leaves, (params[name], others)))
  )
  figures: dict[str, Any] = {
    'network': f'{text} ({batch_size} of {size}x{size})',
    'devices': data.mesh.size,
    'steps_per_epoch': trainer.steps_per_epoch,
    'largest_difference_of_params': difference,
  }
  for clock, name in enumerate(('cpu', 'wall')):
    block, epoch = (steps[:, form, clock].tolist() for form in range(2))
    saved = statistics.median(block) - statistics.median(epoch)
    figures[name] = {
      'compile_seconds': compile_seconds[clock],
      'step_by_block_ms': common.summary(block),
      'step_by_epoch_ms': common.summary(epoch),
      'ratio': common.summary([e / b for e, b in zip(epoch, block)]),
      'steps_to_pay': compile_seconds[clock] / saved * 1e3 if saved > 0 else None,
    }
  return figures


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--out', type=common.path, help='JSON file for the figures')
  args = parser.parse_args()
  rows = []
  for network in NETWORKS:
    with concurrent.futures.ProcessPoolExecutor(
      1, mp_context=multiprocessing.get_context('spawn')
    ) as pool:
      rows.append(pool.submit(measure, *network, rounds=args.rounds).result())
    common.write_json(args.out, {'networks': rows})
  common.print_table(
    ['network', 'clock', 'compile, s', 'by block, ms', 'by epoch, ms', 'ratio', 'pays'],
    [
      [
        row['network'],
        clock,
        row[clock]['compile_seconds'],
        *(
          row[clock][key]['median']
          for key in ('step_by_block_ms', 'step_by_epoch_ms', 'ratio')
        ),
        row[clock]['steps_to_pay'] or 'never',
      ]
      for row in rows
      for clock in ('cpu', 'wall')
    ],
  )


if __name__ == '__main__':
  main()
