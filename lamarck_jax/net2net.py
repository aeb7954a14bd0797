"""Function-preserving inheritance: the child starts as its parent's function.

Chen, Goodfellow and Shlens (2016), "Net2Net", and Wei et al. (2016), "Network
morphism"; the paper asks for it in its last section. All functions are pure.

Every change to a block replaces the channels x that the next layer reads by others, x'.
A `Wiring` (w, d) says what the old ones are in terms of the new ones,
x_i = sum_c x'_c w_ci + d_i, as well as it can be said. The next layer, with kernel k
and bias b, then computes

  sum_i k_io x_i + b_o = sum_c (sum_i w_ci k_io) x'_c + (b_o + sum_i d_i k_io),

so it takes the kernel w k and the bias b + d k. The kinds of change:

  more filters         `widen`            exact
  fewer filters        `narrow`           least squares
  a larger kernel      `enlarge_kernel`   exact
  a smaller kernel     `shrink_kernel`    its centre, least squares
  a new block          `identity_block`   exact if no filters are lacking
  a removed block      `bypass`           least squares
  another stride       weights as they are

"Exact" holds in evaluation mode and without noise. Training mode normalises by the
batch's own statistics: there copies are exact as well, and a new block's identity is as
exact as the moments that it is given are those of the batch. Where d is not zero, the
sum is off at the borders of the image, where padding is no channel's mean.
"""

from collections.abc import Iterable, Sequence
import math
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.linalg

from lamarck_jax import genotype as genotype_lib
from lamarck_jax import model
from lamarck_jax.genotype import Genotype
from lamarck_jax.model import Variables

# Of the mean variance, added to every variance in least squares.
_RIDGE = 1e-4


class Moments(NamedTuple):
  """Moments of the channels of the images, or of a block's outputs.

  Attributes:
    mean: Of each channel, float32 [channels].
    covariance: Of channels at the same pixel, float32 [channels, channels].
    correlation: Of a channel at neighbouring pixels, over all channels.
    cross: Covariance of the block's inputs with its outputs at the same pixel,
      float32 [inputs, channels]; None for the images.
  """

  mean: np.ndarray
  covariance: np.ndarray
  correlation: float = 1.0
  cross: np.ndarray | None = None

  def take(self, source: np.ndarray) -> 'Moments':
    """Returns the moments of copies of channels, int [filters], without `cross`."""
    return Moments(
      self.mean[source], self.covariance[np.ix_(source, source)], self.correlation
    )


class Wiring(NamedTuple):
  """Old channels as an affine function of new ones: new @ weights + offset.

  Attributes:
    weights: float32 [new, old].
    offset: float32 [old].
  """

  weights: np.ndarray
  offset: np.ndarray

  def then(self, older: 'Wiring') -> 'Wiring':
    """Returns the wiring for what `older` gives of channels that this one gives."""
    return Wiring(
      self.weights @ older.weights, self.offset @ older.weights + older.offset
    )


def straight(channels: int) -> Wiring:
  """Returns the wiring of channels that have stayed what they were."""
  return Wiring(np.eye(channels, dtype=np.float32), np.zeros(channels, np.float32))


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


# ------------------------------------------------------------------------------
# Moments
# ------------------------------------------------------------------------------


def moments(activations: Iterable[np.ndarray]) -> list[Moments]:
  """Measures the moments of a network's activations.

  Args:
    activations: The images as the network sees them, and each block's outputs,
      float32 [batch, height, width, channels].

  Returns:
    The moments of each.
  """
  found: list[Moments] = []
  inputs = None
  for outputs in activations:
    mean = outputs.mean(axis=(0, 1, 2))
    outputs = outputs - mean
    y = outputs.reshape(-1, outputs.shape[-1])
    cross = None
    if inputs is not None:
      height, width = (-(-inputs.shape[i] // outputs.shape[i]) for i in (1, 2))
      x = inputs[:, ::height, ::width].reshape(-1, inputs.shape[-1])
      cross = (x - x.mean(axis=0)).T @ y / len(y)
    correlation = _neighbours_correlation(outputs)
    found.append(Moments(mean, y.T @ y / len(y), correlation, cross))
    inputs = outputs
  return found


def _neighbours_correlation(x: np.ndarray) -> float:
  """Returns that of pixels next to each other, of channels of mean 0."""
  variance = np.square(x).mean()
  pairs = [(x[:, 1:], x[:, :-1]), (x[:, :, 1:], x[:, :, :-1])]
  products = [(a * b).mean() for a, b in pairs if a.size]
  if not products or variance == 0:
    return 1.0
  return float(np.clip(np.mean(products) / variance, 0, 1))


def estimated_moments(params: Any, stats: Any, inputs: Moments) -> Moments:
  """Returns the moments of a block's outputs if they are normal before the ReLU.

  With y normal of mean b (BatchNorm's shift) and deviation g (its scale),
  E[max(y, 0)] = b F(b/g) + g f(b/g),
  E[max(y, 0)^2] = (b^2 + g^2) F(b/g) + b g f(b/g) and
  Cov[x, max(y, 0)] = F(b/g) Cov[x, y] for x jointly normal (Stein's lemma), F and f
  being the standard normal distribution and its density. Neighbouring pixels are taken
  to be alike, and outputs not to covary.

  Args:
    params: The block's parameters, `conv` and `norm`.
    stats: The block's statistics, `norm`.
    inputs: The moments of its inputs.
  """
  norm = {name: np.asarray(leaf, np.float64) for name, leaf in params['norm'].items()}
  shift, scale = norm['bias'], np.maximum(np.abs(norm['scale']), 1e-12)
  ratio = shift / scale
  below = 0.5 * (1 + np.vectorize(math.erf)(ratio / math.sqrt(2)))
  density = np.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
  mean = shift * below + scale * density
  square = (shift**2 + scale**2) * below + shift * scale * density
  deviation = np.sqrt(stats['norm']['var'] + model.BATCH_NORM_EPSILON)
  kernel = params['conv']['kernel'].sum(axis=(0, 1))
  cross = inputs.covariance @ kernel * (norm['scale'] / deviation * below)
  covariance = np.diag(np.maximum(square - mean**2, 0))
  mean, covariance, cross = (m.astype(np.float32) for m in (mean, covariance, cross))
  return Moments(mean, covariance, inputs.correlation, cross)


# ------------------------------------------------------------------------------
# Kinds of change
# ------------------------------------------------------------------------------


def widen(key: jax.Array, channels: int, filters: int) -> tuple[np.ndarray, Wiring]:
  """Returns the outputs of a widened layer (Net2WiderNet).

  The first ones stay where they are, the others are copies of randomly chosen ones. Of
  n copies of a channel each carries 1/n: x = n (x / n).

  Args:
    key: A JAX random key.
    channels: Number of outputs before.
    filters: Number of outputs afterwards, at least as many.

  Returns:
    Which channel each output is, int [filters], and the wiring.
  """
  rng = genotype_lib.generator(key)
  copies = rng.integers(channels, size=filters - channels)
  source = np.concatenate([np.arange(channels), copies])
  weights = np.zeros((filters, channels), np.float32)
  weights[np.arange(filters), source] = 1 / np.bincount(source)[source]
  return source, Wiring(weights, np.zeros(channels, np.float32))


def narrow(
  outputs: Moments, influence: np.ndarray, filters: int
) -> tuple[np.ndarray, Wiring]:
  """Returns the outputs of a narrowed layer, the channels that matter most.

  They are chosen one after the other, each time the one of which most would be missing:
  what cannot be predicted from those already chosen, times its influence. That is the
  order of a Cholesky decomposition with pivoting; two channels that are alike are not
  chosen both. The others are predicted by least squares: with means m and covariance C,
  of the kept channels K and the other ones o,

    x_o = m_o + (x_K - m_K) w,  w = C_KK^-1 C_Ko.

  Args:
    outputs: The moments of the layer's outputs.
    influence: By how much each changes what is computed from them, float [channels].
    filters: Number of channels to keep, at most as many as there are.

  Returns:
    The channels that are kept, in their order, int [filters], and the wiring.
  """
  weighted = outputs.covariance * np.outer(influence, influence)
  _, pivots, _, _ = scipy.linalg.lapack.dpstrf(weighted.astype(np.float64))
  kept = np.sort(pivots[:filters] - 1)
  inputs = outputs.take(kept)
  wiring = _least_squares(inputs, outputs.mean, outputs.covariance[kept])
  wiring.weights[:, kept] = np.eye(filters)
  wiring.offset[kept] = 0
  return kept, wiring


def bypass(inputs: Moments, outputs: Moments) -> Wiring:
  """Returns the wiring that stands in for a removed block.

  Each output y is predicted from the block's inputs x at the same pixel by least
  squares: y = m_y + (x - m_x) w, w = C_xx^-1 C_xy.

  Args:
    inputs: The moments of the block's inputs.
    outputs: Those of its outputs.
  """
  assert outputs.cross is not None
  return _least_squares(inputs, outputs.mean, outputs.cross)


def _least_squares(inputs: Moments, mean: np.ndarray, cross: np.ndarray) -> Wiring:
  """Returns the prediction of channels of a mean and a covariance with the inputs."""
  covariance = inputs.covariance.astype(np.float64)
  ridge = _RIDGE * np.trace(covariance) / len(covariance) + 1e-12
  weights = scipy.linalg.solve(
    covariance + ridge * np.eye(len(covariance)), cross, assume_a='pos'
  ).astype(np.float32)
  return Wiring(weights, mean - inputs.mean @ weights)


def enlarge_kernel(
  kernel: np.ndarray,
  size: int,
  stride: int = 1,
  image_shape: tuple[int, int] | None = None,
) -> np.ndarray:
  """Returns a kernel in the middle of zeros.

  It computes what the old one did if every tap of the old one meets the pixel that it
  met. With stride 2, SAME padding depends on the kernel: on an even height, it puts one
  row less before the image than behind it. So the middle is where the padding of both
  puts it.

  Args:
    kernel: float32 [old, old, channels, filters].
    size: The new side, odd as the old one and at least as large.
    stride: Stride of the convolution.
    image_shape: Height and width of its input; needed where the kernel grows and the
      stride is not 1.

  Returns:
    float32 [size, size, channels, filters].

  Raises:
    ValueError: If the image's shape is needed and not given.
  """
  old = kernel.shape[0]
  if size == old:
    return kernel
  if stride == 1:
    image_shape = 0, 0  # Any would do.
  elif image_shape is None:
    raise ValueError(
      'image_shape: got None, want height and width, which decide where a larger kernel'
      f' of stride {stride} has its middle'
    )
  resized = np.zeros((size, size, *kernel.shape[2:]), kernel.dtype)
  rows, columns = (
    slice(start, start + old)
    for length in image_shape
    for start in [
      _padding_before(size, stride, length) - _padding_before(old, stride, length)
    ]
  )
  resized[rows, columns] = kernel
  return resized


def shrink_kernel(kernel: np.ndarray, size: int, correlation: float) -> np.ndarray:
  """Returns the centre of a kernel, which makes up for what is cut off.

  With pixels correlated as r^d over d steps along rows and columns, the best linear
  prediction of a pixel from a rectangle of others is r^d times the nearest of these,
  whatever the others are (Markov property). So a tap that is cut off is added to the
  nearest one that stays, times r^d. The means, which this scales too, are for the bias.

  Args:
    kernel: float32 [old, old, channels, filters].
    size: The new side, odd as the old one and at most as large.
    correlation: r, of neighbouring pixels of the input.

  Returns:
    float32 [size, size, channels, filters].
  """
  old = kernel.shape[0]
  taps = np.arange(old)
  nearest = np.clip(taps, (old - size) // 2, (old + size) // 2 - 1)
  # The taps that stay, as far as each old one is added to them.
  share = np.zeros((size, old), np.float32)
  share[nearest - nearest[0], taps] = correlation ** np.abs(taps - nearest)
  return np.einsum('yh,xw,hwio->yxio', share, share, kernel)


def _padding_before(size: int, stride: int, length: int) -> int:
  """Returns how many pixels SAME padding puts before a side of the image."""
  if stride == 1:
    return (size - 1) // 2
  return max((-(-length // stride) - 1) * stride + size - length, 0) // 2


def identity_block(
  kernel_size: int, inputs: Moments, signed: bool = False
) -> tuple[dict[str, Any], dict[str, Any], Wiring]:
  """Returns a block that passes its inputs on (Net2DeeperNet).

  The middle tap of the kernel takes each output from one input. BatchNorm in evaluation
  mode is g (x - m) / sqrt(v + eps) + b: with running statistics m and v, scale
  g = sqrt(v + eps) and shift b = m it is the identity, and in training mode as well as
  far as the batch has these statistics. ReLU changes nothing of inputs that come from
  another ReLU. Of others, such as images, both halves are passed on:
  x = relu(x) - relu(-x).

  Args:
    kernel_size: Side of the kernel.
    inputs: The moments of the inputs.
    signed: Whether inputs may be negative; then there are twice as many outputs, the
      positive halves first.

  Returns:
    `params` and `batch_stats` of the block, and the wiring of its outputs.
  """
  weights, offset = straight(len(inputs.mean))
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
  return params, stats, Wiring(weights, offset)


# ------------------------------------------------------------------------------
# The whole network
# ------------------------------------------------------------------------------


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
  """Returns a child's variables by which it computes what its parent does.

  Args:
    key: A JAX random key.
    parent: The parent's genotype.
    parent_variables: The parent's trained variables; they are left as they are.
    child: The child's genotype, a mutant of the parent.
    parent_moments: Of some images as the parent sees them, and of the outputs of its
      blocks, see `moments`; estimated if they are not given.
    image_shape: Height and width of the images; needed where the kernel of a block of
      stride 2 grows.
    noise: Standard deviation of the noise on the kernels of copies, in units of that
      of the layer's weights; it lets copies grow apart.

  Returns:
    The child's variables, `params` and `batch_stats`, as NumPy arrays.

  Raises:
    ValueError: If the images' shape is needed and not given.
  """
  variables = jax.tree.map(np.asarray, dict(parent_variables))
  old_params, old_stats = variables['params'], variables['batch_stats']
  names = [model.block_name(block) for block in parent.blocks]
  known = parent_moments or _estimated(names, old_params, old_stats)
  dense = old_params[model.CLASSIFIER]['dense']
  readers = [old_params[name]['conv']['kernel'] for name in names] + [dense['kernel']]

  def follow(wiring: Wiring, start: int, end: int) -> Wiring:
    """Wires past the parent's blocks from `start` to `end`, which the child lacks."""
    for index in range(start, end):
      wiring = wiring.then(bypass(known[index], known[index + 1]))
    return wiring

  params: dict[str, Any] = {}
  stats: dict[str, Any] = {}
  position = 0  # What comes in stands for the input of the parent's block there.
  incoming, wiring = known[0], straight(len(known[0].mean))
  for block in child.blocks:
    name, block_key = model.block_name(block), jax.random.fold_in(key, block.lineage)
    if name in names:
      index = names.index(name)
      wiring = follow(wiring, position, index)
      conv, norm = old_params[name]['conv'], old_params[name]['norm']
      whole = _reading(wiring, conv['kernel'])
      bias = conv['bias'] + _constant(wiring.offset, conv['kernel'])
      if block.kernel_size < len(whole):
        kernel = shrink_kernel(whole, block.kernel_size, incoming.correlation)
        bias += _constant(incoming.mean, whole) - _constant(incoming.mean, kernel)
      else:
        kernel = enlarge_kernel(whole, block.kernel_size, block.stride, image_shape)
      block_params = {'conv': {'kernel': kernel, 'bias': bias}, 'norm': norm}
      block_stats = old_stats[name]
      position, incoming = index + 1, known[index + 1]
      wiring = straight(len(incoming.mean))
    else:
      signed = not params  # Images; blocks end with a ReLU.
      block_params, block_stats, identity = identity_block(
        block.kernel_size, incoming, signed
      )
      wiring = identity.then(wiring)
      if signed:
        incoming = estimated_moments(block_params, block_stats, incoming)
    channels = len(incoming.mean)
    if block.filters >= channels:
      source, resized = widen(block_key, channels, block.filters)
    else:
      read = _reading(wiring, readers[position])
      influence = np.sqrt(np.square(read).sum(axis=(*range(read.ndim - 2), -1)))
      source, resized = narrow(incoming, influence, block.filters)
    params[name], stats[name] = _outputs((block_params, block_stats), source)
    wiring, incoming = resized.then(wiring), incoming.take(source)
    kernel = params[name]['conv']['kernel']
    copies = kernel[..., channels:]
    rng = genotype_lib.generator(jax.random.fold_in(block_key, 1))
    copies += rng.normal(0, noise * kernel.std(), copies.shape)
    if image_shape:
      height, width = image_shape
      image_shape = -(-height // block.stride), -(-width // block.stride)

  wiring = follow(wiring, position, len(names))
  params[model.CLASSIFIER] = {
    'dense': {
      'kernel': _reading(wiring, dense['kernel']),
      'bias': dense['bias'] + _constant(wiring.offset, dense['kernel']),
    }
  }
  return {'params': params, 'batch_stats': stats}


def _estimated(names: Sequence[str], params: Any, stats: Any) -> list[Moments]:
  channels = params[names[0]]['conv']['kernel'].shape[-2]
  # Images are standardised.
  found = [Moments(np.zeros(channels, np.float32), np.eye(channels, dtype=np.float32))]
  for name in names:
    found.append(estimated_moments(params[name], stats[name], found[-1]))
  return found


def _outputs(variables: Any, source: np.ndarray) -> Any:
  """Returns the variables of some of a block's outputs, the last axis of every leaf."""
  return jax.tree.map(lambda leaf: leaf[..., source], variables)


def _reading(wiring: Wiring, kernel: np.ndarray) -> np.ndarray:
  """Returns the kernel [..., new, filters] that reads what a kernel has read."""
  return wiring.weights @ kernel


def _constant(inputs: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """Returns what a layer computes of the same inputs everywhere, float32 [filters]."""
  return inputs @ kernel.reshape(-1, *kernel.shape[-2:]).sum(axis=0)
