"""Compile time of a search's networks: whole-network programs against per-block ones.

  python -m benchmarks.compile_speed [--children=128] [--out=FILE]

A line of children is drawn by the project's own mutations, every one accepted, at
CIFAR's shape and the paper's search space. For each child the programs of a training
step and of inference are compiled, with the same options, nothing is trained:
  whole    one jitted step and one jitted inference of the whole network, as usual
  block    `training.Trainer.compile`: cold; warm in the process (the same children
           again); and warm from disk (the same children in a new process)
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import common

BATCH_SIZE = 512
IMAGE_SHAPE = (32, 32, 3)
NUM_CLASSES = 10


def children(count: int) -> list[Any]:
  """Returns a line of genotypes, each a mutant of the one before."""
  import jax

  from lamarck_jax import genotype, mutation

  space = genotype.SearchSpace()
  line = [genotype.random_genotype(jax.random.key(0), space)]
  for index in range(count - 1):
    key = jax.random.key(index + 1)
    line.append(mutation.mutate(key, line[-1], space, set(line)))
  return line


def compile_blocks(line: list[Any]) -> list[float]:
  """Returns the seconds to compile each child's blocks."""
  from lamarck_jax import training
  from lamarck_jax.data import datasets

  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (BATCH_SIZE, *IMAGE_SHAPE)).astype(np.uint8)
  split = datasets.Split(images, np.zeros(BATCH_SIZE, np.int32))
  names = tuple(map(str, range(NUM_CLASSES)))
  dataset = datasets.Dataset('random', split, split, split, names)
  trainer = training.Trainer(dataset, batch_size=BATCH_SIZE)
  seconds = []
  for genotype in line:
    start = time.perf_counter()
    trainer.compile(genotype)
    seconds.append(time.perf_counter() - start)
  return seconds


def compile_whole(line: list[Any]) -> list[float]:
  """Returns the seconds to compile each child as one program."""
  import jax
  import jax.numpy as jnp
  import optax

  from lamarck_jax import model
  from lamarck_jax.xla import compiler

  options = compiler.block_options(jax.default_backend())
  optimizer = optax.adam(1e-3)
  images = jax.ShapeDtypeStruct((BATCH_SIZE, *IMAGE_SHAPE), jnp.float32)
  labels = jax.ShapeDtypeStruct((BATCH_SIZE,), jnp.int32)
  seconds = []
  for genotype in line:
    network = model.ConvNet(genotype, NUM_CLASSES)
    shapes = model.variable_shapes(genotype, IMAGE_SHAPE[-1], NUM_CLASSES)

    def step(
      variables: Any, opt_state: Any, x: Any, y: Any, network: Any = network
    ) -> Any:
      def loss_fn(params: Any) -> Any:
        logits, updated = network.apply(
          {**variables, 'params': params}, x, True, mutable=['batch_stats']
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return loss, updated['batch_stats']

      params = variables['params']
      (loss, stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
      updates, opt_state = optimizer.update(gradients, opt_state)
      params = optax.apply_updates(params, updates)
      return {'params': params, 'batch_stats': stats}, opt_state, loss

    opt_state = jax.eval_shape(optimizer.init, shapes['params'])
    start = time.perf_counter()
    jax.jit(step).lower(shapes, opt_state, images, labels).compile(options)
    jax.jit(network.apply).lower(shapes, images).compile(options)
    seconds.append(time.perf_counter() - start)
  return seconds


def work(mode: str, count: int, cache: str) -> None:
  """Compiles in this process and prints the seconds of each child as JSON."""
  from lamarck_jax.runtime import compilation_cache

  compilation_cache.enable(cache)
  line = children(count)
  if mode == 'whole':
    print(json.dumps([compile_whole(line)]))
  else:
    print(json.dumps([compile_blocks(line), compile_blocks(line)]))


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--children', type=int, default=128)
  parser.add_argument('--out', type=common.path, help='JSON file for the figures')
  parser.add_argument('--work', choices=('whole', 'block'), help=argparse.SUPPRESS)
  parser.add_argument('--cache', default='', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.work:
    work(args.work, args.children, args.cache)
    return

  def run(mode: str, cache: str) -> list[list[float]]:
    command = [sys.executable, '-m', 'benchmarks.compile_speed', f'--work={mode}']
    command += [f'--children={args.children}', f'--cache={cache}']
    root = pathlib.Path(__file__).parent.parent
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=root)
    return json.loads(output.stdout)

  with tempfile.TemporaryDirectory() as directory:
    cold, in_process = run('block', directory)
    from_disk, _ = run('block', directory)
  seconds = {
    'whole network': run('whole', '')[0],
    'per block, cold': cold,
    'per block, warm in process': in_process,
    'per block, warm from disk': from_disk,
  }
  common.write_json(args.out, {'children': args.children, 'seconds': seconds})
  quarter = max(1, args.children // 4)
  common.print_table(
    ['programs', 'total, s', 'first quarter, s', 'last quarter, s', 'n'],
    [
      [name, sum(values), sum(values[:quarter]), sum(values[-quarter:]), len(values)]
      for name, values in seconds.items()
    ],
  )


if __name__ == '__main__':
  main()
