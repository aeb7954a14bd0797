"""Random flips and shifts of training images: beyond the paper, off by default."""

import dataclasses

import jax
import jax.numpy as jnp

from lamarck_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What training does to its images; all variants of an image are equally likely.

  Attributes:
    flip: Whether each image is mirrored, left to right, with a probability of 1/2.
    shift: The most pixels by which an image is shifted along each axis, in both
      directions. Pixels that come in are the image's reflection at its border.
  """

  flip: bool = False
  shift: int = 0

  @property
  def num_variants(self) -> int:
    """The number of variants of an image."""
    return (1 + self.flip) * (2 * self.shift + 1) ** 2

  @property
  def identity(self) -> int:
    """The variant that is the image as it is."""
    return (1 + self.flip) * self.shift * (2 * self.shift + 2)

  def __bool__(self) -> bool:
    """Returns whether anything is done to the images."""
    return self.num_variants > 1

  def check(self, image_shape: tuple[int, ...]) -> None:
    """Raises UserError if images (height, width, channels) are too small to reflect."""
    side = min(image_shape[:2])
    if self.shift >= side:
      raise UserError(
        f'config.augmentation.shift: got {self.shift}, want less than the side of the'
        f' images, {side}'
      )

  def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns which variant each of an array of examples gets, int32 of `shape`."""
    return jax.random.randint(key, shape, 0, self.num_variants)

  def gather(
    self, pixels: jax.Array, indices: jax.Array, variants: jax.Array
  ) -> jax.Array:
    """Returns a batch of augmented images.

    Args:
      pixels: All images, [num_examples, height, width, channels].
      indices: The examples of the batch, int32 [batch_size].
      variants: Which variant each of them gets, int32 [batch_size].

    Returns:
      [batch_size, height, width, channels], of the dtype of `pixels`.
    """
    _, height, width, _ = pixels.shape
    variants, flipped = jnp.divmod(variants, 1 + self.flip)
    row_offsets, column_offsets = jnp.divmod(variants, 2 * self.shift + 1)
    rows = self._positions(row_offsets, height)
    columns = self._positions(column_offsets, width)
    columns = jnp.where(flipped[:, None] == 1, width - 1 - columns, columns)
    # One gather of single pixels: all indices exist, and to check them takes time.
    return pixels.at[indices[:, None, None], rows[:, :, None], columns[:, None, :]].get(
      mode='promise_in_bounds'
    )

  def _positions(self, offsets: jax.Array, size: int) -> jax.Array:
    """Returns where along an axis each pixel comes from, int32 [batch_size, size]."""
    positions = jnp.arange(size) + offsets[:, None] - self.shift
    return size - 1 - jnp.abs(size - 1 - jnp.abs(positions))


NO_AUGMENTATION = Augmentation()
