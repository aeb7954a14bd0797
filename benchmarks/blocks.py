"""Single blocks under sets of XLA's options: compile seconds, ms and TFLOP/s.

  python -m benchmarks.blocks [--options=ours,even,uneven,...] [--out=FILE]

The sets are
  ours       what `lamarck_jax.xla.compiler` chooses
  even       the same, all strided kernels extended for even padding on a GPU
  uneven     the same, none extended (`convolution.even_padding_pays`)
  autotuned  XLA's defaults: on a GPU every candidate kernel is timed
  level3     on a GPU, convolutions timed and fusions not
A block is timed forward and backward with Adam's update, as training runs it, the best
of three rounds. TFLOP/s count three times the forward convolution. In float32 a GPU's
convolutions are TF32, JAX's default there. Nothing is read from a cache.
"""

import argparse
from collections.abc import Callable
import itertools
import json
import time
from typing import Any

import numpy as np

from benchmarks import common

# Filters, kernel size, stride, image size, channels, batch size. They come from a
# search on CIFAR-10, the most telling first.
BLOCKS = (
  (256, 3, 1, 16, 32, 512),
  (32, 5, 2, 32, 256, 512),
  (256, 5, 1, 32, 3, 512),
  (256, 5, 1, 32, 256, 512),
  (192, 3, 2, 16, 128, 512),
  (96, 1, 1, 16, 64, 512),
  (64, 5, 1, 16, 32, 64),
  (256, 3, 1, 32, 256, 512),
)
# Of `even` and `uneven`. The first two have not been measured on a card.
STRIDED_BLOCKS = (
  (32, 5, 2, 32, 256, 512),
  (64, 5, 2, 32, 256, 512),
  (128, 3, 2, 32, 128, 512),
  (256, 3, 2, 32, 128, 512),
  (128, 5, 2, 32, 128, 512),
  (256, 5, 2, 32, 128, 512),
)
TINY_BLOCKS = ((8, 3, 2, 8, 8, 16),)
DTYPES = ('float32', 'bfloat16')
# Whether every strided kernel is extended, where that is not ours.
PADDINGS = {'even': True, 'uneven': False}
OPTIONS = ('ours', *PADDINGS, 'autotuned', 'level3')

_LEVEL_3 = {
  'xla_gpu_autotune_level': '3',
  'xla_gpu_experimental_enable_fusion_autotuner': False,
}
_ROUND_SECONDS = 0.05


def measure(options: str, block: tuple[int, ...], dtype: str) -> dict[str, Any]:
  """Compiles a block anew and times its training programs."""
  import jax
  import jax.numpy as jnp

  from lamarck_jax import training
  from lamarck_jax.xla import fused_block, programs, sharding, vectors

  filters, kernel_size, stride, size, channels, batch_size = block
  mesh = sharding.batch_mesh(batch_size, (size, size, channels))
  sharded, replicated = sharding.sharded(mesh), sharding.replicated(mesh)
  module = fused_block.ConvBlock(filters, kernel_size, stride, jnp.dtype(dtype).type)
  rng = np.random.default_rng(0)

  # Made by NumPy, since every small program of JAX would have to be compiled as well.
  def batch(side: int, depth: int) -> jax.Array:
    values = rng.standard_normal(2**20 + 7, np.float32).astype(module.dtype)
    return jax.device_put(np.resize(values, (batch_size, side, side, depth)), sharded)

  inputs, gradient = batch(size, channels), batch(-(-size // stride), filters)
  struct = jax.ShapeDtypeStruct(inputs.shape, inputs.dtype, sharding=sharded)
  compiled, compile_seconds = _compile(options, module, struct)
  shapes = programs.state_shapes(training.BLOCK_FUNCTIONS, module, channels)
  num_variables = vectors.size(shapes[:2])
  values = np.zeros(vectors.size(shapes), np.float32)
  values[:num_variables] = 1 + 0.05 * rng.standard_normal(num_variables)
  state = jax.device_put(values, replicated)
  rate, train = jax.device_put((np.float32(1e-3), np.bool_(True)), replicated)
  _, residuals = compiled.forward(state, inputs, train)

  forward_seconds = _best_time(lambda: compiled.forward(state, inputs, train))
  backward_seconds = _best_time(
    lambda: compiled.backward(residuals, gradient, state, rate)
  )
  multiplications = gradient.size * kernel_size**2 * channels
  seconds = forward_seconds + backward_seconds
  return {
    'compile_seconds': compile_seconds,
    'forward_ms': forward_seconds * 1e3,
    'backward_ms': backward_seconds * 1e3,
    'ms': seconds * 1e3,
    'tflops_per_second': 3 * 2 * multiplications / seconds / 1e12,
  }


def _compile(options: str, module: Any, inputs: Any) -> tuple[Any, float]:
  """Returns a block's programs under a set of options, and the seconds they took."""
  import jax

  from lamarck_jax import training
  from lamarck_jax.xla import compiler, convolution, programs

  functions = training.BLOCK_FUNCTIONS
  jax.clear_caches()
  ours = compiler.block_options, convolution.even_padding_pays
  others = {'autotuned': None, 'level3': _LEVEL_3}
  if options in others:
    compiler.block_options = lambda platform: others[options]  # type: ignore[assignment]
  if options in PADDINGS:
    convolution.even_padding_pays = lambda *_: PADDINGS[options]
  start = time.perf_counter()
  try:
    compiled = programs.compile_block(functions, module, inputs)
  finally:
    compiler.block_options, convolution.even_padding_pays = ours
  return compiled, time.perf_counter() - start


def _best_time(call: Callable[[], Any]) -> float:
  """Returns the seconds of a call, the least mean of three rounds."""
  import jax

  def seconds(count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
      result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / count

  seconds(2)
  count = max(2, min(20, round(_ROUND_SECONDS / seconds(2))))
  return min(seconds(count) for _ in range(3))


def label(block: tuple[int, ...]) -> str:
  """Returns the name of a block and of its input."""
  filters, kernel_size, stride, size, channels, batch_size = block
  name = f'{filters}c{kernel_size}' + (f's{stride}' if stride > 1 else '')
  return f'{name} of {batch_size}x{size}x{size}x{channels}'


def table(rows: list[dict[str, Any]]) -> None:
  """Prints one line for each block and type, the sets of options side by side."""
  paddings = [row for row in rows if row['options'] in PADDINGS]
  for part in ([row for row in rows if row not in paddings], paddings):
    if part:
      _table(part)
  for row in rows:
    if 'error' in row:
      print(f'{row["options"]}, {row["dtype"]}, {row["block"]}: {row["error"]}')


def _table(rows: list[dict[str, Any]]) -> None:
  names = list(dict.fromkeys(row['options'] for row in rows))
  columns = {
    'compile, s': 'compile_seconds',
    'ms': 'ms',
    'TFLOP/s': 'tflops_per_second',
  }
  lines: dict[tuple[str, str], dict[str, Any]] = {}
  for row in rows:
    lines.setdefault((row['block'], row['dtype']), {})[row['options']] = row
  common.print_table(
    ['block', 'dtype', *(f'{name}: {key}' for key in columns for name in names)],
    [
      [*line, *(cells.get(n, {}).get(k, '-') for k in columns.values() for n in names)]
      for line, cells in lines.items()
    ],
  )


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--options', default=','.join(OPTIONS), help='Which, in order.')
  parser.add_argument('--dtypes', default=','.join(DTYPES))
  parser.add_argument(
    '--out', type=common.path, help='JSON file for the figures, written as they come'
  )
  parser.add_argument('--tiny', action='store_true', help='One small block.')
  args = parser.parse_args()
  rows: list[dict[str, Any]] = []
  order = [
    case
    for options in args.options.split(',')
    for case in itertools.product(
      [options],
      TINY_BLOCKS if args.tiny else STRIDED_BLOCKS if options in PADDINGS else BLOCKS,
      args.dtypes.split(','),
    )
  ]
  for options, block, dtype in order:
    row = {'options': options, 'block': label(block), 'dtype': dtype}
    try:
      row |= measure(options, block, dtype)
    except Exception as error:  # One that does not compile loses nothing of the others.
      row['error'] = f'{type(error).__name__}: {error}'[:300]
    rows.append(row)
    print(json.dumps(row), flush=True)
    common.write_json(args.out, {'rows': rows})
  table(rows)


if __name__ == '__main__':
  main()
