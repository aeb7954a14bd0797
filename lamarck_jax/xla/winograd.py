"""Winograd's minimal filtering: a convolution with fewer multiplications.

The output is computed in tiles of 4x4. A tile and the part of the image under it,
(r + 3) x (r + 3) for a kernel of r x r, are two short polynomials; their values at
r + 3 points are multiplied, instead of their coefficients (Lavin and Gray, 2016,
"Fast Algorithms for Convolutional Neural Networks"):

  output = A^T [(G kernel G^T) * (B^T image B)] A

With many channels the products at each point are one matrix product. A 3x3 kernel
needs 2.25 multiplications per pixel instead of 9, a 5x5 kernel 4 instead of 25.

All of this is for a stride of 1. With a stride of 2 an output sees every second pixel
through every second weight, from each of four phases. With the phases as channels
(space-to-depth, the polyphase decomposition of filter banks) it is a convolution of
stride 1 and half the kernel's size, rounded up (`Phases`). A 5x5 kernel then needs 9
multiplications instead of 25.

Tiles are at the front in all transformed arrays: (points^2, images * tiles, channels).

What stands behind an optimisation barrier is computed once. XLA would fuse it into each
of the sums that read it, which is more arithmetic and takes longer to compile.
"""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# Height and width of a tile of the output.
TILE = 4
# Bytes of one chunk's values before and after the products.
CHUNK_BYTES = 2 * 2**20

# For layers with at least this number of channels and filters (by kernel size and
# stride), rows and columns, multiplications a batch: smaller ones gain less than they
# take to compile. Behind a stride there are four times as many channels, and with too
# many the transforms take longer than they save.
_MIN_CHANNELS = {(3, 1): 16, (5, 1): 8, (5, 2): 8}
_MAX_STRIDED_CHANNELS = 128
_MIN_SIZE = 4
_MIN_MULTIPLICATIONS = 10**7

# The finite points for each size of kernel, of those tried the ones that round least.
# Infinity is one more.
_POINTS = {
  3: (0, 1, -1, 1 / 2, -2),
  5: (0, 1, -1, 1 / 2, -1 / 2, 2, -2),
}


class Transforms(NamedTuple):
  """The matrices for one size of kernel, r; there are r + 3 points.

  Attributes:
    output: A, r + 3 by 4.
    kernel: G, r + 3 by r.
    image: B^T, r + 3 by r + 3.
  """

  output: np.ndarray
  kernel: np.ndarray
  image: np.ndarray


def _transforms(points: np.ndarray, kernel_size: int) -> Transforms:
  """Returns the matrices of the Toom-Cook algorithm, all exact in binary but G."""
  size = len(points) + 1
  output, kernel, image = (
    np.zeros((size, columns)) for columns in (TILE, kernel_size, size)
  )
  for i, point in enumerate(points):
    others = np.delete(points, i)
    output[i] = point ** np.arange(TILE)
    kernel[i] = point ** np.arange(kernel_size) / np.prod(point - others)
    image[i, :-1] = np.poly(others)[::-1]
  output[-1, -1] = kernel[-1, -1] = 1  # Infinity sees the highest power alone.
  image[-1] = np.poly(points)[::-1]
  return Transforms(output, kernel, image)


TRANSFORMS = {
  size: _transforms(np.array(points), size) for size, points in _POINTS.items()
}


class Phases(NamedTuple):
  """A convolution as one of stride 1, whose channels are the phases of the stride.

  Attributes:
    stride: Stride along height and width.
    pads: (low, high) rows and columns of zeros, of the convolution.
    kernel_size: Of the convolution.
    size: Height and width of its output.
  """

  stride: int
  pads: Sequence[tuple[int, int]]
  kernel_size: int
  size: Sequence[int]

  @property
  def reduced_kernel_size(self) -> int:
    """Height and width of the kernel of stride 1, r."""
    return -(-self.kernel_size // self.stride)

  def images(self, x: jax.Array) -> jax.Array:
    """Returns the images of stride 1, with zeros around as far as full tiles reach.

    Args:
      x: Images, (n, height, width, c).

    Returns:
      (n, 4 rows + r - 1, 4 columns + r - 1, stride^2 c), for rows x columns tiles.
    """
    pads = []
    for (low, _), length, count in zip(self.pads, x.shape[1:3], num_tiles(self.size)):
      padded = self.stride * (TILE * count + self.reduced_kernel_size - 1)
      pads.append((low, padded - low - length, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    return lax.optimization_barrier(jax.vmap(self._as_channels)(x))

  def kernel(self, kernel: jax.Array) -> jax.Array:
    """Returns the kernel of stride 1, (r, r, stride^2 c, f)."""
    missing = (0, self.stride * self.reduced_kernel_size - self.kernel_size)
    kernel = jnp.pad(kernel, (missing, missing, (0, 0), (0, 0)))
    return jax.vmap(self._as_channels, -1, -1)(kernel)

  def _as_channels(self, x: jax.Array) -> jax.Array:
    height, width = (length // self.stride for length in x.shape[:2])
    x = x.reshape(height, self.stride, width, self.stride, -1)
    return x.swapaxes(1, 2).reshape(height, width, -1)


def suits(
  strides: tuple[int, int],
  n: int,
  kernel_shape: tuple[int, ...],
  size: Sequence[int],
) -> bool:
  """Returns whether this form is the faster one for a layer.

  Args:
    strides: Along height and width.
    n: Number of images in a batch.
    kernel_shape: (kernel height, kernel width, channels, filters).
    size: Height and width of the output.
  """
  height, width, channels, filters = kernel_shape
  least = _MIN_CHANNELS.get((height, strides[0]))
  return (
    height == width
    and strides[0] == strides[1]
    and least is not None
    and min(channels, filters) >= least
    and (strides[0] == 1 or channels <= _MAX_STRIDED_CHANNELS)
    and min(size) >= _MIN_SIZE
    and n * math.prod(size) * math.prod(kernel_shape) >= _MIN_MULTIPLICATIONS
  )


def values_per_image(phases: Phases, channels: int, filters: int) -> int:
  """Returns the values of one image before and after the products."""
  points = phases.reduced_kernel_size + TILE - 1
  return (
    points**2
    * math.prod(num_tiles(phases.size))
    * (phases.stride**2 * channels + filters)
  )


def convolve(phases: Phases, kernel_values: jax.Array, x: jax.Array) -> jax.Array:
  """Returns the convolution of a chunk, [n, height, width, filters].

  Args:
    phases: The convolution.
    kernel_values: Of its kernel at stride 1, see `transform_kernel`.
    x: Images, [n, height, width, channels].
  """
  image = transform_image(phases.images(x), phases.reduced_kernel_size)
  return output(product(image, kernel_values), x.shape[0], phases.size)


def gradients(
  phases: Phases, kernel_values: jax.Array, x: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the gradient of a chunk, and its part of the kernel gradient's values.

  Args:
    phases: The convolution.
    kernel_values: As in `convolve`, with channels and filters exchanged.
    x: Images, [n, height, width, channels].
    dy: Gradient of the output, [n, height, width, filters].

  Returns:
    The gradient of x, and values [points^2, stride^2 channels, filters] to be summed
    over the chunks for `kernel_gradient`.
  """
  image = transform_image(phases.images(x), phases.reduced_kernel_size)
  gradient = transform_gradient(dy, phases.reduced_kernel_size)
  dimage = image_gradient(
    product(gradient, kernel_values), x.shape[0], num_tiles(phases.size)
  )
  (dx,) = jax.linear_transpose(phases.images, x)(dimage)
  return dx, transposed_product(image, gradient)


def kernel_gradient(
  phases: Phases, kernel: jax.Array, products: jax.Array
) -> jax.Array:
  """Returns the gradient of a kernel from the sum of what `gradients` gave."""
  dkernel = transform_kernel_gradient(products)
  return jax.linear_transpose(phases.kernel, kernel)(dkernel)[0]


def num_tiles(size: Sequence[int]) -> tuple[int, int]:
  """Returns the number of tiles along height and width of an output of that size."""
  return -(-size[0] // TILE), -(-size[1] // TILE)


def transform_kernel(kernel: jax.Array) -> jax.Array:
  """Returns the values of a kernel (r, r, c, f) at the points, (points^2, c, f)."""
  values = _both_axes(TRANSFORMS[kernel.shape[0]].kernel, kernel)
  return values.reshape(-1, *kernel.shape[2:])


def transform_image(x: jax.Array, kernel_size: int) -> jax.Array:
  """Returns the values at the points of what is under each tile, B^T x B.

  Args:
    x: Images, (n, 4 rows + r - 1, 4 columns + r - 1, c), for rows x columns tiles.
    kernel_size: r.

  Returns:
    (points^2, n * tiles, c).
  """
  matrix = TRANSFORMS[kernel_size].image
  points = len(matrix)
  height, width = (length - points + 1 for length in x.shape[1:3])
  rows = jnp.stack(
    _combine(matrix, [x[:, i : i + height : TILE] for i in range(points)])
  )
  rows = lax.optimization_barrier(rows)
  columns = [rows[:, :, :, j : j + width : TILE] for j in range(points)]
  values = jnp.stack(_combine(matrix, columns), axis=1)
  return values.reshape(points**2, -1, x.shape[-1])


def image_gradient(values: jax.Array, n: int, tiles: Sequence[int]) -> jax.Array:
  """Returns the gradient of images from that of their values at the points.

  The adjoint of `transform_image`: what tiles have in common is added up.

  Args:
    values: (points^2, n * tiles, c).
    n: Number of images.
    tiles: Number of tiles along height and width.

  Returns:
    (n, 4 rows + r - 1, 4 columns + r - 1, c), for rows x columns tiles.
  """
  points, channels = math.isqrt(values.shape[0]), values.shape[-1]
  overlap = points - TILE
  matrix = TRANSFORMS[overlap + 1].image.T

  def lines(arrays: Any, axis: int) -> jax.Array:
    """Returns (4, ...), the lines of each tile and of one more along an axis.

    What a tile shares with the one before is added up.
    """
    pieces = _combine(matrix, arrays)
    zeros = [(0, 0)] * pieces[0].ndim

    def moved(piece: jax.Array, by: int) -> jax.Array:
      return jnp.pad(piece, [*zeros[:axis], (by, 1 - by), *zeros[axis + 1 :]])

    return jnp.stack(
      [
        moved(pieces[i], 0) + moved(pieces[i + TILE], 1)
        if i < overlap
        else moved(pieces[i], 0)
        for i in range(TILE)
      ]
    )

  values = values.reshape(points, points, n, *tiles, channels)
  rows = lax.optimization_barrier(lines(values, 2))
  pixels = lines(rows.swapaxes(0, 1), 3)
  pixels = pixels.transpose(2, 3, 1, 4, 0, 5)
  pixels = pixels.reshape(n, *(TILE * (count + 1) for count in tiles), channels)
  return pixels[:, : TILE * tiles[0] + overlap, : TILE * tiles[1] + overlap]


def transform_gradient(dy: jax.Array, kernel_size: int) -> jax.Array:
  """Returns the values at the points of an output's gradient, A y A^T.

  Args:
    dy: Gradient of the output, (n, height, width, f).
    kernel_size: r.

  Returns:
    (points^2, n * tiles, f).
  """
  matrix = TRANSFORMS[kernel_size].output
  tiles = num_tiles(dy.shape[1:3])
  missing = [(0, TILE * tiles[a] - dy.shape[1 + a]) for a in (0, 1)]
  dy = lax.optimization_barrier(jnp.pad(dy, ((0, 0), *missing, (0, 0))))
  rows = lax.optimization_barrier(
    jnp.stack(_combine(matrix, [dy[:, i::TILE] for i in range(TILE)]))
  )
  columns = [rows[:, :, :, j::TILE] for j in range(TILE)]
  values = jnp.stack(_combine(matrix, columns), axis=1)
  return values.reshape(len(matrix) ** 2, -1, dy.shape[-1])


def output(products: jax.Array, n: int, size: Sequence[int]) -> jax.Array:
  """Returns the output whose values at the points are given, A^T products A.

  Args:
    products: (points^2, n * tiles, f).
    n: Number of images.
    size: Height and width of the output.

  Returns:
    (n, height, width, f).
  """
  points = math.isqrt(products.shape[0])
  tiles, filters = num_tiles(size), products.shape[-1]
  matrix = TRANSFORMS[points - TILE + 1].output.T
  products = products.reshape(points, points, n, *tiles, filters)
  rows = lax.optimization_barrier(jnp.stack(_combine(matrix, products)))
  pixels = jnp.stack(_combine(matrix, rows.swapaxes(0, 1)))
  pixels = pixels.transpose(2, 3, 1, 4, 0, 5)
  pixels = pixels.reshape(n, TILE * tiles[0], TILE * tiles[1], filters)
  return pixels[:, : size[0], : size[1]]


def transform_kernel_gradient(products: jax.Array) -> jax.Array:
  """Returns the gradient of a kernel from that of its values, G^T products G.

  Args:
    products: (points^2, c, f).

  Returns:
    (r, r, c, f).
  """
  points = math.isqrt(products.shape[0])
  matrix = TRANSFORMS[points - TILE + 1].kernel.T
  return _both_axes(matrix, products.reshape(points, points, *products.shape[1:]))


def product(image: jax.Array, kernel: jax.Array) -> jax.Array:
  """(points^2, tiles, c) by (points^2, c, f) to (points^2, tiles, f)."""
  return lax.dot_general(image, kernel, (((2,), (1,)), ((0,), (0,))))


def transposed_product(a: jax.Array, b: jax.Array) -> jax.Array:
  """(points^2, tiles, c) by (points^2, tiles, f) to (points^2, c, f)."""
  return lax.dot_general(a, b, (((1,), (1,)), ((0,), (0,))))


def _combine(matrix: np.ndarray, arrays: Any) -> list[jax.Array]:
  """Returns the matrix times the arrays, written out without the zeros."""
  return [
    sum(
      factor * array if factor != 1 else array
      for factor, array in zip(row, arrays)
      if factor
    )
    for row in matrix.tolist()
  ]


def _both_axes(matrix: np.ndarray, array: jax.Array) -> jax.Array:
  """Returns M array M^T over the first two axes of an array (r, r, c, f).

  As one matrix product, of M's Kronecker square with the array's r^2 rows.
  """
  rows, columns = matrix.shape
  square = np.kron(matrix, matrix).astype(array.dtype)
  values = jnp.matmul(square, array.reshape(columns**2, -1))
  return values.reshape(rows, rows, *array.shape[2:])
