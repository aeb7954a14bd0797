"""What a model of a training step says of a search on a GPU, beside what it took.

  python -m benchmarks.step_model [docs/results/h200_3/evaluations.json]

The model has the operations and the bytes of each block (docs/performance.md, "A model
of a step"). A line through the evaluations, seconds of training over the model's,
separates what grows with the network from what every evaluation costs.
"""

import argparse
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from benchmarks import common
from lamarck_jax import flops
from lamarck_jax.genotype import Block, Genotype
from lamarck_jax.xla import convolution

_PATH = pathlib.Path('docs/results/h200_3/evaluations.json')
# Of one NVIDIA H200 or H100, what convolutions reach: operations and bytes a second.
_OPERATIONS = {'float32': 270e12, 'bfloat16': 440e12}
_BYTES = 3.9e12
_BYTES_PER_VALUE = {'float32': 4, 'bfloat16': 2}
# The paper's search on CIFAR-10: an evaluation has four epochs of 45,000 images.
BATCH_SIZE, STEPS, IMAGE_SHAPE, NUM_CLASSES = 512, 4 * (45_000 // 512), (32, 32, 3), 10


def step_seconds(genotype: Genotype, dtype: str) -> float:
  """Returns the seconds of a training step, if only the card takes time."""
  side, _, channels = IMAGE_SHAPE
  seconds = 0.0
  for index, block in enumerate(genotype.blocks):
    output_side = -(-side // block.stride)
    pixels = BATCH_SIZE * output_side**2
    taps = _kernel_size(block) ** 2
    operations = 2 * pixels * taps * channels * block.filters
    # Nobody needs the gradient of the images.
    passes, reads, writes = (3, 3, 11) if index else (2, 2, 10)
    values = reads * BATCH_SIZE * side**2 * channels + writes * pixels * block.filters
    seconds += passes * operations / _OPERATIONS[dtype]
    seconds += _BYTES_PER_VALUE[dtype] * values / _BYTES
    side, channels = output_side, block.filters
  return seconds


def _kernel_size(block: Block) -> int:
  """Returns the side with the zeros of `convolution.even_padding_pays`."""
  pays = convolution.even_padding_pays(block.kernel_size, block.filters)
  extended = block.stride > 1 and block.kernel_size > 1 and pays
  return block.kernel_size + extended


class Fit(NamedTuple):
  """Training of the evaluations of one search.

  Attributes:
    predicted: The model's seconds.
    measured: Seconds.
    factor: Seconds for each of the model's, by least squares.
    constant: Seconds that every evaluation takes beside, likewise.
    r2: Of this line.
    tflops_per_second: With gradients, of the evaluations' second half: measured; at the
      model's seconds; at `factor` times these, without `constant`.
  """

  predicted: float
  measured: float
  factor: float
  constant: float
  r2: float
  tflops_per_second: tuple[float, float, float]


def fit(evaluations: list[dict[str, Any]], dtype: str) -> Fit:
  """Compares evaluations, with `genotype` and `images_per_second`, with the model."""
  genotypes = [Genotype.parse(row['genotype']) for row in evaluations]
  images = STEPS * BATCH_SIZE
  predicted = np.array([STEPS * step_seconds(g, dtype) for g in genotypes])
  measured = np.array([images / row['images_per_second'] for row in evaluations])
  operations = np.array(
    [3 * images * flops.network_flops(g, IMAGE_SHAPE, NUM_CLASSES) for g in genotypes]
  )
  columns = np.stack([predicted, np.ones_like(predicted)], axis=1)
  (factor, constant), *_ = np.linalg.lstsq(columns, measured, rcond=None)
  residual = measured - columns @ [factor, constant]
  half = slice(len(evaluations) // 2, None)
  seconds = measured[half].sum(), predicted[half].sum(), factor * predicted[half].sum()
  return Fit(
    float(predicted.sum()),
    float(measured.sum()),
    float(factor),
    float(constant),
    float(1 - residual.var() / measured.var()),
    tuple(float(operations[half].sum() / s / 1e12) for s in seconds),  # type: ignore[arg-type]
  )


def main() -> None:
  """Prints the comparison of a file of evaluations."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('path', type=common.path, nargs='?', default=_PATH)
  searches = json.loads(parser.parse_args().path.read_text())
  rows = [(dtype, fit(rows, dtype)) for dtype, rows in searches.items()]
  common.print_table(
    ['', 'model, s', 'training, s', 'factor', 'constant, s', 'R2', 'TFLOP/s']
    + ['at the model', 'at factor'],
    [[dtype, *found[:-1], *found.tflops_per_second] for dtype, found in rows],
  )


if __name__ == '__main__':
  main()
