"""Convolution, batch normalisation and ReLU as one function with its own gradient.

`ConvBlock` has the variables and the values of `model.ConvBlock`. One program trains
and evaluates: a traced flag chooses between the moments of the batch and the running
ones. Fused, training keeps one activation between forward and backward beside the
input, the convolution's output z (plain autodiff keeps three). With batch mean m,
variance v, r = 1 / sqrt(v + eps), scale g and bias b,

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
from typing import Any, NamedTuple

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from lamarck_jax.xla import convolution, sharding
from lamarck_jax.xla.im2col import Geometry


class ConvBlock(nn.Module):
  """A convolution block, fused.

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
  def __call__(self, x: jax.Array, train: bool | jax.Array) -> jax.Array:
    """Applies the block; as `model.ConvBlock`, but that `train` may be traced.

    Running statistics that are mutable are updated in any case.
    """
    kernel, conv_bias = _Convolution(self.filters, self.kernel_size, name='conv')(
      x.shape[-1]
    )
    scale, bias, mean, var = _Normalisation(self.filters, name='norm')()
    y, batch_mean, batch_var = conv_batch_norm_relu(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      conv_bias,
      scale,
      bias,
      self.stride,
      self.epsilon,
      Evaluation(jnp.logical_not(train), mean.value, var.value),
    )
    if self.is_mutable_collection('batch_stats') and not self.is_initializing():
      for running, batch in ((mean, batch_mean), (var, batch_var)):
        running.value = self.momentum * running.value + (1 - self.momentum) * batch
    return y


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


class Evaluation(NamedTuple):
  """What a block needs to evaluate.

  Attributes:
    on: Whether it does, a bool scalar; else it trains.
    mean: The running mean of the convolution with its bias, float32 [filters].
    var: The running variance, likewise.
  """

  on: jax.Array
  mean: jax.Array
  var: jax.Array


def conv_batch_norm_relu(
  x: jax.Array,
  kernel: jax.Array,
  conv_bias: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  stride: int,
  epsilon: float = 1e-5,
  evaluation: Evaluation | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """SAME convolution, batch normalisation, ReLU.

  Args:
    x: Images, [n, height, width, channels], any float type.
    kernel: [kernel height, kernel width, channels, filters], of the same type.
    conv_bias: [filters].
    scale: The batch normalisation's scale, [filters].
    bias: The batch normalisation's bias, [filters].
    stride: Along height and width.
    epsilon: Added to the variance.
    evaluation: What normalises in evaluation; None: the block trains.

  Returns:
    The output, [n, output height, output width, filters], of the images' type, and
    the batch's mean and biased variance of the convolution with its bias, each float32
    [filters].
  """
  geometry = Geometry.same(x, kernel, stride)
  if evaluation is not None:
    # Below, the convolution has no bias.
    evaluation = evaluation._replace(mean=evaluation.mean - conv_bias)
  y, mean, var = _block(geometry, epsilon, x, kernel, scale, bias, evaluation)
  return y, mean + conv_bias, var


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _block(
  geometry: Geometry,
  epsilon: float,
  x: jax.Array,
  kernel: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  evaluation: Evaluation | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  return _block_forward(geometry, epsilon, x, kernel, scale, bias, evaluation)[0]


def _block_forward(
  geometry: Geometry,
  epsilon: float,
  x: jax.Array,
  kernel: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  evaluation: Evaluation | None,
) -> Any:
  def convolve(x: jax.Array, kernel: jax.Array) -> Any:
    z, mean, var = convolution.with_moments(geometry, x, kernel)
    return (z,), sharding.join_moments(mean, var)

  (z,), (mean, var) = sharding.map_shards(convolve, (x,), (kernel,))
  center, spread = mean, var
  if evaluation is not None:
    center = jnp.where(evaluation.on, evaluation.mean, mean)
    spread = jnp.where(evaluation.on, evaluation.var, var)
  y = jax.nn.relu((z - center) * (lax.rsqrt(spread + epsilon) * scale) + bias)
  return (y.astype(x.dtype), mean, var), (x, kernel, scale, bias, z, mean, var)


def _block_backward(
  geometry: Geometry, epsilon: float, residuals: Any, cotangents: Any
) -> tuple[jax.Array | None, ...]:
  x, kernel, scale, bias, z, mean, var = residuals
  dy, dmean, dvar = cotangents
  (dx,), rest = sharding.map_shards(
    functools.partial(_shard_gradients, geometry, epsilon),
    (x, z, dy),
    (kernel, scale, bias, mean, var, dmean, dvar),
  )
  return dx, *rest, None


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
