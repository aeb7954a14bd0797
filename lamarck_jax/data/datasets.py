"""Image data sets as arrays: training, validation and test split (Section 4.2).

`digits` comes with scikit-learn. `npz:FILE` and `folder:DIR` are the user's own images
(`data.own_images`). Every other name is a TFDS data set (`data.tfds_reading`), read
without TensorFlow; the data sets of the paper are downloaded and prepared on first use.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import numpy as np

from lamarck_jax.data import archives, arrays, digits, own_images, splits, tfds_reading
from lamarck_jax.data.source import Source, Split
from lamarck_jax.errors import DatasetError

__all__ = [
  'IMAGE_SIZES',
  'Dataset',
  'DatasetError',
  'Split',
  'channel_statistics',
  'load',
]

# Pixels per side, where they are known before the data set is read.
IMAGE_SIZES = {
  'digits': digits.IMAGE_SIZE,
  **{name: archive.image_size for name, archive in archives.FORMATS.items()},
}

# By name, or by prefix up to the colon; every other name is TFDS's.
_READERS: dict[str, Callable[[str, int | None], Source]] = {
  'arrays': arrays.load,
  'digits': digits.load,
  'npz:': own_images.load,
  'folder:': own_images.load,
}


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Three disjoint splits of a data set.

  Attributes:
    name: The name given to `load`.
    train: Examples that networks are trained on.
    validation: Examples that fitness is measured on.
    test: Examples for the final test, never used during a search.
    class_names: Names of the classes, in label order.
  """

  name: str
  train: Split
  validation: Split
  test: Split
  class_names: tuple[str, ...]

  @property
  def num_classes(self) -> int:
    """Number of classes."""
    return len(self.class_names)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """Height and width in pixels, and channels."""
    height, width, channels = self.train.images.shape[1:]
    return height, width, channels

  @property
  def description(self) -> dict[str, Any]:
    """Name, image shape, split sizes and class names, ready for JSON."""
    splits = {'train': self.train, 'validation': self.validation, 'test': self.test}
    return {
      'name': self.name,
      'image_shape': list(self.image_shape),
      **{f'num_{name}': len(split.labels) for name, split in splits.items()},
      'class_names': list(self.class_names),
    }


def load(
  name: str,
  *,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  num_train: int | None = None,
  num_validation: int | None = None,
  image_size: int | None = None,
  source: Source | None = None,
) -> Dataset:
  """Returns a data set; the paper's are downloaded and prepared on first use.

  Args:
    name: `digits`, `npz:FILE`, `folder:DIR`, or the TFDS name of an image
      classification data set. `mnist`, `fashion_mnist`, `cifar10` and `cifar100` are
      prepared on first use; any other must be prepared already.
    data_dir: TFDS's data folder; None: $TFDS_DATA_DIR, or ~/tensorflow_datasets.
    manual_dir: Folder with official archives to use instead of downloading; None:
      `downloads/manual` in the data folder.
    num_train: Number of training examples; None: all but those for validation.
    num_validation: Number of validation examples; None: 300 for `digits`, else a
      tenth of the source's training examples, at most 5,000.
    image_size: Pixels per side to resize images to, by area averaging; None keeps
      their size.
    source: The data set, if it need not be read because the program has it.

  Returns:
    The data set. No split depends on a seed, and a smaller `num_train` gives a part of
    the training split and the same validation split; see `splits`. A TFDS data set
    without a test split is tested on its split `validation`.

  Raises:
    DatasetError: If there is no such data set, it cannot be obtained, the numbers do
      not fit it, or a class would have no example in a split.
  """
  if image_size is not None and image_size < 1:
    raise DatasetError(f'dataset.image_size: got {image_size}, want at least 1 pixel')
  prefix, colon, _ = name.partition(':')
  read_tfds = functools.partial(
    tfds_reading.load, data_dir=data_dir, manual_dir=manual_dir
  )
  if source is None:
    source = _READERS.get(prefix + colon, read_tfds)(name, image_size)
  train, validation, test = splits.split(name, source, num_train, num_validation)
  return Dataset(name, train, validation, test, source.class_names)


def channel_statistics(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean and the standard deviation of every channel.

  Args:
    pixels: uint8 [num_examples, height, width, channels].

  Returns:
    float32 [channels] each. The deviation of a constant channel is 1, so that one can
    divide by it.
  """
  # Exact sums of integers over images, whose rows are long, and then over positions:
  # eight times as fast as over both at once, and without a copy of the pixels.
  flat = pixels.reshape(len(pixels), -1)
  totals = flat.sum(axis=0, dtype=np.uint64)
  squares = np.einsum('ij,ij->j', flat, flat, dtype=np.uint64, casting='safe')
  channels, count = pixels.shape[-1], pixels.size / pixels.shape[-1]
  mean = totals.reshape(-1, channels).sum(axis=0) / count
  mean_square = squares.reshape(-1, channels).sum(axis=0) / count
  std = np.sqrt(np.maximum(mean_square - mean**2, 0))
  return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)
