"""Floating-point operations of a network and of its training.

As the paper's footnote counts them: those of one example through the network, times
the number of examples seen. A block counts as inference engines run it, a convolution
with the batch normalisation folded into a scale and a shift of its output, and ReLU.
The figures are XLA's own cost analysis before any rewriting, for the CPU whatever
device trains: JAX's client for GPUs gives none before it has compiled.
"""

from collections.abc import Callable
import functools
import os
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from lamarck_jax import model
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Block, Genotype


def network_flops(
  genotype: Genotype, image_shape: tuple[int, int, int], num_classes: int
) -> int:
  """Returns the operations to classify one example.

  Args:
    genotype: The architecture.
    image_shape: (height, width, channels).
    num_classes: Number of classes.
  """
  height, width, channels = image_shape
  total = 0
  for block in genotype.blocks:
    total += _block_flops(block, height, width, channels)
    height, width = -(-height // block.stride), -(-width // block.stride)
    channels = block.filters
  return total + _classifier_flops(
    model.Classifier(num_classes), height, width, channels
  )


def multiply_adds(genotype: Genotype, image_shape: tuple[int, int, int]) -> int:
  """Returns those of the convolutions for one example, borders counted in full.

  It compares networks at once, where `network_flops` traces each block.
  """
  height, width, channels = image_shape
  total = 0
  for block in genotype.blocks:
    height, width = -(-height // block.stride), -(-width // block.stride)
    total += height * width * block.kernel_size**2 * channels * block.filters
    channels = block.filters
  return total


@functools.lru_cache
def _block_flops(block: Block, height: int, width: int, channels: int) -> int:
  return _cost(
    functools.partial(_folded_block, (block.stride, block.stride)),
    model.block_shapes(model.conv_block(block), channels),
    jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32),
  )


def _folded_block(strides: tuple[int, int], variables: Any, x: jax.Array) -> jax.Array:
  conv, norm = variables['params']['conv'], variables['params']['norm']
  stats = variables['batch_stats']['norm']
  y = lax.conv_general_dilated(
    x, conv['kernel'], strides, 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  factor = norm['scale'] * lax.rsqrt(stats['var'] + model.BATCH_NORM_EPSILON)
  return nn.relu(y * factor + ((conv['bias'] - stats['mean']) * factor + norm['bias']))


@functools.lru_cache
def _classifier_flops(
  module: model.Classifier, height: int, width: int, channels: int
) -> int:
  return _cost(
    module.apply,
    model.classifier_shapes(module, channels),
    jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32),
  )


def _cost(function: Callable[..., Any], *shapes: Any) -> int:
  with jax.default_device(_cpu()):
    analysis: Any = jax.jit(function).lower(*shapes).cost_analysis()
  return int(analysis['flops'])


def _cpu() -> jax.Device:
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    platforms = os.environ.get('JAX_PLATFORMS')
    raise UserError(
      f'JAX_PLATFORMS: got {platforms!r}, want cpu among them: it counts operations'
    ) from None
