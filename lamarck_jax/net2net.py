"""Function-preserving inheritance: the child starts as its parent's function.

After Chen, Goodfellow and Shlens (2016), "Net2Net", and Wei et al. (2016), "Network
morphism"; the paper's last section names it as future work.

A mutated block replaces the channels x that the next layer reads by other channels x'.
An `AffineMap` (W, d) expresses the old ones by the new, x = x' W + d, exactly or by
least squares. A next layer with kernel k and bias b, which computed x k + b, now has to
compute

  (x' W + d) k + b = x' (W k) + (b + d k),

so its kernel becomes W k and its bias b + d k. The kinds of change:

  more filters         `widen`             exact
  fewer filters        `narrow`            least squares
  a larger kernel      `enlarge_kernel`    exact
  a smaller kernel     `shrink_kernel`     its centre, least squares
  a new block          `insert_identity`   exact if it has enough filters
  a removed block      `bypass`            least squares
  another stride       weights as they are

"Exact" holds in evaluation mode and without noise. In training mode, which normalises
by the batch's statistics, copies stay exact, and a new block is the identity as far as
the given moments are those of the batch. Where d is not zero, the result is off at the
borders of the image, since padding is zero and not the mean of a channel.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy  # It imports `linalg` when that is used, which takes 0.15 s.

from lamarck_jax import genotype as genotype_lib
from lamarck_jax import model
from lamarck_jax.genotype import Block, Genotype
from lamarck_jax.model import Variables
from lamarck_jax.moments import Moments, estimated_from, estimated_moments

# Ridge of the least squares, relative to the mean variance of the predictors.
_RIDGE = 1e-4


class AffineMap(NamedTuple):
  """The map x -> x @ weights + offset of the channels of a pixel.

  Attributes:
    weights: float32 [inputs, outputs].
    offset: float32 [outputs].
  """

  weights: np.ndarray
  offset: np.ndarray

  def compose(self, inner: 'AffineMap') -> 'AffineMap':
    """Returns the map x -> self(inner(x))."""
    return AffineMap(
      inner.weights @ self.weights, inner.offset @ self.weights + self.offset
    )

  def fold_into(self, layer: Any) -> dict[str, np.ndarray]:
    """Returns the layer x -> layer(self(x)).

    Args:
      layer: `kernel`, float32 [..., outputs, filters], and `bias`, [filters].
    """
    kernel, bias = layer['kernel'], layer['bias']
    return {
      'kernel': self.weights @ kernel,
      'bias': bias + _response(kernel, self.offset),
    }


def identity(channels: int) -> AffineMap:
  """Returns the map of channels to themselves."""
  return AffineMap(np.eye(channels, dtype=np.float32), np.zeros(channels, np.float32))


class Signal(NamedTuple):
  """The channels between two blocks of the child.

  Attributes:
    moments: Their moments.
    depth: The number of the parent's blocks that the child's blocks before stand for.
    to_parent: The parent's channels at that depth as a map of these.
  """

  moments: Moments
  depth: int
  to_parent: AffineMap


def inherit(
  key: jax.Array,
  parent: Genotype,
  parent_variables: Variables,
  child: Genotype,
  *,
  parent_moments: Sequence[Moments] | None = None,
  image_shape: tuple[int, int] | None = None,
  noise: float = 0.0,
) -> dict[str, Any]:
  """Returns variables with which a child computes what its parent does.

  Args:
    key: Draws which filters are copied, and the noise.
    parent_variables: The parent's trained variables; they are not modified.
    child: A mutant of the parent.
    parent_moments: Moments of the parent's images and of each block's outputs, see
      `moments.measure`; estimated from BatchNorm where they are not given.
    image_shape: Height and width of the images, in pixels; needed where the kernel of a
      block of stride 2 grows.
    noise: Standard deviation of the noise on copied filters, in units of that of their
      kernel. Without noise, copies have equal gradients and never differ.

  Returns:
    The child's `params` and `batch_stats`, NumPy arrays.

  Raises:
    ValueError: If `image_shape` is needed and not given.
  """
  old = jax.tree.map(np.asarray, dict(parent_variables))
  known = parent_moments or estimated_from(parent, old)
  names = [model.block_name(block) for block in parent.blocks]
  dense = old['params'][model.CLASSIFIER]['dense']
  layers = [old['params'][name]['conv'] for name in names] + [dense]

  params: dict[str, Any] = {}
  stats: dict[str, Any] = {}
  signal = Signal(known[0], 0, identity(len(known[0].mean)))
  for block in child.blocks:
    name, block_key = model.block_name(block), jax.random.fold_in(key, block.lineage)
    if name in names:
      # Reads the parent's channels, resizes the kernel; filters are still the parent's.
      signal = _bypass_removed(signal, known, names.index(name))
      conv = signal.to_parent.fold_into(layers[signal.depth])
      conv = _resize_kernel(conv, block, signal.moments, image_shape)
      variables = {**old['params'][name], 'conv': conv}, old['batch_stats'][name]
      outputs = known[signal.depth + 1]
      signal = Signal(outputs, signal.depth + 1, identity(len(outputs.mean)))
    else:
      # Images may be negative, unlike the outputs of a block.
      variables, signal = insert_identity(block.kernel_size, signal, signed=not params)
    reader = layers[signal.depth]['kernel']
    (params[name], stats[name]), signal = _resize_outputs(
      block_key, variables, block.filters, signal, reader, noise
    )
    if image_shape:
      height, width = image_shape
      image_shape = -(-height // block.stride), -(-width // block.stride)
  signal = _bypass_removed(signal, known, len(names))
  params[model.CLASSIFIER] = {'dense': signal.to_parent.fold_into(dense)}
  return {'params': params, 'batch_stats': stats}


def _bypass_removed(signal: Signal, known: Sequence[Moments], depth: int) -> Signal:
  """Skips the parent's blocks up to a depth, which the child lacks."""
  to_parent = signal.to_parent
  for index in range(signal.depth, depth):
    to_parent = bypass(known[index], known[index + 1]).compose(to_parent)
  return Signal(signal.moments, depth, to_parent)


def _resize_kernel(
  conv: Any, block: Block, inputs: Moments, image_shape: tuple[int, int] | None
) -> dict[str, np.ndarray]:
  """Returns a convolution with the kernel size of a block."""
  kernel, bias = conv['kernel'], conv['bias']
  if block.kernel_size >= len(kernel):
    kernel = enlarge_kernel(kernel, block.kernel_size, block.stride, image_shape)
    return {'kernel': kernel, 'bias': bias}
  smaller = shrink_kernel(kernel, block.kernel_size, inputs.correlation)
  # The bias makes up for the change of the mean.
  change = _response(kernel, inputs.mean) - _response(smaller, inputs.mean)
  return {'kernel': smaller, 'bias': bias + change}


def _resize_outputs(
  key: jax.Array,
  variables: tuple[Any, Any],
  filters: int,
  signal: Signal,
  reader: np.ndarray,
  noise: float,
) -> tuple[tuple[Any, Any], Signal]:
  """Returns a block's variables with another number of filters, and its outputs.

  `signal` is its outputs before, `reader` the parent's kernel that reads them.
  """
  channels = len(signal.moments.mean)
  if filters >= channels:
    source, to_old = widen(key, channels, filters)
  else:
    kernel = signal.to_parent.weights @ reader
    influence = np.sqrt(np.square(kernel).sum(axis=(*range(kernel.ndim - 2), -1)))
    source, to_old = narrow(signal.moments, influence, filters)
  # Filters are the last axis of every leaf.
  params, stats = jax.tree.map(lambda leaf: leaf[..., source], variables)
  kernel = params['conv']['kernel']
  copies = kernel[..., channels:]
  rng = genotype_lib.generator(jax.random.fold_in(key, 1))
  copies += rng.normal(0, noise * kernel.std(), copies.shape)
  to_parent = signal.to_parent.compose(to_old)
  return (params, stats), Signal(signal.moments.take(source), signal.depth, to_parent)


def _response(kernel: np.ndarray, inputs: np.ndarray) -> np.ndarray:
  """Returns a kernel's outputs on inputs that are equal at every pixel, [filters]."""
  return inputs @ kernel.reshape(-1, *kernel.shape[-2:]).sum(axis=0)


def widen(key: jax.Array, channels: int, filters: int) -> tuple[np.ndarray, AffineMap]:
  """Adds outputs to a layer, copies of randomly chosen ones (Net2WiderNet).

  The first outputs stay in place. Of n copies of a channel each stands for 1/n of it:
  x = n (x / n).

  Returns:
    Which channel each output is, int [filters], and the map to the old outputs.
  """
  copies = genotype_lib.generator(key).integers(channels, size=filters - channels)
  source = np.concatenate([np.arange(channels), copies])
  weights = np.zeros((filters, channels), np.float32)
  weights[np.arange(filters), source] = 1 / np.bincount(source)[source]
  return source, AffineMap(weights, np.zeros(channels, np.float32))


def narrow(
  outputs: Moments, influence: np.ndarray, filters: int
) -> tuple[np.ndarray, AffineMap]:
  """Keeps the outputs of a layer that matter most.

  They are chosen greedily, each time the one with the largest residual given those
  already chosen, times its influence: the pivots of a Cholesky decomposition. So of two
  similar channels one is enough. Least squares predicts the others: with means m and
  covariance C, of the kept channels K and another one o,

    x_o = m_o + (x_K - m_K) w,  w = C_KK^-1 C_Ko.

  Args:
    outputs: The moments of the layer's outputs.
    influence: How much the next layer depends on each, float [channels].
    filters: Number of channels to keep, at most as many as there are.

  Returns:
    The channels kept, ascending, int [filters], and the map to the old outputs.
  """
  weighted = outputs.covariance * np.outer(influence, influence)
  _, pivots, _, _ = scipy.linalg.lapack.dpstrf(weighted.astype(np.float64))
  kept = np.sort(pivots[:filters] - 1)
  cross = outputs.covariance[kept]
  to_old = least_squares(outputs.take(kept), outputs.mean, cross)
  # The ridge would shrink what is known exactly.
  to_old.weights[:, kept] = np.eye(filters)
  to_old.offset[kept] = 0
  return kept, to_old


def bypass(inputs: Moments, outputs: Moments) -> AffineMap:
  """Returns the map that replaces a removed block.

  Least squares predicts its outputs y from its inputs x at the same pixel:
  y = m_y + (x - m_x) w, w = C_xx^-1 C_xy.
  """
  assert outputs.cross is not None
  return least_squares(inputs, outputs.mean, outputs.cross)


def least_squares(inputs: Moments, mean: np.ndarray, cross: np.ndarray) -> AffineMap:
  """Predicts channels, given their mean and their covariance with the inputs.

  Raises:
    LinAlgError: If activations are so large that their moments are not finite.
  """
  covariance = inputs.covariance.astype(np.float64)
  if not (np.isfinite(covariance).all() and np.isfinite(cross).all()):
    raise np.linalg.LinAlgError('activations are too large for a fit of least squares')
  ridge = _RIDGE * np.trace(covariance) / len(covariance) + 1e-12
  weights = scipy.linalg.solve(
    covariance + ridge * np.eye(len(covariance)), cross, assume_a='pos'
  ).astype(np.float32)
  return AffineMap(weights, mean - inputs.mean @ weights)


def enlarge_kernel(
  kernel: np.ndarray,
  size: int,
  stride: int = 1,
  image_shape: tuple[int, int] | None = None,
) -> np.ndarray:
  """Surrounds a kernel with zeros; every old tap meets the same pixels as before.

  With stride 2, SAME padding depends on the kernel's size: an even height gets one row
  less before the image than behind it. So the old kernel's place is not the centre but
  where the difference of the two paddings puts it.

  Args:
    kernel: float32 [old, old, channels, filters]; the result has the new size.
    size: The new side, odd like the old one and at least as large.
    stride: Stride of the convolution.
    image_shape: Height and width of its input; needed where the kernel grows and the
      stride is not 1.

  Raises:
    ValueError: If `image_shape` is needed and not given.
  """
  old = len(kernel)
  if size == old:
    return kernel
  if stride > 1 and image_shape is None:
    raise ValueError(
      'image_shape: got None, want height and width, on which the padding of a larger'
      f' kernel of stride {stride} depends'
    )
  row, column = (
    _padding_before(size, stride, length) - _padding_before(old, stride, length)
    for length in image_shape or (0, 0)  # With stride 1, any length pads alike.
  )
  resized = np.zeros((size, size, *kernel.shape[2:]), kernel.dtype)
  resized[row : row + old, column : column + old] = kernel
  return resized


def _padding_before(size: int, stride: int, length: int) -> int:
  """Returns how many pixels SAME padding puts before a side of the image."""
  return max((-(-length // stride) - 1) * stride + size - length, 0) // 2


def shrink_kernel(kernel: np.ndarray, size: int, correlation: float) -> np.ndarray:
  """Cuts a kernel to its centre, which makes up for the taps cut off.

  With pixels correlated as r^d over d steps along rows and columns, the best linear
  prediction of a pixel from a rectangle of others is r^d times the nearest of these
  (Markov property). So each tap cut off is added to the nearest one kept, times r^d.
  This scales the means too, for which the bias has to make up.

  Args:
    kernel: float32 [old, old, channels, filters]; the result has the new size.
    size: The new side, odd like the old one and at most as large.
    correlation: r, of neighbouring pixels of the input.
  """
  old = len(kernel)
  taps = np.arange(old)
  nearest = np.clip(taps, (old - size) // 2, (old + size) // 2 - 1)
  # One row for each tap kept: the share of every old tap that it takes over.
  shares = np.zeros((size, old), np.float32)
  shares[nearest - nearest[0], taps] = correlation ** np.abs(taps - nearest)
  return np.einsum('yh,xw,hwio->yxio', shares, shares, kernel)


def insert_identity(
  kernel_size: int, signal: Signal, signed: bool
) -> tuple[tuple[dict[str, Any], dict[str, Any]], Signal]:
  """Returns the variables and outputs of a block that passes on its inputs.

  In the kernel's middle tap each output takes one input (Net2DeeperNet). BatchNorm in
  evaluation mode is g (x - m) / sqrt(v + eps) + b: with running statistics m and v, the
  scale g = sqrt(v + eps) and the shift b = m make it the identity. ReLU does not change
  what comes from another ReLU. Where inputs are `signed`, as images are, both halves
  are passed on, the positive ones first: x = relu(x) - relu(-x).
  """
  inputs = signal.moments
  weights, offset = identity(len(inputs.mean))
  if signed:
    weights = np.concatenate([weights, -weights])
  mean = weights @ inputs.mean
  variance = np.square(weights) @ np.diagonal(inputs.covariance)
  kernel = np.zeros((kernel_size, kernel_size, *weights.T.shape), np.float32)
  kernel[kernel_size // 2, kernel_size // 2] = weights.T
  scale = np.sqrt(variance + np.float32(model.BATCH_NORM_EPSILON))
  params = {
    'conv': {'kernel': kernel, 'bias': np.zeros(len(weights), np.float32)},
    'norm': {'scale': scale, 'bias': mean},
  }
  stats = {'norm': {'mean': mean.copy(), 'var': variance}}
  outputs = estimated_moments(params, stats, inputs) if signed else inputs
  to_parent = signal.to_parent.compose(AffineMap(weights, offset))
  return (params, stats), Signal(outputs, signal.depth, to_parent)
