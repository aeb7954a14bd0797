"""A convolution and its gradients in the form that each platform runs fastest.

On the CPU, XLA's own float32 convolution reaches a third of a matrix product's rate in
the forward direction and a twentieth in its kernel gradient. Here it is a loop over a
few images at a time, each chunk by `im2col`, or by `winograd` for large layers of 5x5,
and of 3x3 at stride 1. On other platforms and for other types,
`jax.lax.conv_general_dilated` does the work; a GPU is bound by the bytes that programs
move, which is what its forms save.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from lamarck_jax.xla import im2col, sharding, winograd
from lamarck_jax.xla.im2col import Geometry

# Below this number of input channels the columns of the input are the smaller ones.
_FEW_CHANNELS = 16


def even_padding_pays(kernel_size: int, filters: int) -> bool:
  """Returns whether a strided convolution on a GPU is padded evenly.

  On an H200, from 128 channels, that takes 0.88 (float32) and 0.78 (bfloat16) of the
  time of a training step for 128 filters of 3x3, 1.06 and 0.92 for 256; 1.6 and 1.4 for
  128 filters of 5x5, 1.5 and 1.5 for 256. Fewer filters have not been timed; there it
  moves the fewer bytes, 27 less for each float32 value of the input. One rule serves
  both types.

  Args:
    kernel_size: Height and width of the kernel.
    filters: Number of filters.
  """
  return filters <= (128 if kernel_size <= 3 else 96)


def convolve(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns a convolution by XLA's own operation.

  Args:
    geometry: Strides and padding.
    x: Images, [n, height, width, channels].
    kernel: [kernel height, kernel width, channels, filters], of the images' type.

  Returns:
    [n, output height, output width, filters] of the images' type.
  """

  def padded(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    dimensions = ('NHWC', 'HWIO', 'NHWC')
    return lax.conv_general_dilated(x, kernel, *geometry, dimension_numbers=dimensions)

  def evenly_padded(x: jax.Array, kernel: jax.Array) -> jax.Array:
    even, kernel = _even_padding(geometry, kernel)
    return padded(even, x, kernel)

  as_it_is = functools.partial(padded, geometry)
  pays = even_padding_pays(kernel.shape[0], kernel.shape[-1])
  default = evenly_padded if pays else as_it_is
  return sharding.by_platform(x, kernel, cpu=as_it_is, default=default)


def _even_padding(geometry: Geometry, kernel: jax.Array) -> tuple[Geometry, jax.Array]:
  """Extends a kernel by zeros, so that padding is the same on both sides.

  cuDNN takes no other padding. SAME padding of even images at stride 2 is uneven, and
  XLA would pad the images in a copy and slice their gradient. The zeros make 1.4 (5x5)
  to 1.8 (3x3) times the operations.
  """
  (top, bottom), (left, right) = geometry.pads
  rows, columns = max(top, bottom), max(left, right)
  zeros = ((rows - top, rows - bottom, 0), (columns - left, columns - right, 0))
  kernel = lax.pad(kernel, jnp.zeros((), kernel.dtype), (*zeros, (0, 0, 0), (0, 0, 0)))
  return Geometry(geometry.strides, ((rows, rows), (columns, columns))), kernel


def with_moments(
  geometry: Geometry, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns a convolution, and mean and biased variance of every filter's output.

  Args:
    geometry: Strides and padding.
    x: Images, [n, height, width, channels].
    kernel: [kernel height, kernel width, channels, filters], of the images' type.

  Returns:
    [n, output height, output width, filters] of the images' type, and the moments,
    each float32 [filters].
  """
  return _by_platform(
    x,
    kernel,
    cpu=functools.partial(_chunked_with_moments, geometry),
    default=functools.partial(_with_moments, geometry),
  )


def gradients(
  geometry: Geometry,
  x: jax.Array,
  kernel: jax.Array,
  *dy: jax.Array,
  output_gradient: Callable[..., jax.Array] = lambda dy: dy,
) -> tuple[jax.Array, jax.Array]:
  """Returns the gradients of a convolution's input and kernel.

  Args:
    geometry: Strides and padding of the convolution.
    x: Images, [n, height, width, channels].
    kernel: [kernel height, kernel width, channels, filters].
    *dy: Arrays [n, output height, output width, filters].
    output_gradient: Gives the gradient of the output from (chunks of) `dy`, so that it
      need not be computed for the whole batch before.

  Returns:
    The gradients of x and of the kernel, of their shapes.
  """

  def plain(x: jax.Array, kernel: jax.Array, *dy: jax.Array) -> Any:
    pullback = jax.vjp(functools.partial(convolve, geometry), x, kernel)[1]
    return pullback(output_gradient(*dy))

  chunked = functools.partial(_chunked_gradients, geometry, output_gradient)
  return _by_platform(x, kernel, *dy, cpu=chunked, default=plain)


def _by_platform(
  x: jax.Array, *args: jax.Array, cpu: Callable[..., Any], default: Callable[..., Any]
) -> Any:
  """Applies the form for the CPU, which is for float32, or the one for all else."""
  if x.dtype != jnp.float32:
    return default(x, *args)
  return sharding.by_platform(x, *args, cpu=cpu, default=default)


def _with_moments(
  geometry: Geometry, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  z = convolve(geometry, x, kernel)
  # In one pass over z. Sums of squares lose the variance where the mean is large; those
  # of the deviations from any of the values do not.
  shift = z[0, z.shape[1] // 2, z.shape[2] // 2].astype(jnp.float32)
  deviations = z.astype(jnp.float32) - shift
  mean = jnp.mean(deviations, (0, 1, 2))
  var = jnp.mean(deviations**2, (0, 1, 2)) - mean**2
  return z, shift + mean, jnp.maximum(var, 0)


def _chunked_with_moments(
  geometry: Geometry, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  n, filters = x.shape[0], kernel.shape[3]
  height, width = geometry.output_size(x, kernel)
  convolve, images = _forward(geometry, x, kernel)

  def body(chunk: Any, carry: Any, start: Any) -> Any:
    # Sums of squares lose the variance where the mean is large. Deviations from each
    # chunk's own mean do not, and joining two sets' moments is exact (Chan et al.,
    # 1979, "Updating Formulae and a Pairwise Algorithm for Computing Variances").
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
  z, mean, deviation = _fold_chunks(n, images, body, (z, zeros, zeros))
  return z, mean, deviation / (n * height * width)


def _chunked_gradients(
  geometry: Geometry,
  output_gradient: Callable[..., jax.Array],
  x: jax.Array,
  kernel: jax.Array,
  *dy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  n, height, width, filters = dy[0].shape
  window, channels = kernel.shape[:2], kernel.shape[2]
  form = _backward(geometry, x, kernel)

  def both(chunk: Any, carry: Any, start: Any) -> Any:
    dx, products = carry
    dx_chunk, chunk_products = form.gradients(
      chunk(x), output_gradient(*map(chunk, dy))
    )
    dx = lax.dynamic_update_slice_in_dim(dx, dx_chunk, start, 0)
    return dx, products + chunk_products

  def kernel_only(chunk: Any, dkernel: jax.Array, start: Any) -> jax.Array:
    dy_chunk = output_gradient(*map(chunk, dy))
    return dkernel + im2col.kernel_gradient(geometry, chunk(x), window, dy_chunk)

  products = jnp.zeros(form.products_shape, x.dtype)
  dx, products = _fold_chunks(n, form.images, both, (jnp.zeros_like(x), products))
  dkernel = form.kernel_gradient(products)
  if channels < _FEW_CHANNELS:
    # A loop of its own: where no one asks for dx, the other one is dead code.
    row = math.prod(window) * channels
    images = im2col.images_per_chunk(height * width * row)
    dkernel = jnp.zeros((row, filters), x.dtype)
    dkernel = _fold_chunks(n, images, kernel_only, dkernel).reshape(kernel.shape)
  return dx, dkernel


def _fold_chunks(n: int, images: int, body: Any, carry: Any) -> Any:
  """Folds `body` over n images in chunks of `images`.

  Args:
    n: Number of images.
    images: Number of images in a chunk.
    body: `(chunk, carry, start) -> carry`, where `chunk(array)` is the chunk's part of
      an array of n images.
    carry: The first carry.

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


# ------------------------------------------------------------------------------
# im2col or Winograd
# ------------------------------------------------------------------------------


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
  geometry: Geometry, x: jax.Array, kernel: jax.Array
) -> tuple[Callable[[jax.Array], jax.Array], int]:
  """Returns the convolution of a chunk, and the number of images in a chunk."""
  size = geometry.output_size(x, kernel)
  if winograd.suits(geometry.strides, x.shape[0], kernel.shape, size):
    phases = winograd.Phases(geometry.strides[0], geometry.pads, kernel.shape[0], size)
    values = winograd.transform_kernel(phases.kernel(kernel))
    convolve = functools.partial(winograd.convolve, phases, values)
    return convolve, _winograd_images(phases, kernel)
  values_per_image = im2col.columns_size(size, kernel.shape[:2], kernel.shape[2])
  return (
    lambda x: im2col.convolve(geometry, x, kernel),
    im2col.images_per_chunk(values_per_image),
  )


def _backward(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> _Backward:
  """Returns how both gradients of a chunk are computed."""
  size = geometry.output_size(x, kernel)
  if winograd.suits(geometry.strides, x.shape[0], kernel.shape, size):
    phases = winograd.Phases(geometry.strides[0], geometry.pads, kernel.shape[0], size)
    values = winograd.transform_kernel(phases.kernel(kernel).swapaxes(2, 3))
    return _Backward(
      functools.partial(winograd.gradients, phases, values),
      (values.shape[0], values.shape[2], values.shape[1]),
      lambda products: winograd.kernel_gradient(phases, kernel, products),
      _winograd_images(phases, kernel),
    )
  values_per_image = im2col.columns_size(size, kernel.shape[:2], kernel.shape[3])
  return _Backward(
    lambda x, dy: im2col.gradients(geometry, x, kernel, dy),
    kernel.shape,
    lambda dkernel: dkernel,
    im2col.images_per_chunk(values_per_image),
  )


def _winograd_images(phases: winograd.Phases, kernel: jax.Array) -> int:
  values = winograd.values_per_image(phases, *kernel.shape[2:])
  return im2col.images_per_chunk(values, winograd.CHUNK_BYTES)
