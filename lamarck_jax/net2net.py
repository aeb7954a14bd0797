"""Function-preserving inheritance: the child starts as its parent's function.

Chen, Goodfellow and Shlens (2016), "Net2Net", and Wei et al. (2016), "Network
morphism"; the paper asks for it in its last section. All functions are pure. Channels
of the parent are copied, kept or left out, and the layer that reads them follows: a
wiring w, float32 [channels of the child, channels of the parent], says what a layer's
inputs stand for. With x_i = sum_c w_ci x'_c for the parent's channels x and the child's
x',

  sum_i k_io x_i = sum_c (sum_i w_ci k_io) x'_c,

so the layer computes the same with the kernel w k.

What is exact, in evaluation mode: more filters, a larger kernel, a new block of at
least as many filters as it has inputs (in front of the first block, whose inputs may be
negative, twice as many). Training mode normalises by the batch's own statistics: there
copies are exact as well, and a new block's identity is as exact as the statistics that
it is given are those of the batch. Fewer filters, a smaller kernel, a removed block and
a changed stride lose something; of these the parts that matter most are kept.
"""

from collections.abc import Mapping
import math
from typing import Any

import jax
import numpy as np

from lamarck_jax import genotype as genotype_lib
from lamarck_jax import model
from lamarck_jax.genotype import Genotype
from lamarck_jax.model import Variables

# Mean and variance of each channel, float32 [channels] each.
Statistics = tuple[np.ndarray, np.ndarray]


def is_exact(parent: Genotype, child: Genotype, channels: int) -> bool:
  """Returns whether a child can compute just what its parent does.

  Args:
    parent: The parent's genotype.
    child: The child's genotype, a mutant of the parent.
    channels: Number of channels of the images.
  """
  before = {block.lineage: block for block in parent.blocks}
  for index, block in enumerate(child.blocks):
    old = before.pop(block.lineage, None)
    if old is None:
      if block.filters < channels * (2 if index == 0 else 1):
        return False
    elif (
      block.filters < old.filters
      or block.kernel_size < old.kernel_size
      or block.stride != old.stride
    ):
      return False
    channels = block.filters
  return not before


def widen(rng: np.random.Generator, channels: int, filters: int) -> np.ndarray:
  """Returns which of its channels the outputs of a widened layer are (Net2WiderNet).

  The first ones stay where they are, the others are copies of randomly chosen ones.

  Args:
    rng: Chooses.
    channels: Number of outputs before.
    filters: Number of outputs afterwards, at least as many.

  Returns:
    int [filters].
  """
  copies = rng.integers(channels, size=filters - channels)
  return np.concatenate([np.arange(channels), copies])


def narrow(importance: np.ndarray, filters: int) -> np.ndarray:
  """Returns the channels that matter most, in their order, int [filters].

  Args:
    importance: float [channels].
    filters: Number of channels to keep, at most as many.
  """
  return np.sort(np.argsort(-importance, kind='stable')[:filters])


def wiring_of(source: np.ndarray, signs: np.ndarray, channels: int) -> np.ndarray:
  """Returns the wiring of outputs that each are a channel, or its negative half.

  The copies of one share its weight. A channel of which both halves are there is
  x = relu(x) - relu(-x).

  Args:
    source: int [filters], the channel of each output.
    signs: +1 or -1 [filters].
    channels: Number of channels.

  Returns:
    float32 [filters, channels].
  """
  wiring = np.zeros((len(source), channels), np.float32)
  wiring[np.arange(len(source)), source] = signs
  copies = [np.sum((source == s) & (signs == g)) for s, g in zip(source, signs)]
  return wiring / np.array(copies, np.float32)[:, np.newaxis]


def resize_kernel(
  kernel: np.ndarray, size: int, stride: int = 1, height: int | None = None
) -> np.ndarray:
  """Returns a kernel centred in zeros, or its centre.

  With stride 2 on an even height, SAME padding puts one pixel less before the image
  than behind it, and the same pixel is met by another tap. A larger kernel computes
  what the old one did if its padding is made up for.

  Args:
    kernel: float32 [old, old, channels, filters].
    size: The new side, odd as the old one.
    stride: Stride of the convolution.
    height: Height of its input; None for one that `stride` divides unevenly.

  Returns:
    float32 [size, size, channels, filters].
  """
  old = kernel.shape[0]
  before = _padding_before(size, stride, height) - _padding_before(old, stride, height)
  if size >= old:
    resized = np.zeros((size, size, *kernel.shape[2:]), kernel.dtype)
    resized[before : before + old, before : before + old] = kernel
    return resized
  return kernel[-before : size - before, -before : size - before]


def _padding_before(size: int, stride: int, height: int | None) -> int:
  """Returns how many rows SAME padding puts before the image."""
  if height is None:
    return (size - 1) // 2
  return max((-(-height // stride) - 1) * stride + size - height, 0) // 2


def importance(params: Any) -> np.ndarray:
  """Returns how much a block's output channels matter, float32 [filters].

  The scale of BatchNorm, which is the channel's size after normalisation, times the
  norm of the kernel that computes it.

  Args:
    params: The block's parameters, `conv` and `norm`.
  """
  kernel = np.asarray(params['conv']['kernel'])
  norms = np.sqrt(np.square(kernel).sum(axis=(0, 1, 2)))
  return np.abs(np.asarray(params['norm']['scale'])) * norms


def rectified_statistics(params: Any) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and variance of a block's output if it is normal before the ReLU.

  With y normal of mean b (BatchNorm's shift) and deviation g (its scale),
  E[max(y, 0)] = b F(b/g) + g f(b/g) and
  E[max(y, 0)^2] = (b^2 + g^2) F(b/g) + b g f(b/g), F and f being the standard normal
  distribution and its density.

  Args:
    params: The block's parameters, `conv` and `norm`.
  """
  shift = np.asarray(params['norm']['bias'], np.float64)
  scale = np.maximum(np.abs(np.asarray(params['norm']['scale'], np.float64)), 1e-12)
  ratio = shift / scale
  below = 0.5 * (1 + np.vectorize(math.erf)(ratio / math.sqrt(2)))
  density = np.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
  mean = shift * below + scale * density
  square = (shift**2 + scale**2) * below + shift * scale * density
  variance = np.maximum(square - mean**2, 0)
  return mean.astype(np.float32), variance.astype(np.float32)


def identity_block(
  kernel_size: int, source: np.ndarray, signs: np.ndarray, statistics: Statistics
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns parameters and statistics of a block that passes its inputs on.

  The kernel's middle tap takes each output from one input. BatchNorm in evaluation mode
  is g (x - m) / sqrt(v + eps) + b: with running statistics m and v, scale
  g = sqrt(v + eps) and shift b = m it is the identity, and in training mode as well as
  far as the batch has these statistics. ReLU changes nothing of inputs that come from
  another ReLU; others need both of their halves, see `wiring_of`.

  Args:
    kernel_size: Side of the kernel.
    source: int [filters], the input that each output takes.
    signs: +1 or -1 [filters].
    statistics: Mean and variance of each input.

  Returns:
    `params` and `batch_stats` of the block.
  """
  mean, variance = (part[source] for part in statistics)
  mean = (mean * signs).astype(np.float32)
  filters, channels = len(source), len(statistics[0])
  kernel = np.zeros((kernel_size, kernel_size, channels, filters), np.float32)
  kernel[kernel_size // 2, kernel_size // 2, source, np.arange(filters)] = signs
  scale = np.sqrt(variance + np.float32(model.BATCH_NORM_EPSILON))
  params = {
    'conv': {'kernel': kernel, 'bias': np.zeros(filters, np.float32)},
    'norm': {'scale': scale, 'bias': mean},
  }
  return params, {'norm': {'mean': mean.copy(), 'var': variance.copy()}}


def bypass(params: Any, inputs: Statistics, outputs: Statistics) -> np.ndarray:
  """Returns a wiring of a block's inputs that stands in for its outputs.

  Each output is replaced by the input that adds most to it, at the output's own
  deviation: what its successor reads keeps its size.

  Args:
    params: The block's parameters.
    inputs: Mean and variance of the block's inputs.
    outputs: Those of its outputs.

  Returns:
    float32 [inputs, outputs].
  """
  deviations = [np.sqrt(statistics[1]) for statistics in (inputs, outputs)]
  weights = params['conv']['kernel'].sum(axis=(0, 1)) * deviations[0][:, np.newaxis]
  weights = weights * np.sign(params['norm']['scale'])
  match, index = weights.argmax(axis=0), np.arange(weights.shape[1])
  wiring = np.zeros(weights.shape, np.float32)
  wiring[match, index] = deviations[1] / np.maximum(deviations[0][match], 1e-3)
  return wiring


def inherit(
  key: jax.Array,
  parent: Genotype,
  parent_variables: Variables,
  child: Genotype,
  *,
  output_statistics: Mapping[int, Statistics] | None = None,
  image_size: int | None = None,
  noise: float = 0.0,
) -> dict[str, Any]:
  """Returns a child's variables by which it computes what its parent does.

  Args:
    key: A JAX random key.
    parent: The parent's genotype.
    parent_variables: The parent's trained variables; they are left as they are.
    child: The child's genotype, a mutant of the parent.
    output_statistics: Mean and variance of the outputs of the parent's blocks over
      some images, by lineage; estimated where they are not given.
    image_size: Height of the images; decides the exact padding of larger kernels.
    noise: Standard deviation of the noise on the kernels of copies, in units of that
      of the layer's weights; it lets copies grow apart.

  Returns:
    The child's variables, `params` and `batch_stats`, as NumPy arrays.
  """
  rng = genotype_lib.generator(key)
  variables = jax.tree.map(np.asarray, dict(parent_variables))
  old_params, old_stats = variables['params'], variables['batch_stats']
  names = [model.block_name(block) for block in parent.blocks]
  channels = old_params[names[0]]['conv']['kernel'].shape[-2]

  # Of the images, which are standardised, and of every block's output.
  statistics: list[Statistics] = [
    (np.zeros(channels, np.float32), np.ones(channels, np.float32))
  ]
  for block, name in zip(parent.blocks, names):
    measured = (output_statistics or {}).get(block.lineage)
    statistics.append(measured or rectified_statistics(old_params[name]))

  def follow(wiring: np.ndarray, start: int, end: int) -> np.ndarray:
    """Wires past the parent's blocks from `start` to `end`, which the child lacks."""
    for index in range(start, end):
      skipped = old_params[names[index]]
      wiring = wiring @ bypass(skipped, statistics[index], statistics[index + 1])
    return wiring

  params: dict[str, Any] = {}
  stats: dict[str, Any] = {}
  position = 0  # What comes in stands for the input of the parent's block there.
  wiring = np.eye(channels, dtype=np.float32)
  incoming, importances = statistics[0], np.ones(channels)
  height = image_size
  for block in child.blocks:
    name = model.block_name(block)
    if name in names:
      index = names.index(name)
      wiring = follow(wiring, position, index)
      old, norm = old_params[name]['conv'], old_params[name]['norm']
      kernel, filters = old['kernel'], old['kernel'].shape[-1]
      kernel = resize_kernel(kernel, block.kernel_size, block.stride, height)
      kernel = np.einsum('ci,hwio->hwco', wiring, kernel)
      if block.filters >= filters:
        source = widen(rng, filters, block.filters)
      else:
        source = narrow(importance(old_params[name]), block.filters)
      params[name] = {
        'conv': {'kernel': kernel[..., source], 'bias': old['bias'][source]},
        'norm': {field: values[source] for field, values in norm.items()},
      }
      moments = old_stats[name]['norm']
      stats[name] = {'norm': {field: v[source] for field, v in moments.items()}}
      signs = np.ones(len(source), np.float32)
      wiring = wiring_of(source, signs, filters)
      incoming = tuple(part[source] for part in statistics[index + 1])
      position = index + 1
    else:
      channels = len(wiring)
      if not params:  # Images may be negative.
        pairs = np.repeat(np.arange(channels), 2)
        filters = min(2 * channels, block.filters)
        chosen = widen(rng, filters, block.filters)
        source = pairs[:filters][chosen]
        signs = np.array([1, -1] * channels, np.float32)[:filters][chosen]
      else:
        filters = channels
        if block.filters >= channels:
          source = widen(rng, channels, block.filters)
        else:
          source = narrow(importances, block.filters)
        signs = np.ones(len(source), np.float32)
      params[name], stats[name] = identity_block(
        block.kernel_size, source, signs, incoming
      )
      wiring = wiring_of(source, signs, channels) @ wiring
      incoming = tuple(part[source] for part in incoming)
    copies = np.arange(len(source)) >= filters
    kernel = params[name]['conv']['kernel']
    if noise and copies.any():
      scale = noise * kernel.std()
      kernel[..., copies] += rng.normal(0, scale, kernel[..., copies].shape)
    importances = importance(params[name])
    height = None if height is None else -(-height // block.stride)

  wiring = follow(wiring, position, len(names))
  dense = old_params[model.CLASSIFIER]['dense']
  params[model.CLASSIFIER] = {
    'dense': {'kernel': wiring @ dense['kernel'], 'bias': dense['bias']}
  }
  return {'params': params, 'batch_stats': stats}
