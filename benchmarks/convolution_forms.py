"""The forms of a convolution per layer shape: forward and gradients, in GFLOP/s.

  python -m benchmarks.convolution_forms [--out=FILE] [--rounds=7] [--images=128]

Beside this project's form stand XLA's own (`jax.lax.conv_general_dilated`), PyTorch's
(channels_last, all cores) where it is installed, and a float32 product of one chunk's
patches with the kernel. The forms take turns within one run; a call ends when all its
results exist, and each timed call follows an untimed one. The table gives each form's
median over the rounds.
"""

import argparse
from collections.abc import Callable
import importlib.util
import os
import time
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from lamarck_jax.xla import convolution
from lamarck_jax.xla.im2col import Geometry

# (height and width, channels, filters, kernel size, stride)
LAYERS = [
  (32, 3, 64, 3, 1),
  (32, 64, 64, 3, 1),
  (32, 64, 96, 3, 2),
  (16, 96, 128, 3, 1),
  (16, 128, 192, 3, 2),
  (8, 192, 192, 3, 1),
  (8, 192, 256, 3, 2),
  (4, 256, 256, 1, 1),
]
DIRECTIONS = ['forward', 'input gradient', 'kernel gradient', 'both gradients']
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
Call = Callable[[], Any]


def jax_calls(arrays: Arrays, stride: int, ours: bool) -> list[Call]:
  """Returns one call per direction.

  Args:
    arrays: x [n, h, w, channels], kernel [k, k, channels, filters], dy; float32.
    stride: Stride along height and width.
    ours: Whether in this project's form, or in XLA's own.
  """
  x, kernel, dy = map(jnp.asarray, arrays)
  geometry = Geometry.same(x, kernel, stride)

  def forward(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
    del dy
    if ours:
      return convolution.with_moments(geometry, x, kernel)[0]
    return lax.conv_general_dilated(
      x, kernel, *geometry, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  def gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> Any:
    if ours:
      return convolution.gradients(geometry, x, kernel, dy)
    return jax.vjp(lambda x, kernel: forward(x, kernel, dy), x, kernel)[1](dy)

  functions = [
    forward,
    lambda *args: gradients(*args)[0],
    lambda *args: gradients(*args)[1],
    gradients,
  ]
  programs = [jax.jit(f).lower(x, kernel, dy).compile() for f in functions]

  def blocking(program: Callable[..., Any]) -> Call:
    return lambda: jax.block_until_ready(program(x, kernel, dy))

  return [blocking(program) for program in programs]


def torch_calls(arrays: Arrays, stride: int) -> list[Call]:
  """Returns the same of PyTorch; arguments as in `jax_calls`."""
  import torch

  torch.set_num_threads(os.cpu_count() or 1)
  x, dy = (torch.from_numpy(a).permute(0, 3, 1, 2) for a in (arrays[0], arrays[2]))
  kernel = torch.from_numpy(arrays[1]).permute(3, 2, 0, 1)
  kernel = kernel.contiguous(memory_format=torch.channels_last)
  padding = arrays[1].shape[0] // 2

  def backward(mask: list[bool]) -> Any:
    return torch.ops.aten.convolution_backward(
      dy, x, kernel, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, mask
    )

  return [
    lambda: torch.conv2d(x, kernel, None, stride, padding),
    lambda: backward([True, False, False]),
    lambda: backward([False, True, False]),
    lambda: backward([True, True, False]),
  ]


def matmul_call(layer: tuple[int, ...]) -> tuple[Call, int]:
  """Returns the product of 4 MiB of patches with the kernel, and its FLOPs."""
  _, channels, filters, kernel_size, _ = layer
  inner = kernel_size**2 * channels
  rows = 2**20 // inner
  a, b = jnp.ones((rows, inner)), jnp.ones((inner, filters))
  program = jax.jit(jnp.matmul).lower(a, b).compile()
  return lambda: program(a, b).block_until_ready(), 2 * rows * inner * filters


def measure(layer: tuple[int, ...], images: int, rounds: int) -> dict[str, Any]:
  """Returns GFLOP/s of every form and direction of one layer."""
  size, channels, filters, kernel_size, stride = layer
  out = -(-size // stride)
  rng = np.random.default_rng(0)
  shapes = [
    (images, size, size, channels),
    (kernel_size, kernel_size, channels, filters),
    (images, out, out, filters),
  ]
  x, kernel, dy = (rng.normal(size=s).astype(np.float32) for s in shapes)
  flops = 2 * dy.size * kernel_size**2 * channels
  forms = {
    'xla': jax_calls((x, kernel, dy), stride, ours=False),
    'ours': jax_calls((x, kernel, dy), stride, ours=True),
  }
  if importlib.util.find_spec('torch'):
    forms['torch'] = torch_calls((x, kernel, dy), stride)
  calls = {
    (form, direction): (call, flops * (1 + (direction == 'both gradients')))
    for form, directions in forms.items()
    for direction, call in zip(DIRECTIONS, directions)
  }
  calls['matmul', 'forward'] = matmul_call(layer)
  rates: dict[str, list[float]] = {f'{f}, {d}': [] for f, d in calls}
  for _ in range(rounds):
    for (form, direction), (call, count) in calls.items():
      time.sleep(0.05)  # PyTorch's threads spin for a while after its last call.
      call()
      start = time.perf_counter()
      call()
      seconds = time.perf_counter() - start
      rates[f'{form}, {direction}'].append(count / seconds / 1e9)
  return {name: common.summary(values) for name, values in rates.items()}


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--out', type=common.path, help='JSON file for the figures')
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--images', type=int, default=128)
  args = parser.parse_args()
  results = {}
  for layer in LAYERS:
    name = '{0}x{0}x{1} {2}c{3}s{4}'.format(*layer)
    results[name] = measure(layer, args.images, args.rounds)
    print('measured', name, flush=True)
  rows = []
  for name, result in results.items():
    matmul = result['matmul, forward']['median']
    for direction in DIRECTIONS:
      cells = [result.get(f'{f}, {direction}') for f in ('xla', 'ours', 'torch')]
      medians = [cell['median'] if cell else '-' for cell in cells]
      rows.append([name, direction, *medians, matmul, args.rounds])
  common.write_json(
    args.out, {'images': args.images, 'n': args.rounds, 'gflops_per_second': results}
  )
  header = ['layer', 'direction', 'XLA', 'ours', 'PyTorch', 'matmul', 'n']
  common.print_table(header, rows)


if __name__ == '__main__':
  main()
