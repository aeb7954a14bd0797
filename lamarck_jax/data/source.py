"""What a reader returns: labelled images, before validation examples are set aside."""

from collections.abc import Sequence
import dataclasses
import hashlib

import numpy as np

from lamarck_jax.errors import DatasetError

MIN_SIZE, MAX_SIZE = 8, 256  # Pixels per side of the user's own images.


@dataclasses.dataclass(frozen=True)
class Split:
  """Labelled images.

  Attributes:
    images: uint8 [num_examples, height, width, channels].
    labels: int32 [num_examples], from 0 to num_classes - 1.
  """

  images: np.ndarray
  labels: np.ndarray

  def take(self, indices: np.ndarray | slice) -> 'Split':
    """Returns the examples of some indices, in their order."""
    return Split(self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True)
class Examples(Split):
  """Labelled images as a data set has them.

  Attributes:
    digests: uint64 [num_examples], of the images before they were resized; equal
      images have equal digests.
  """

  digests: np.ndarray


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set as it is stored.

  Attributes:
    train: Examples for training and validation; for testing too if there are no others.
    test: Examples for the final test, or None.
    class_names: Names of the classes, in label order.
    is_published: Whether the splits are slices of `train` as it is ordered: those of
      the paper's data sets and of the digits, on which results are published.
    num_validation: Default number of validation examples; None: by size.
  """

  train: Examples
  test: Examples | None
  class_names: tuple[str, ...]
  is_published: bool = False
  num_validation: int | None = None


def check_shape(where: object, shape: Sequence[int]) -> None:
  """Raises DatasetError unless networks can be trained on images of this shape.

  Args:
    where: The file or array, for the message.
    shape: Height and width in pixels, and channels.
  """
  height, width, channels = shape
  if not all(
    MIN_SIZE <= size <= MAX_SIZE for size in (height, width)
  ) or channels not in (1, 3):
    raise DatasetError(
      f'{where}: got images of {height}x{width}x{channels}, want {MIN_SIZE} to'
      f' {MAX_SIZE} pixels (dataset.image_size resizes them) and 1 or 3 channels'
    )


def digest(image: np.ndarray) -> int:
  """Returns a digest of an image's pixels, a number of 64 bits."""
  return int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8])


def digests(images: np.ndarray) -> np.ndarray:
  """Returns the digest of each image, uint64 [num_examples]."""
  return np.array([digest(image) for image in images], np.uint64)
