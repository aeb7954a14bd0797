"""A whole training step, beside the PyTorch step that a user would write instead.

  python -m benchmarks.training_speed [--out=FILE] [--rounds=7]
  python -m benchmarks.training_speed --steps_per_epoch=88 --dtype=bfloat16  # On a GPU.

For three networks at 32x32x3 and batch 512: forward, backward and Adam's update of
`lamarck_jax.training`, and of PyTorch (channels_last, all cores), interleaved in one
run. Each has a process of its own that stays alive, so that neither one's threads or
memory disturb the other. A round times several steps of each and takes their mean. The
figure is the ratio of PyTorch's time to ours, round by round: above 1, we are faster.
Our programs keep freed memory (`runtime.allocator`), which PyTorch does not do by
itself; `tuned` is PyTorch with that same setting. Where PyTorch is not installed only
our own times are printed. GFLOP/s count three times the forward pass, and are compared
with a matrix product of 2048 x 2048 in JAX's default precision, float32 on a CPU and
TF32 on a GPU. There PyTorch may use TF32 as well; `compiled` is PyTorch with
`torch.compile`, and there is no `tuned`. Since we wait for the device once an epoch, a
GPU wants more than one step to an epoch.
"""

import argparse
from collections.abc import Callable
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks import common
from lamarck_jax.runtime import devices, environment

IMAGE_SHAPE = (32, 32, 3)
NUM_CLASSES = 10


def jax_steps(network: str, args: argparse.Namespace) -> Callable[[int], None]:
  """Returns a function that trains for a number of steps with this project."""
  import jax

  from lamarck_jax import model, training
  from lamarck_jax.data import datasets
  from lamarck_jax.genotype import Genotype
  from lamarck_jax.runtime import allocator

  allocator.keep_freed_memory()
  devices.configure_cpu_devices(args.batch_size, IMAGE_SHAPE[0])
  rng = np.random.default_rng(0)

  def split(num_examples: int) -> datasets.Split:
    images = rng.integers(0, 256, (num_examples, *IMAGE_SHAPE)).astype(np.uint8)
    labels = rng.integers(NUM_CLASSES, size=num_examples).astype(np.int32)
    return datasets.Split(images, labels)

  data = split(args.batch_size * args.steps_per_epoch)
  names = tuple(map(str, range(NUM_CLASSES)))
  dataset = datasets.Dataset('random', data, split(8), split(8), names)
  trainer = training.Trainer(
    dataset, batch_size=args.batch_size, compute_dtype=args.dtype
  )
  genotype = Genotype.parse(common.NETWORKS[network])
  key = jax.random.key(0)
  variables = model.init_variables(key, genotype, IMAGE_SHAPE[-1], NUM_CLASSES)
  trainer.compile(genotype)

  def steps(count: int) -> None:
    rates = [1e-3] * (count // args.steps_per_epoch)
    jax.block_until_ready(trainer.train(key, genotype, variables, rates))

  return steps


def torch_steps(
  network: str, args: argparse.Namespace, compiled: bool = False
) -> Callable[[int], None]:
  """Returns a function that trains for a number of steps with PyTorch."""
  import torch
  from torch import nn

  from lamarck_jax.genotype import Genotype

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.set_num_threads(os.cpu_count() or 1)
  torch.manual_seed(0)
  # TF32 in matrix products, as JAX has it; in convolutions it is PyTorch's default.
  torch.set_float32_matmul_precision('high')
  layers, channels = [], IMAGE_SHAPE[-1]
  for block in Genotype.parse(common.NETWORKS[network]).blocks:
    size = block.kernel_size
    layers += [
      nn.Conv2d(channels, block.filters, size, block.stride, padding=size // 2),
      nn.BatchNorm2d(block.filters),
      nn.ReLU(inplace=True),
    ]
    channels = block.filters
  head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, NUM_CLASSES)]
  net: Any = nn.Sequential(*layers, *head)
  net = net.to(device, memory_format=torch.channels_last)
  if compiled:
    net = torch.compile(net)
  optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
  height, width, channels = IMAGE_SHAPE
  num_examples = args.batch_size * args.steps_per_epoch
  images = torch.randn(num_examples, channels, height, width, device=device)
  images = images.contiguous(memory_format=torch.channels_last)
  labels = torch.randint(NUM_CLASSES, (num_examples,), device=device)
  dtype = getattr(torch, args.dtype)
  mixed = torch.autocast(device, dtype, enabled=dtype != torch.float32)

  def steps(count: int) -> None:
    for _ in range(count // args.steps_per_epoch):
      for batch in torch.randperm(num_examples, device=device).split(args.batch_size):
        optimizer.zero_grad(set_to_none=True)
        with mixed:
          loss = nn.functional.cross_entropy(net(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
    loss.item()

  return steps


def tuned_torch_steps(network: str, args: argparse.Namespace) -> Callable[[int], None]:
  """Returns the same with freed memory kept, as our own programs keep it."""
  from lamarck_jax.runtime import allocator

  allocator.keep_freed_memory()
  return torch_steps(network, args)


def compiled_torch_steps(
  network: str, args: argparse.Namespace
) -> Callable[[int], None]:
  """Returns the same with `torch.compile`."""
  return torch_steps(network, args, compiled=True)


def matmul_steps(network: str, args: argparse.Namespace) -> Callable[[int], None]:
  """Returns a function that makes a number of 2048 x 2048 products with JAX."""
  import jax
  import jax.numpy as jnp

  del network, args
  matrix = jnp.ones((2048, 2048), jnp.float32)
  product = jax.jit(lambda a, b: a @ b).lower(matrix, matrix).compile()

  def steps(count: int) -> None:
    result = matrix
    for _ in range(count):
      result = product(matrix, matrix)
    result.block_until_ready()

  return steps


WORKERS = {
  'jax': jax_steps,
  'torch': torch_steps,
  'tuned': tuned_torch_steps,
  'compiled': compiled_torch_steps,
  'matmul': matmul_steps,
}


class Worker:
  """A process that times steps when it is asked to."""

  def __init__(self, name: str, network: str, args: argparse.Namespace):
    """Starts the process, which begins to compile and to warm up."""
    arguments = [f'--worker={name}', f'--network={network}']
    arguments += [f'--batch_size={args.batch_size}', f'--dtype={args.dtype}']
    arguments += [f'--steps_per_epoch={args.steps_per_epoch}']
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'benchmarks.training_speed', *arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    assert self._process.stdin and self._process.stdout
    self._input, self._output = self._process.stdin, self._process.stdout
    self._request(2 * args.steps_per_epoch)

  def is_ready(self) -> bool:
    """Waits for the first steps; returns whether they succeeded."""
    return bool(self._output.readline())

  def seconds(self, count: int) -> float:
    """Returns the mean duration of some steps, in seconds."""
    self._request(count)
    return float(self._output.readline())

  def _request(self, count: int) -> None:
    print(count, file=self._input, flush=True)

  def close(self) -> None:
    """Ends the process."""
    self._process.communicate()


def serve(steps: Callable[[int], None]) -> None:
  """Answers every number of steps on the standard input with their mean time."""
  for line in sys.stdin:
    count = int(line)
    start = time.perf_counter()
    steps(count)
    print((time.perf_counter() - start) / count, flush=True)


def measure(network: str, names: list[str], args: argparse.Namespace) -> dict[str, Any]:
  """Returns the times and ratios of one network."""
  from lamarck_jax import flops
  from lamarck_jax.genotype import Genotype

  genotype = Genotype.parse(common.NETWORKS[network])
  example = flops.network_flops(genotype, IMAGE_SHAPE, NUM_CLASSES)
  step_flops = 3 * example * args.batch_size
  workers = {name: Worker(name, network, args) for name in names}
  workers = {name: worker for name, worker in workers.items() if worker.is_ready()}
  if missing := {'jax', 'matmul'} - workers.keys():
    raise SystemExit(f'failed: {", ".join(sorted(missing))}')
  epoch = args.steps_per_epoch
  passes = args.round_seconds / (epoch * workers['jax'].seconds(2 * epoch))
  count = epoch * max(1, round(passes))
  products = max(1, min(50, round(100 * args.round_seconds)))
  seconds: dict[str, list[float]] = {name: [] for name in workers}
  for _ in range(args.rounds):
    for name, worker in workers.items():
      time.sleep(0.5)  # PyTorch's threads spin for a while after their work.
      seconds[name].append(worker.seconds(products if name == 'matmul' else count))
  for worker in workers.values():
    worker.close()
  matmul = [2 * 2048**3 / value for value in seconds.pop('matmul')]
  rate = [step_flops / value for value in seconds['jax']]
  result: dict[str, Any] = {
    'steps_per_round': count,
    'seconds': {name: common.summary(values) for name, values in seconds.items()},
    'gflops_per_second': common.summary([value / 1e9 for value in rate]),
    'share_of_matmul': common.summary([ours / mm for ours, mm in zip(rate, matmul)]),
  }
  result['ratios'] = {
    name: common.summary(
      [theirs / ours for theirs, ours in zip(values, seconds['jax'])]
    )
    for name, values in seconds.items()
    if name != 'jax'
  }
  return result


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', type=common.path, help='JSON file for the figures')
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--round_seconds', type=float, default=1.5, help='of each, about')
  parser.add_argument('--batch_size', type=int, default=512)
  parser.add_argument('--steps_per_epoch', type=int, default=1, help='size of the data')
  parser.add_argument('--dtype', default='float32', help='float32 or bfloat16')
  parser.add_argument('--network', help='only this one')
  parser.add_argument('--worker', choices=WORKERS, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    serve(WORKERS[args.worker](args.network, args))
    return

  names = list(WORKERS)
  if 'torch' not in environment.versions():
    names = ['jax', 'matmul']
  elif devices.available_gpus():
    names.remove('tuned')
  else:
    names.remove('compiled')
  results: dict[str, Any] = {}
  settings = ('batch_size', 'steps_per_epoch', 'dtype')
  for network in [args.network] if args.network else common.NETWORKS:
    results[network] = measure(network, names, args)
    print(network, json.dumps(results[network]), flush=True)
    described = {key: getattr(args, key) for key in settings}
    common.write_json(args.out, {**described, 'networks': results})

  def ratio(result: dict[str, Any], name: str) -> str:
    if name not in result['ratios']:
      return '-'
    figure = result['ratios'][name]
    return f'{figure["median"]:.2f} ({figure["min"]:.2f}-{figure["max"]:.2f})'

  rows = [
    [
      network,
      result['seconds']['jax']['median'] * 1e3,
      ratio(result, 'torch'),
      ratio(result, 'tuned'),
      ratio(result, 'compiled'),
      result['gflops_per_second']['median'],
      result['share_of_matmul']['median'],
      args.rounds,
    ]
    for network, result in results.items()
  ]
  header = ['network', 'ours, ms', 'PyTorch / ours (min-max)', 'tuned PyTorch / ours']
  header += ['compiled PyTorch / ours', 'GFLOP/s', 'share of matmul', 'n']
  common.print_table(header, rows)


if __name__ == '__main__':
  main()
