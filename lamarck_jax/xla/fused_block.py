"""Convolution, batch normalisation and ReLU as one function with its own gradient.

`ConvBlock` has the variables and the values of `model.ConvBlock`. Fused, training keeps
one activation between forward and backward beside the input, the convolution's output z
(plain autodiff keeps three). With batch mean m, variance v, r = 1 / sqrt(v + eps),
scale g and bias b,

  y = relu((z - m) r g + b).

Let d = dy where y > 0, else 0; N the number of pixels of a channel in the batch. Then
(Ioffe and Szegedy, 2015, "Batch Normalization", with the gradients dm, dv of the
moments that are returned as well)

  db = sum d,   dg = r sum d (z - m),
  dz = d r g + (z - m) (2 dv - dg g r^2) / N + (dm - db g r) / N.

The convolution's bias shifts the mean and nothing else: it never meets the activations,
and its gradient through the output is exactly zero.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from lamarck_jax.xla import convolution, sharding
from lamarck_jax.xla.im2col import Geometry


class ConvBlock(nn.Module):
  """A convolution block, fused in training mode and folded in evaluation mode.

  Attributes:
    filters: Number of filters.
    kernel_size: Side of the square kernel, in pixels.
    stride: Stride in both directions.
    dtype: Type of the computation; parameters and statistics are float32.
    momentum: Of the running statistics.
    epsilon: Added to the variance.
  """

  filters: int
  kernel_size: int
  stride: int
  dtype: Any = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Applies the block; arguments and result as of `model.ConvBlock`."""
    kernel, conv_bias = _Convolution(self.filters, self.kernel_size, name='conv')(
      x.shape[-1]
    )
    scale, bias, mean, var = _Normalisation(self.filters, name='norm')()
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    if train:
      y, batch_mean, batch_var = conv_batch_norm_relu(
        x, kernel, conv_bias, scale, bias, self.stride, self.epsilon
      )
      if not self.is_initializing():
        for running, batch in ((mean, batch_mean), (var, batch_var)):
          running.value = self.momentum * running.value + (1 - self.momentum) * batch
      return y
    # Evaluations are some hundredths of the work: XLA's own convolution gains more by
    # compiling three times faster than it loses by running slower.
    y = convolution.convolve(Geometry.same(x, kernel, self.stride), x, kernel)
    factor = scale * lax.rsqrt(var.value + self.epsilon)
    y = y * factor + ((conv_bias - mean.value) * factor + bias)
    return nn.relu(y).astype(self.dtype)


class _Convolution(nn.Module):
  """The parameters of `nn.Conv`, without applying them."""

  filters: int
  kernel_size: int

  @nn.compact
  def __call__(self, channels: int) -> tuple[jax.Array, jax.Array]:
    """Returns kernel [size, size, channels, filters] and bias [filters]."""
    shape = (self.kernel_size, self.kernel_size, channels, self.filters)
    kernel = self.param('kernel', nn.initializers.glorot_uniform(), shape)
    return kernel, self.param('bias', nn.initializers.zeros, (self.filters,))


class _Normalisation(nn.Module):
  """The parameters and statistics of `nn.BatchNorm`, without applying them."""

  filters: int

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array, nn.Variable, nn.Variable]:
    """Returns scale, bias, running mean and running variance, each [filters]."""
    shape = (self.filters,)
    return (
      self.param('scale', nn.initializers.ones, shape),
      self.param('bias', nn.initializers.zeros, shape),
      self.variable('batch_stats', 'mean', jnp.zeros, shape),
      self.variable('batch_stats', 'var', jnp.ones, shape),
    )


def conv_batch_norm_relu(
  x: jax.Array,
  kernel: jax.Array,
  conv_bias: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  stride: int,
  epsilon: float = 1e-5,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """A block in training mode: SAME convolution, batch normalisation, ReLU.

  Args:
    x: Images, [n, height, width, channels], any float type.
    kernel: [kernel height, kernel width, channels, filters], of the same type.
    conv_bias: [filters].
    scale: The batch normalisation's scale, [filters].
    bias: The batch normalisation's bias, [filters].
    stride: Along height and width.
    epsilon: Added to the variance.

  Returns:
    The output, [n, output height, output width, filters], of the images' type, and
    the batch's mean and biased variance of the convolution with its bias, each float32
    [filters].
  """
  geometry = Geometry.same(x, kernel, stride)
  y, mean, var = _block(geometry, epsilon, x, kernel, scale, bias)
  return y, mean + conv_bias, var


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _block(
  geometry: Geometry,
  epsilon: float,
  x: jax.Array,
  kernel: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  return _block_forward(geometry, epsilon, x, kernel, scale, bias)[0]


def _block_forward(
  geometry: Geometry,
  epsilon: float,
  x: jax.Array,
  kernel: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
) -> Any:
  def convolve(x: jax.Array, kernel: jax.Array) -> Any:
    z, mean, var = convolution.with_moments(geometry, x, kernel)
    return (z,), sharding.join_moments(mean, var)

  (z,), (mean, var) = sharding.map_shards(convolve, (x,), (kernel,))
  y = jax.nn.relu((z - mean) * (lax.rsqrt(var + epsilon) * scale) + bias)
  return (y.astype(x.dtype), mean, var), (x, kernel, scale, bias, z, mean, var)


def _block_backward(
  geometry: Geometry, epsilon: float, residuals: Any, cotangents: Any
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  x, kernel, scale, bias, z, mean, var = residuals
  dy, dmean, dvar = cotangents
  (dx,), rest = sharding.map_shards(
    functools.partial(_shard_gradients, geometry, epsilon),
    (x, z, dy),
    (kernel, scale, bias, mean, var, dmean, dvar),
  )
  return dx, *rest


def _shard_gradients(
  geometry: Geometry,
  epsilon: float,
  x: jax.Array,
  z: jax.Array,
  dy: jax.Array,
  kernel: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  mean: jax.Array,
  var: jax.Array,
  dmean: jax.Array,
  dvar: jax.Array,
) -> tuple[tuple[jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
  """Returns the equations above for one device's shard: (dx,), (dkernel, dg, db)."""
  inverse = lax.rsqrt(var + epsilon)

  def rectified(dy: jax.Array, z: jax.Array) -> jax.Array:
    return _where_positive((z - mean) * (inverse * scale) + bias, dy)

  gradient = rectified(dy.astype(jnp.float32), z)
  dbias = jnp.sum(gradient, (0, 1, 2))
  dscale = jnp.sum(gradient * (z - mean), (0, 1, 2)) * inverse
  dbias, dscale = sharding.sum_over_shards(dbias, dscale)
  count = sharding.num_shards() * z.size // z.shape[-1]
  slope = (2 * dvar - dscale * scale * inverse**2) / count
  offset = (dmean - dbias * scale * inverse) / count
  # So that XLA fuses nothing of what follows with the sums above and stores no factor.
  slope, offset = lax.optimization_barrier((slope, offset))

  def dz(dy: jax.Array, z: jax.Array) -> jax.Array:
    gradient = rectified(dy, z) * (inverse * scale) + (z - mean) * slope + offset
    return gradient.astype(x.dtype)

  dx, dkernel = convolution.gradients(geometry, x, kernel, dy, z, output_gradient=dz)
  (dkernel,) = sharding.sum_over_shards(dkernel)
  return (dx,), (dkernel, dscale, dbias)


def _where_positive(t: jax.Array, values: jax.Array) -> jax.Array:
  """Returns `values`, and 0 where t is not positive."""
  return sharding.by_platform(
    t,
    values,
    cpu=lambda t, values: jnp.where(t > 0, values, 0),
    # A comparison would be stored for its second use, a factor is computed again.
    default=lambda t, values: values * jnp.clip(jnp.sign(t), 0, 1).astype(values.dtype),
  )


_block.defvjp(_block_forward, _block_backward)
