"""Convolution, and the fused convolution block, in the form each platform runs fastest.

On the CPU, XLA's own float32 convolution reaches a third of a matrix product's rate in
the forward direction and a twentieth in its kernel gradient. Here a convolution is a
loop over a few images at a time: gather the patches under the kernel into a buffer
that stays in the cache, then multiply. Large layers of 5x5, and of 3x3 at stride 1,
take Winograd's form instead (`winograd`). Elsewhere, and for anything but a
plain NHWC float32 convolution, `jax.lax.conv_general_dilated` does the work.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
from jax import flatten_util, lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lamarck_jax.runtime import devices
from lamarck_jax.xla import winograd

Pads = tuple[tuple[int, int], tuple[int, int]]
Strides = tuple[int, int]

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
# Bytes of the patches of one chunk: small enough for the last-level cache, large enough
# for two threads to share each product.
_CHUNK_BYTES = 4 * 2**20
# Below this many input channels the patches of the input are the smaller ones.
_FEW_CHANNELS = 16
# Winograd's form is for layers with at least so many channels and filters (by the size
# of the kernel and the stride), rows and columns, multiplications a batch: smaller ones
# gain less than they take to compile. Behind a stride there are four times as many
# channels, and with too many the transforms take longer than they save.
_WINOGRAD_MIN_CHANNELS = {(3, 1): 16, (5, 1): 8, (5, 2): 8}
_WINOGRAD_MAX_STRIDED_CHANNELS = 128
_WINOGRAD_MIN_SIZE = 4
_WINOGRAD_MIN_MULTIPLICATIONS = 10**7
# Bytes of one chunk's values before and after the products.
_WINOGRAD_CHUNK_BYTES = 2 * 2**20


def conv_general_dilated(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: Any = None,
  feature_group_count: int = 1,
  batch_group_count: int = 1,
  precision: Any = None,
  preferred_element_type: Any = None,
) -> jax.Array:
  """A drop-in for `jax.lax.conv_general_dilated`, fast on the CPU as well.

  Args:
    lhs: images, (n, height, width, channels); any float type.
    rhs: kernel, (kernel height, kernel width, channels, filters).
    window_strides: strides along height and width.
    padding: 'SAME', 'VALID' or ((low, high), (low, high)).
    lhs_dilation: as in `jax.lax`; dilated images take the plain form.
    rhs_dilation: as in `jax.lax`; dilated kernels take the plain form.
    dimension_numbers: as in `jax.lax`; other layouts than NHWC, HWIO take the plain
      form.
    feature_group_count: as in `jax.lax`; groups take the plain form.
    batch_group_count: as in `jax.lax`; groups take the plain form.
    precision: as in `jax.lax`; the CPU has one precision.
    preferred_element_type: as in `jax.lax`; a type takes the plain form.

  Returns:
    (n, output height, output width, filters), of the images' type.
  """
  ndim = lhs.ndim
  plain = (
    ndim != 4
    or lhs.dtype != jnp.float32
    or rhs.dtype != jnp.float32
    or any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    or lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    != lax.conv_dimension_numbers(lhs.shape, rhs.shape, _DIMENSIONS)
    or feature_group_count != 1
    or batch_group_count != 1
    or preferred_element_type is not None
  )
  if plain:
    return lax.conv_general_dilated(
      lhs,
      rhs,
      window_strides,
      padding,
      lhs_dilation,
      rhs_dilation,
      dimension_numbers,
      feature_group_count,
      batch_group_count,
      precision,
      preferred_element_type,
    )
  strides = _pair(window_strides)
  pads = _pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
  return _conv(strides, pads, lhs, rhs)


def _pair(values: Sequence[int]) -> tuple[int, int]:
  first, second = values
  return int(first), int(second)


def _pads(
  size: Sequence[int],
  window: Sequence[int],
  strides: Strides,
  padding: str | Sequence[tuple[int, int]],
) -> Pads:
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(size, window, strides, padding)
  first, second = (_pair(p) for p in padding)
  return first, second


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv(strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
  return lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(_patch_conv, strides, pads),
    default=functools.partial(_plain_conv, strides, pads),
  )


def _conv_fwd(
  strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _conv(strides, pads, x, kernel), (x, kernel)


def _conv_bwd(
  strides: Strides, pads: Pads, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = residuals
  return lax.platform_dependent(
    x,
    kernel,
    dy,
    cpu=functools.partial(_patch_conv_gradients, strides, pads, lambda dy: dy),
    default=functools.partial(_plain_conv_gradients, strides, pads),
  )


_conv.defvjp(_conv_fwd, _conv_bwd)


def conv_batch_norm_relu(
  x: jax.Array,
  kernel: jax.Array,
  conv_bias: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  strides: Sequence[int],
  epsilon: float = 1e-5,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """A convolution block in training mode: SAME convolution, batch norm, ReLU.

  The convolution's bias shifts the batch's mean and nothing else, so it never meets
  the activations, and its gradient through the output is exactly zero. Between forward
  and backward only the convolution's output is kept beside the input.

  Args:
    x: images, (n, height, width, channels), any float type.
    kernel: (kernel height, kernel width, channels, filters), of the same type.
    conv_bias: (filters,).
    scale: the batch norm's scale, (filters,).
    bias: the batch norm's bias, (filters,).
    strides: strides along height and width.
    epsilon: added to the variance.

  Returns:
    The output, (n, output height, output width, filters), of the images' type, and the
    batch's mean and biased variance of the convolution with its bias, each (filters,)
    and float32.
  """
  strides = _pair(strides)
  pads = _pads(x.shape[1:3], kernel.shape[:2], strides, 'SAME')
  y, mean, var = _block(strides, pads, epsilon, x, kernel, scale, bias)
  return y, mean + conv_bias, var


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _block(
  strides: Strides,
  pads: Pads,
  epsilon: float,
  x: jax.Array,
  kernel: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  return _block_fwd(strides, pads, epsilon, x, kernel, scale, bias)[0]


def _block_fwd(
  strides: Strides,
  pads: Pads,
  epsilon: float,
  x: jax.Array,
  kernel: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
) -> Any:
  def moments(x: jax.Array, kernel: jax.Array) -> Any:
    z, mean, var = _by_platform(
      x,
      kernel,
      cpu=functools.partial(_patch_conv_moments, strides, pads),
      default=functools.partial(_plain_conv_moments, strides, pads),
    )
    return (z,), _join_moments(mean, var)

  (z,), (mean, var) = _share_batch(moments, (x,), (kernel,))
  y = jax.nn.relu((z - mean) * (lax.rsqrt(var + epsilon) * scale) + bias)
  y = y.astype(x.dtype)
  return (y, mean, var), (x, kernel, scale, bias, z, mean, var)


def _block_bwd(
  strides: Strides, pads: Pads, epsilon: float, residuals: Any, cotangents: Any
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  x, kernel, scale, bias, z, mean, var = residuals
  dy, dmean, dvar = cotangents
  gradients = functools.partial(_local_gradients, strides, pads, epsilon)
  (dx,), rest = _share_batch(
    gradients, (x, z, dy), (kernel, scale, bias, mean, var, dmean, dvar)
  )
  return dx, *rest


def _local_gradients(
  strides: Strides,
  pads: Pads,
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
  inverse = lax.rsqrt(var + epsilon)

  def rectified(dy: jax.Array, z: jax.Array) -> jax.Array:
    return jnp.where((z - mean) * (inverse * scale) + bias > 0, dy, 0)

  gradient = rectified(dy.astype(jnp.float32), z)
  dbias = jnp.sum(gradient, (0, 1, 2))
  dscale = jnp.sum(gradient * (z - mean), (0, 1, 2)) * inverse
  dbias, dscale = _sum_over_devices(dbias, dscale)
  count = _num_sharing() * z.size // z.shape[-1]
  slope = (2 * dvar - dscale * scale * inverse**2) / count
  offset = (dmean - dbias * scale * inverse) / count

  def dz(dy: jax.Array, z: jax.Array) -> jax.Array:
    gradient = rectified(dy, z) * (inverse * scale) + (z - mean) * slope + offset
    return gradient.astype(x.dtype)

  dx, dkernel = _by_platform(
    x,
    kernel,
    dy,
    z,
    cpu=functools.partial(_patch_conv_gradients, strides, pads, dz),
    default=lambda x, kernel, dy, z: _plain_conv_gradients(
      strides, pads, x, kernel, dz(dy, z)
    ),
  )
  (dkernel,) = _sum_over_devices(dkernel)
  return (dx,), (dkernel, dscale, dbias)


_block.defvjp(_block_fwd, _block_bwd)


def _share_batch(function: Any, examples: Any, shared: Any) -> Any:
  """Applies a function to every device's share of a batch.

  Args:
    function: `(*examples, *shared)` to two tuples, of examples and of shared arrays.
    examples: Arrays whose first axis is the batch.
    shared: Arrays that all devices have alike.

  Returns:
    What the function returns, of the whole batch.
  """
  if _num_sharing() == 1:
    return function(*examples, *shared)
  share, alike = PartitionSpec(devices.BATCH), PartitionSpec()
  return jax.shard_map(
    function,
    in_specs=(*[share] * len(examples), *[alike] * len(shared)),
    out_specs=(share, alike),
    check_vma=False,
  )(*examples, *shared)


def _num_sharing() -> int:
  """The number of devices that share a batch, by the mesh that is set."""
  return jax.sharding.get_abstract_mesh().shape.get(devices.BATCH, 1)


def _sum_over_devices(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  if _num_sharing() == 1:
    return arrays
  flat, unravel = flatten_util.ravel_pytree(arrays)  # One collective, not several.
  return unravel(lax.psum(flat, devices.BATCH))


def _join_moments(mean: jax.Array, var: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and biased variance of all devices' values, from those of each."""
  if _num_sharing() == 1:
    return mean, var
  gathered = lax.all_gather(jnp.stack([mean, var]), devices.BATCH)
  means, variances = gathered[:, 0], gathered[:, 1]
  return jnp.mean(means, 0), jnp.mean(variances, 0) + jnp.var(means, 0)


def _by_platform(
  x: jax.Array, *args: jax.Array, cpu: Callable[..., Any], default: Callable[..., Any]
) -> Any:
  """Applies the form for the CPU, which is for float32, or the one for all else."""
  if x.dtype != jnp.float32:
    return default(x, *args)
  return lax.platform_dependent(x, *args, cpu=cpu, default=default)


def _plain_conv_moments(
  strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  z = _plain_conv(strides, pads, x, kernel)
  values = z.astype(jnp.float32)
  return z, jnp.mean(values, (0, 1, 2)), jnp.var(values, (0, 1, 2))


def _patch_conv_moments(
  strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The convolution with mean and biased variance of every filter's output.

  Sums of squares lose the variance where the mean is large; deviations from each
  chunk's own mean do not, and joining two sets' moments is exact (Chan et al., 1979).
  """
  n = x.shape[0]
  height, width = _output_size(strides, pads, x, kernel)
  filters = kernel.shape[3]
  convolve, images = _forward(strides, pads, x, kernel)

  def body(chunk: Any, carry: Any, start: Any) -> Any:
    z, mean, deviation = carry
    z_chunk = lax.optimization_barrier(convolve(chunk(x)))
    length = z_chunk.shape[0]
    chunk_mean = jnp.mean(z_chunk, (0, 1, 2))
    delta = chunk_mean - mean
    share = length / (start + length)
    mean = mean + delta * share
    deviation = deviation + jnp.sum((z_chunk - chunk_mean) ** 2, (0, 1, 2))
    deviation = deviation + delta**2 * (start * share * (height * width))
    return lax.dynamic_update_slice_in_dim(z, z_chunk, start, 0), mean, deviation

  z = jnp.zeros((n, height, width, filters), x.dtype)
  zeros = jnp.zeros(filters, x.dtype)
  z, mean, deviation = _loop(n, images, body, (z, zeros, zeros))
  return z, mean, deviation / (n * height * width)


def _plain_conv(
  strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array
) -> jax.Array:
  return lax.conv_general_dilated(
    x, kernel, strides, pads, dimension_numbers=_DIMENSIONS
  )


def _plain_conv_gradients(
  strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
  return jax.vjp(functools.partial(_plain_conv, strides, pads), x, kernel)[1](dy)


def _patch_conv(
  strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array
) -> jax.Array:
  n = x.shape[0]
  height, width = _output_size(strides, pads, x, kernel)
  convolve, images = _forward(strides, pads, x, kernel)

  def body(chunk: Callable[[jax.Array], jax.Array], y: jax.Array, start: Any) -> Any:
    return lax.dynamic_update_slice_in_dim(y, convolve(chunk(x)), start, 0)

  y = jnp.zeros((n, height, width, kernel.shape[3]), x.dtype)
  return _loop(n, images, body, y)


def _patch_conv_gradients(
  strides: Strides,
  pads: Pads,
  output_gradient: Callable[..., jax.Array],
  x: jax.Array,
  kernel: jax.Array,
  *dy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """The gradients of a convolution, a few images at a time.

  Args:
    strides: strides along height and width.
    pads: the forward convolution's padding.
    output_gradient: gives the gradient of the output from chunks of `dy`.
    x: images, (n, height, width, channels).
    kernel: (kernel height, kernel width, channels, filters).
    *dy: arrays of the output's shape, (n, output height, output width, filters).

  Returns:
    The gradients of x and of the kernel, of their shapes.
  """
  n, height, width, filters = dy[0].shape
  window = kernel.shape[:2]
  form = _backward(strides, pads, x, kernel, (height, width))

  def both(chunk: Any, carry: Any, start: Any) -> Any:
    dx, dk = carry
    dx_chunk, dk_chunk = form.gradients(chunk(x), output_gradient(*map(chunk, dy)))
    return lax.dynamic_update_slice_in_dim(dx, dx_chunk, start, 0), dk + dk_chunk

  def kernel_only(chunk: Any, dk: jax.Array, start: Any) -> jax.Array:
    patches = _patches(chunk(x), window, strides, pads, (height, width))
    return dk + _transposed_product(patches, output_gradient(*map(chunk, dy)))

  dk = jnp.zeros(form.products_shape, x.dtype)
  dx, dk = _loop(n, form.images, both, (jnp.zeros_like(x), dk))
  dk = form.kernel_gradient(dk)
  if x.shape[3] < _FEW_CHANNELS:
    # A loop of its own: where no one asks for dx, the other one is dead code.
    row = math.prod(kernel.shape[:3])
    dk = jnp.zeros((row, filters), x.dtype)
    images = _images_per_chunk(height * width * row, _CHUNK_BYTES)
    dk = _loop(n, images, kernel_only, dk).reshape(kernel.shape)
  return dx, dk


def _images_per_chunk(values: int, chunk_bytes: int) -> int:
  """The number of images in a chunk, a power of two.

  Args:
    values: float32 values that one image takes up.
    chunk_bytes: bytes that a chunk may take up.
  """
  count = max(1, chunk_bytes // (4 * values))
  return 1 << (count.bit_length() - 1)


def _loop(n: int, images: int, body: Any, carry: Any) -> Any:
  """Folds `body` over n images in chunks of `images`.

  Args:
    n: number of images.
    images: number of images in a chunk.
    body: `(chunk, carry, start) -> carry`, where `chunk(array)` is the chunk's part of
      an array of n images.
    carry: the first carry.

  Returns:
    The last carry.
  """
  size = min(n, images)

  def step(start: Any, length: int, carry: Any) -> Any:
    def chunk(array: jax.Array) -> jax.Array:
      return lax.dynamic_slice_in_dim(array, start, length)

    return body(chunk, carry, start)

  if n // size > 1:
    carry = lax.fori_loop(0, n // size, lambda i, c: step(i * size, size, c), carry)
  elif n:
    carry = step(0, size, carry)
  if n % size:
    carry = step(n - n % size, n % size, carry)
  return carry


def _output_size(
  strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array
) -> tuple[int, int]:
  height, width = (
    (x.shape[1 + a] + sum(pads[a]) - kernel.shape[a]) // strides[a] + 1 for a in (0, 1)
  )
  return height, width


def _patches(
  x: jax.Array,
  window: Sequence[int],
  strides: Strides,
  pads: Sequence[tuple[int, int]],
  size: tuple[int, int],
) -> jax.Array:
  """The values under each position of the window, in the order of an HWIO kernel.

  Args:
    x: images, (n, height, width, channels).
    window: height and width of the window.
    strides: strides along height and width.
    pads: (low, high) rows and columns of zeros, negative to crop.
    size: height and width of the output.

  Returns:
    (n, *size, window height * window width * channels).
  """
  x = lax.pad(
    x, jnp.zeros((), x.dtype), ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0))
  )
  if tuple(window) == (1, 1) and strides == (1, 1):
    return x
  # Behind the barrier the padding is done once, and not again in each of the slices.
  x = lax.optimization_barrier(x)
  for axis in (2, 1):
    length = (size[axis - 1] - 1) * strides[axis - 1] + 1
    taps = [
      lax.slice_in_dim(x, tap, tap + length, strides[axis - 1], axis)
      for tap in range(window[axis - 1])
    ]
    x = jnp.concatenate(taps, axis=-1)
  return x


def _product(patches: jax.Array, matrix: jax.Array) -> jax.Array:
  """(..., k) by (k, m) to (..., m), as one matrix product."""
  flat = patches.reshape(-1, patches.shape[-1]) @ matrix
  return flat.reshape(*patches.shape[:-1], matrix.shape[1])


def _transposed_product(a: jax.Array, b: jax.Array) -> jax.Array:
  """(..., k) by (..., m) to (k, m): the sum over positions of outer products."""
  return a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, b.shape[-1])


class _Backward(NamedTuple):
  """How the gradients of one chunk are computed.

  Attributes:
    gradients: From a chunk of x and of the output's gradient to the gradient of x, and
      products to be summed over the chunks.
    products_shape: Shape of the products.
    kernel_gradient: From the sum of the products to the kernel's gradient.
    images: Number of images in a chunk.
  """

  gradients: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
  products_shape: tuple[int, ...]
  kernel_gradient: Callable[[jax.Array], jax.Array]
  images: int


def _forward(
  strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array
) -> tuple[Callable[[jax.Array], jax.Array], int]:
  """Returns the convolution of a chunk, and the number of images in a chunk."""
  size = _output_size(strides, pads, x, kernel)
  if _suits_winograd(strides, x, kernel, size):
    phases = winograd.Phases(strides[0], pads, kernel.shape[0], size)
    values = winograd.transform_kernel(phases.kernel(kernel))

    def winograd_convolve(x: jax.Array) -> jax.Array:
      image = winograd.transform_image(phases.images(x), phases.reduced_kernel_size)
      return winograd.output(winograd.product(image, values), x.shape[0], size)

    return winograd_convolve, _winograd_images(phases, kernel)
  return (
    lambda x: _chunk_conv(strides, pads, x, kernel),
    _images_per_chunk(math.prod(size) * math.prod(kernel.shape[:3]), _CHUNK_BYTES),
  )


def _backward(
  strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array, size: tuple[int, int]
) -> _Backward:
  """Returns how both gradients of a chunk are computed."""
  if _suits_winograd(strides, x, kernel, size):
    phases = winograd.Phases(strides[0], pads, kernel.shape[0], size)
    values = winograd.transform_kernel(phases.kernel(kernel).swapaxes(2, 3))

    def gradients(x: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
      image = winograd.transform_image(phases.images(x), phases.reduced_kernel_size)
      gradient = winograd.transform_gradient(dy, phases.reduced_kernel_size)
      dimage = winograd.image_gradient(
        winograd.product(gradient, values), x.shape[0], winograd.num_tiles(size)
      )
      (dx,) = jax.linear_transpose(phases.images, x)(dimage)
      return dx, winograd.transposed_product(image, gradient)

    def kernel_gradient(products: jax.Array) -> jax.Array:
      dk = winograd.kernel_gradient(products)
      return jax.linear_transpose(phases.kernel, kernel)(dk)[0]

    return _Backward(
      gradients,
      (values.shape[0], values.shape[2], values.shape[1]),
      kernel_gradient,
      _winograd_images(phases, kernel),
    )
  row = math.prod(size) * math.prod(kernel.shape[:2]) * kernel.shape[3]
  return _Backward(
    lambda x, dy: _chunk_gradients(strides, pads, x, kernel, dy),
    kernel.shape,
    lambda dk: dk,
    _images_per_chunk(row, _CHUNK_BYTES),
  )


def _suits_winograd(
  strides: Strides, x: jax.Array, kernel: jax.Array, size: Sequence[int]
) -> bool:
  height, width, channels, filters = kernel.shape
  least = _WINOGRAD_MIN_CHANNELS.get((height, strides[0]))
  return (
    height == width
    and strides[0] == strides[1]
    and least is not None
    and min(channels, filters) >= least
    and (strides[0] == 1 or channels <= _WINOGRAD_MAX_STRIDED_CHANNELS)
    and min(size) >= _WINOGRAD_MIN_SIZE
    and x.shape[0] * math.prod(size) * kernel.size >= _WINOGRAD_MIN_MULTIPLICATIONS
  )


def _winograd_images(phases: winograd.Phases, kernel: jax.Array) -> int:
  tiles = math.prod(winograd.num_tiles(phases.size))
  points = winograd.num_points(phases.reduced_kernel_size)
  channels = phases.stride**2 * kernel.shape[2]
  values = points**2 * tiles * (channels + kernel.shape[3])
  return _images_per_chunk(values, _WINOGRAD_CHUNK_BYTES)


def _chunk_conv(
  strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array
) -> jax.Array:
  size = _output_size(strides, pads, x, kernel)
  window, filters = kernel.shape[:2], kernel.shape[3]
  if strides == (1, 1) and window != (1, 1) and filters < kernel.shape[2]:
    # Multiplied first, what is moved has as few channels as there are filters.
    products = _product(x, kernel.transpose(2, 0, 1, 3).reshape(x.shape[3], -1))
    return _shifted_sum(products, filters, window, pads, size)
  patches = _patches(x, window, strides, pads, size)
  return _product(patches, kernel.reshape(-1, filters))


def _shifted_sum(
  products: jax.Array,
  channels: int,
  window: Sequence[int],
  pads: Sequence[tuple[int, int]],
  size: tuple[int, int],
) -> jax.Array:
  """The sum over a window's positions of what each has under it, at stride 1.

  Args:
    products: (n, height, width, window height * window width * channels), the values
      of every position of the window in the order of an HWIO kernel.
    channels: channels of one position.
    window: height and width of the window.
    pads: (low, high) rows and columns of zeros, negative to crop.
    size: height and width of the output.

  Returns:
    (n, *size, channels).
  """
  n = products.shape[0]
  zero = jnp.zeros((), products.dtype)
  products = lax.pad(
    products, zero, ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0))
  )
  total: Any = 0
  for i in range(window[0]):
    for j in range(window[1]):
      first = (i * window[1] + j) * channels
      start = (0, i, j, first)
      end = (n, i + size[0], j + size[1], first + channels)
      total = total + lax.slice(products, start, end)
  return total


def _chunk_gradients(
  strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Both gradients from one gathering of the output gradient's patches.

  The pixels of x that lie at one phase of the stride see the output through one part
  of the kernel, at stride 1. With P the patches of dy under those pixels, their
  gradient is P times that part of the kernel, and the part's own gradient is x^T P.

  Args:
    strides: strides along height and width.
    pads: the forward convolution's padding.
    x: images, (n, height, width, channels).
    kernel: (kernel height, kernel width, channels, filters).
    dy: gradient of the output, (n, output height, output width, filters).

  Returns:
    The gradients of x and of the kernel, of their shapes.
  """
  dx = jnp.zeros_like(x)
  dk = jnp.zeros_like(kernel)
  channels, filters = kernel.shape[2:]
  for row in range(min(strides[0], x.shape[1])):
    for column in range(min(strides[1], x.shape[2])):
      phase = (row, column)
      pixels = (
        slice(None),
        slice(row, None, strides[0]),
        slice(column, None, strides[1]),
      )
      x_phase = x[pixels]
      taps = [(phase[a] + pads[a][0]) % strides[a] for a in (0, 1)]
      part = kernel[taps[0] :: strides[0], taps[1] :: strides[1]]
      if part.size == 0:
        continue
      window = part.shape[:2]
      size = x_phase.shape[1], x_phase.shape[2]
      dy_pads = []
      for a in (0, 1):
        # Pixel q of the phase meets outputs first - t + q, over the part's taps t.
        first = (phase[a] + pads[a][0]) // strides[a]
        low = window[a] - 1 - first
        dy_pads.append((low, size[a] + window[a] - 1 - low - dy.shape[1 + a]))
      flipped = part[::-1, ::-1]
      if strides == (1, 1) and window != (1, 1) and channels < filters:
        products = _product(dy, flipped.transpose(3, 0, 1, 2).reshape(filters, -1))
        dx = _shifted_sum(products, channels, window, dy_pads, size)
        patches = _patches(x, window, strides, pads, (dy.shape[1], dy.shape[2]))
        return dx, _transposed_product(patches, dy).reshape(kernel.shape)
      patches = _patches(dy, window, (1, 1), dy_pads, size)
      matrix = flipped.transpose(0, 1, 3, 2).reshape(-1, channels)
      dpart = _transposed_product(x_phase, patches)
      dpart = dpart.reshape(channels, *window, filters).transpose(1, 2, 0, 3)
      dpart = dpart[::-1, ::-1]
      if strides == (1, 1):
        return _product(patches, matrix), dpart
      dx = dx.at[pixels].set(_product(patches, matrix))
      dk = dk.at[taps[0] :: strides[0], taps[1] :: strides[1]].set(dpart)
  return dx, dk
