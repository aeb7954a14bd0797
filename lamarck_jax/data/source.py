"""What a reader returns: labelled images, before validation examples are set aside."""

from collections.abc import Sequence
import dataclasses
import hashlib

from absl import logging
import numpy as np

from lamarck_jax.data.files import printable
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


def checked(
  where: object,
  train: Examples,
  test: Examples | None,
  class_names: tuple[str, ...],
) -> Source:
  """Returns the user's own images as a data set.

  Args:
    where: The file, folder or argument that they come from, for messages.
    train: Their training examples.
    test: Their test examples, or None.
    class_names: Names of the classes, in label order.

  Raises:
    DatasetError: If there is one class only, or test images have another shape.
  """
  if len(class_names) < 2:
    raise DatasetError(f'{where}: got {len(class_names)} class, want at least 2')
  if test is not None and train.images.shape[1:] != test.images.shape[1:]:
    raise DatasetError(
      f'{where}: got test images of {_shape(test)}, want the {_shape(train)} of the'
      ' training images'
    )
  _warn_of_plain_images(where, train.images)
  return Source(train, test, class_names)


def _warn_of_plain_images(where: object, images: np.ndarray) -> None:
  """Warns if most images show nothing, as of 8-bit values in files of 16 bits."""
  num_plain = sum(bool((image == image[0, 0]).all()) for image in images)
  if 2 * num_plain > len(images):
    logging.warning(
      '%s: %d of %d training images have one colour only',
      printable(where),
      num_plain,
      len(images),
    )


def _shape(examples: Examples) -> str:
  return 'x'.join(map(str, examples.images.shape[1:]))


def check_image_size(image_size: int | None) -> None:
  """Raises DatasetError unless images can be resized to squares of this size."""
  if image_size is not None and not MIN_SIZE <= image_size <= MAX_SIZE:
    raise DatasetError(
      f'dataset.image_size: got {image_size}, want {MIN_SIZE} to {MAX_SIZE} pixels'
    )


def check_shape(where: object, shape: Sequence[int]) -> None:
  """Raises DatasetError unless networks can be trained on images of this shape.

  Args:
    where: The file or array, for the message.
    shape: Height and width in pixels, and channels.
  """
  height, width, channels = shape
  wanted = []
  if not all(MIN_SIZE <= size <= MAX_SIZE for size in (height, width)):
    wanted.append(
      f'{MIN_SIZE} to {MAX_SIZE} pixels per side (dataset.image_size resizes them)'
    )
  if channels not in (1, 3):
    wanted.append('1 or 3 channels')
    if height in (1, 3) and width >= MIN_SIZE:
      wanted = ['channels last, height x width x channels']
  if wanted:
    raise DatasetError(
      f'{where}: got images of {height}x{width}x{channels}, want {" and ".join(wanted)}'
    )


def digest(image: np.ndarray) -> int:
  """Returns a digest of an image's pixels, a number of 64 bits."""
  return int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8])


def digests(images: np.ndarray) -> np.ndarray:
  """Returns the digest of each image, uint64 [num_examples]."""
  return np.array([digest(image) for image in images], np.uint64)
