"""Convolution of a few images as one matrix product (im2col), and its gradients.

The pixels under each position of the kernel are gathered into a matrix, which is
multiplied by the kernel. All functions take a chunk of images small enough for that
matrix to stay in the cache.
"""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

# Bytes of the gathered matrix: small enough for the last-level cache, large enough for
# two threads to divide each product.
CHUNK_BYTES = 4 * 2**20


class Geometry(NamedTuple):
  """Strides and padding of a convolution.

  Attributes:
    strides: Along height and width.
    pads: (low, high) rows and columns of zeros; negative to crop.
  """

  strides: tuple[int, int]
  pads: tuple[tuple[int, int], tuple[int, int]]

  @classmethod
  def same(cls, x: jax.Array, kernel: jax.Array, stride: int) -> 'Geometry':
    """Returns that of SAME padding, as `jax.lax` defines it."""
    strides = (stride, stride)
    (top, bottom), (left, right) = lax.padtype_to_pads(
      x.shape[1:3], kernel.shape[:2], strides, 'SAME'
    )
    return cls(strides, ((top, bottom), (left, right)))

  def output_size(self, x: jax.Array, kernel: jax.Array) -> tuple[int, int]:
    """Returns height and width of the output."""
    height, width = (
      (x.shape[1 + a] + sum(self.pads[a]) - kernel.shape[a]) // self.strides[a] + 1
      for a in (0, 1)
    )
    return height, width


def images_per_chunk(values: int, chunk_bytes: int = CHUNK_BYTES) -> int:
  """Returns the number of images in a chunk, a power of two.

  Args:
    values: float32 values that one image takes up.
    chunk_bytes: Bytes that a chunk may take up.
  """
  count = max(1, chunk_bytes // (4 * values))
  return 1 << (count.bit_length() - 1)


def convolve(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns the convolution of a chunk.

  Args:
    geometry: Strides and padding.
    x: Images, [n, height, width, channels].
    kernel: [kernel height, kernel width, channels, filters].

  Returns:
    [n, output height, output width, filters].
  """
  size = geometry.output_size(x, kernel)
  window, (channels, filters) = kernel.shape[:2], kernel.shape[2:]
  if geometry.strides == (1, 1) and window != (1, 1) and filters < channels:
    # Multiplied first, what is moved has as few channels as there are filters.
    products = product(x, kernel.transpose(2, 0, 1, 3).reshape(channels, -1))
    return _shifted_sum(products, filters, window, geometry.pads, size)
  columns = gather(x, window, geometry.strides, geometry.pads, size)
  return product(columns, kernel.reshape(-1, filters))


def gradients(
  geometry: Geometry, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns both gradients of a chunk, from one gathering of the output's gradient.

  The pixels of x that lie at one phase of the stride see the output through one part
  of the kernel, at stride 1. With P the columns of dy under those pixels, their
  gradient is P times that part of the kernel, and the part's own gradient is x^T P.

  Args:
    geometry: Strides and padding of the convolution.
    x: Images, [n, height, width, channels].
    kernel: [kernel height, kernel width, channels, filters].
    dy: Gradient of the output, [n, output height, output width, filters].

  Returns:
    The gradients of x and of the kernel, of their shapes.
  """
  strides = geometry.strides
  channels, filters = kernel.shape[2:]
  if strides == (1, 1):
    if kernel.shape[:2] != (1, 1) and channels < filters:
      return _gradients_of_few_channels(geometry, x, kernel, dy)
    return _phase_gradients(geometry, (0, 0), x, kernel, dy)
  dx, dkernel = jnp.zeros_like(x), jnp.zeros_like(kernel)
  for row in range(min(strides[0], x.shape[1])):
    for column in range(min(strides[1], x.shape[2])):
      phase = (row, column)
      taps = [(phase[a] + geometry.pads[a][0]) % strides[a] for a in (0, 1)]
      part = slice(taps[0], None, strides[0]), slice(taps[1], None, strides[1])
      if kernel[part].size == 0:
        continue
      pixels = (
        slice(None),
        slice(row, None, strides[0]),
        slice(column, None, strides[1]),
      )
      dx_phase, dpart = _phase_gradients(geometry, phase, x[pixels], kernel[part], dy)
      dx = dx.at[pixels].set(dx_phase)
      dkernel = dkernel.at[part].set(dpart)
  return dx, dkernel


def kernel_gradient(
  geometry: Geometry, x: jax.Array, window: Sequence[int], dy: jax.Array
) -> jax.Array:
  """Returns the kernel's gradient from the columns of x, [window * channels, filters].

  With few channels these are smaller than the columns of dy that `gradients` gathers.
  """
  columns = gather(x, window, geometry.strides, geometry.pads, dy.shape[1:3])
  return transposed_product(columns, dy)


def gather(
  x: jax.Array,
  window: Sequence[int],
  strides: tuple[int, int],
  pads: Sequence[tuple[int, int]],
  size: Sequence[int],
) -> jax.Array:
  """Returns the values under each position of a window, in an HWIO kernel's order.

  Args:
    x: Images, [n, height, width, channels].
    window: Height and width of the window.
    strides: Along height and width.
    pads: (low, high) rows and columns of zeros, negative to crop.
    size: Height and width of the output.

  Returns:
    [n, output height, output width, window height * window width * channels].
  """
  zero = jnp.zeros((), x.dtype)
  x = lax.pad(x, zero, ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))
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


def product(columns: jax.Array, matrix: jax.Array) -> jax.Array:
  """[..., k] by [k, m] to [..., m], as one matrix product."""
  flat = columns.reshape(-1, columns.shape[-1]) @ matrix
  return flat.reshape(*columns.shape[:-1], matrix.shape[1])


def transposed_product(a: jax.Array, b: jax.Array) -> jax.Array:
  """[..., k] by [..., m] to [k, m]: the sum over positions of outer products."""
  return a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, b.shape[-1])


def _phase_gradients(
  geometry: Geometry,
  phase: tuple[int, int],
  x: jax.Array,
  part: jax.Array,
  dy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns the gradients of one phase's pixels and of its part of the kernel."""
  *window, channels, filters = part.shape
  size = x.shape[1], x.shape[2]
  pads = []
  for a in (0, 1):
    # Pixel q of the phase meets outputs first - t + q, over the part's taps t.
    first = (phase[a] + geometry.pads[a][0]) // geometry.strides[a]
    low = window[a] - 1 - first
    pads.append((low, size[a] + window[a] - 1 - low - dy.shape[1 + a]))
  columns = gather(dy, window, (1, 1), pads, size)
  matrix = part[::-1, ::-1].transpose(0, 1, 3, 2).reshape(-1, channels)
  dpart = transposed_product(x, columns)
  dpart = dpart.reshape(channels, *window, filters).transpose(1, 2, 0, 3)
  return product(columns, matrix), dpart[::-1, ::-1]


def _gradients_of_few_channels(
  geometry: Geometry, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns both gradients at stride 1, with no column of the wider output's."""
  *window, channels, filters = kernel.shape
  flipped = kernel[::-1, ::-1].transpose(3, 0, 1, 2).reshape(filters, -1)
  pads = []
  for a in (0, 1):
    low = window[a] - 1 - geometry.pads[a][0]
    pads.append((low, x.shape[1 + a] + window[a] - 1 - low - dy.shape[1 + a]))
  size = x.shape[1], x.shape[2]
  dx = _shifted_sum(product(dy, flipped), channels, window, pads, size)
  return dx, kernel_gradient(geometry, x, window, dy).reshape(kernel.shape)


def _shifted_sum(
  products: jax.Array,
  channels: int,
  window: Sequence[int],
  pads: Sequence[tuple[int, int]],
  size: tuple[int, int],
) -> jax.Array:
  """Returns the sum over a window's positions of what each has under it, at stride 1.

  Args:
    products: [n, height, width, window height * window width * channels], the values
      of every position of the window in the order of an HWIO kernel.
    channels: Channels of one position.
    window: Height and width of the window.
    pads: (low, high) rows and columns of zeros, negative to crop.
    size: Height and width of the output.

  Returns:
    [n, output height, output width, channels].
  """
  n, zero = products.shape[0], jnp.zeros((), products.dtype)
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


def columns_size(size: Sequence[int], window: Sequence[int], channels: int) -> int:
  """Returns the values that one image's columns take up."""
  return math.prod(size) * math.prod(window) * channels
