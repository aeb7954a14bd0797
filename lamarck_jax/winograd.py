"""Winograd's minimal filtering: a convolution of stride 1 with fewer multiplications.

The output is computed in tiles of 2x2. A tile and the part of the image under it,
(r + 1) x (r + 1) for a kernel of r x r, are two short polynomials; their values at
r + 1 points are multiplied, instead of their coefficients (Lavin and Gray, 2016,
"Fast Algorithms for Convolutional Neural Networks"):

  output = A^T [(G kernel G^T) * (B^T image B)] A

With many channels the products at each point are one matrix product. A 3x3 kernel
needs 4 multiplications per pixel instead of 9, a 5x5 kernel 9 instead of 25. The points
are 0, 1, -1, infinity, and for 5x5 also 1/2 and -2, which round least.

Tiles are at the front in all transformed arrays: (points^2, images * tiles, channels).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

Matrix = tuple[tuple[float, ...], ...]

# Height and width of a tile of the output.
TILE = 2


class Transforms(NamedTuple):
  """The matrices for one size of kernel, r; there are r + 1 points.

  Attributes:
    output: A, r + 1 by 2.
    kernel: G, r + 1 by r.
    image: B^T, r + 1 by r + 1.
  """

  output: Matrix
  kernel: Matrix
  image: Matrix


TRANSFORMS = {
  3: Transforms(
    output=((1, 0), (1, 1), (1, -1), (0, 1)),
    kernel=((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    image=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1)),
  ),
  5: Transforms(
    output=((1, 0), (1, 1), (1, -1), (1, 1 / 2), (1, -2), (0, 1)),
    kernel=(
      (1, 0, 0, 0, 0),
      (1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 6),
      (1 / 6, -1 / 6, 1 / 6, -1 / 6, 1 / 6),
      (16 / 15, 8 / 15, 4 / 15, 2 / 15, 1 / 15),
      (1 / 30, -1 / 15, 2 / 15, -4 / 15, 8 / 15),
      (0, 0, 0, 0, 1),
    ),
    image=(
      (1, -3 / 2, -2, 3 / 2, 1, 0),
      (0, -2, 1, 5, 2, 0),
      (0, -2, 5, -1, -2, 0),
      (0, 2, 1, -2, -1, 0),
      (0, 1, -2, -1, 2, 0),
      (0, 1, -3 / 2, -2, 3 / 2, 1),
    ),
  ),
}


def num_tiles(size: Sequence[int]) -> tuple[int, int]:
  """Returns the number of tiles along height and width of an output of that size."""
  return -(-size[0] // TILE), -(-size[1] // TILE)


def transform_kernel(kernel: jax.Array) -> jax.Array:
  """Returns the values of a kernel (r, r, c, f) at the points, (points^2, c, f)."""
  values = _combine_both_axes(TRANSFORMS[kernel.shape[0]].kernel, kernel)
  return values.reshape(-1, *kernel.shape[2:])


def transform_image(
  x: jax.Array,
  kernel_size: int,
  pads: Sequence[tuple[int, int]],
  size: Sequence[int],
) -> jax.Array:
  """Returns the values at the points of what is under each tile.

  Args:
    x: Images, (n, height, width, c).
    kernel_size: r.
    pads: (low, high) rows and columns of zeros.
    size: Height and width of the convolution's output.

  Returns:
    (points^2, n * tiles, c).
  """
  channels = x.shape[-1]
  matrix = TRANSFORMS[kernel_size].image
  points = len(matrix)
  tiles = num_tiles(size)
  # One more row and column of zeros where the last tile is not full.
  padding = [
    (low, high + TILE * count - length, 0)
    for (low, high), count, length in zip(pads, tiles, size)
  ]
  x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *padding, (0, 0, 0)))
  height, width = (TILE * (count - 1) + 1 for count in tiles)
  rows = jnp.stack(
    _combine(matrix, [x[:, i : i + height : TILE] for i in range(points)])
  )
  # Without the barrier XLA would compute the rows again for every column.
  rows = lax.optimization_barrier(rows)
  columns = [rows[:, :, :, j : j + width : TILE] for j in range(points)]
  values = jnp.stack(_combine(matrix, columns), axis=1)
  return values.reshape(points**2, -1, channels)


def transform_tiles(x: jax.Array, kernel_size: int) -> jax.Array:
  """Returns the values of an image's own tiles at the points, A x A^T.

  Args:
    x: Images, (n, height, width, c).
    kernel_size: r.

  Returns:
    (points^2, n * tiles, c).
  """
  n, height, width, channels = x.shape
  matrix = TRANSFORMS[kernel_size].output
  tiles = num_tiles((height, width))
  padding = [(0, TILE * tiles[a] - x.shape[1 + a], 0) for a in (0, 1)]
  x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *padding, (0, 0, 0)))
  x = x.reshape(n, tiles[0], TILE, tiles[1], TILE, channels)
  rows = lax.optimization_barrier(
    jnp.stack(_combine(matrix, [x[:, :, i] for i in range(TILE)]))
  )
  columns = [rows[:, :, :, :, j] for j in range(TILE)]
  values = jnp.stack(_combine(matrix, columns), axis=1)
  return values.reshape(len(matrix) ** 2, -1, channels)


def output(products: jax.Array, n: int, size: Sequence[int]) -> jax.Array:
  """Returns the output whose values at the points are given, A^T products A.

  Args:
    products: (points^2, n * tiles, f).
    n: Number of images.
    size: Height and width of the output.

  Returns:
    (n, *size, f).
  """
  points, tiles, filters = _points(products), num_tiles(size), products.shape[-1]
  matrix = _transpose(TRANSFORMS[points - 1].output)
  products = products.reshape(points, points, n, *tiles, filters)
  rows = lax.optimization_barrier(jnp.stack(_combine(matrix, products)))
  pixels = jnp.stack(_combine(matrix, rows.swapaxes(0, 1)))
  pixels = pixels.transpose(2, 3, 1, 4, 0, 5)
  pixels = pixels.reshape(n, TILE * tiles[0], TILE * tiles[1], filters)
  return pixels[:, : size[0], : size[1]]


def kernel_gradient(products: jax.Array) -> jax.Array:
  """Returns the gradient of a kernel from that of its values, G^T products G.

  Args:
    products: (points^2, c, f).

  Returns:
    (r, r, c, f).
  """
  points = _points(products)
  matrix = _transpose(TRANSFORMS[points - 1].kernel)
  return _combine_both_axes(
    matrix, products.reshape(points, points, *products.shape[1:])
  )


def product(image: jax.Array, kernel: jax.Array) -> jax.Array:
  """(points^2, tiles, c) by (points^2, c, f) to (points^2, tiles, f)."""
  return lax.dot_general(image, kernel, (((2,), (1,)), ((0,), (0,))))


def transposed_product(a: jax.Array, b: jax.Array) -> jax.Array:
  """(points^2, tiles, c) by (points^2, tiles, f) to (points^2, c, f)."""
  return lax.dot_general(a, b, (((1,), (1,)), ((0,), (0,))))


def _points(products: jax.Array) -> int:
  return {(size + 1) ** 2: size + 1 for size in TRANSFORMS}[products.shape[0]]


def _transpose(matrix: Matrix) -> Matrix:
  return tuple(zip(*matrix))


def _combine(matrix: Matrix, arrays: Any) -> list[jax.Array]:
  """Returns the matrix times the arrays, written out without the zeros."""
  return [
    sum(
      factor * array if factor != 1 else array
      for factor, array in zip(row, arrays)
      if factor
    )
    for row in matrix
  ]


def _combine_both_axes(matrix: Matrix, array: jax.Array) -> jax.Array:
  """Returns the matrix times an array times the matrix's transpose, on two axes."""
  rows = jnp.stack(_combine(matrix, array))
  return jnp.stack(_combine(matrix, rows.swapaxes(0, 1)), axis=1)
