"""Labelled images as a program has them: arrays of pixels, labels of any kind.

`lamarck_jax.fit` takes them. `own_images` reads the same from npz files.
"""

from collections.abc import Sequence
from typing import Any
import unicodedata

import numpy as np

from lamarck_jax.data import decoding
from lamarck_jax.data.npz import Declared
from lamarck_jax.data.source import (
  Examples,
  Source,
  check_image_size,
  check_shape,
  checked,
  digests,
)
from lamarck_jax.errors import DatasetError

NAME = 'arrays'  # As `dataset.name`.

_WANTED = 'uint8, other integers from 0 to 255, or floats from 0 to 1'
_WANTED_SHAPE = (
  '[num_examples, height, width] or [num_examples, height, width, channels]'
)


def load(name: str, image_size: int | None = None) -> Source:
  """Raises DatasetError: arrays are gone when the program that had them has ended."""
  raise DatasetError(
    f'dataset.name: got {name!r}, want the images themselves: call lamarck_jax.fit with'
    ' the arrays that the run was started with'
  )


def source(
  images: Any,
  labels: Any,
  test_images: Any = None,
  test_labels: Any = None,
  image_size: int | None = None,
) -> tuple[Source, np.ndarray]:
  """Returns arrays as a data set, and the labels of its classes.

  Args:
    images: What `pixels` takes.
    labels: Integers or strings, [num_examples] or [num_examples, 1].
    test_images: The same for the final test; None sets a part of `images` aside.
    test_labels: Their labels.
    image_size: Pixels per side to resize to; None keeps the size of the images.

  Returns:
    The data set, and the labels in the order of its classes, [num_classes].

  Raises:
    DatasetError: If the arrays are not suitable for training.
  """
  check_image_size(image_size)
  if (test_images is None) != (test_labels is None):
    given, missing = ('test_images', 'test_labels')[:: -1 if test_images is None else 1]
    raise DatasetError(f'{missing}: got none beside {given}, want both or neither')
  train_pixels = _suitable_pixels('images', images, image_size)
  values = _labels('labels', labels, len(train_pixels))
  classes = np.unique(values)
  train = examples(train_pixels, _indices('labels', values, classes), image_size)
  test = None
  if test_images is not None:
    test_pixels = _suitable_pixels('test_images', test_images, image_size)
    values = _labels('test_labels', test_labels, len(test_pixels))
    indices = _indices('test_labels', values, classes)
    test = examples(test_pixels, indices, image_size)
  return checked(NAME, train, test, tuple(map(str, classes.tolist()))), classes


def pixels(where: str, images: Any) -> np.ndarray:
  """Returns images as uint8 [num_examples, height, width, channels].

  Args:
    where: Name of the argument, for messages.
    images: An array, or what NumPy makes one of, [num_examples, height, width] or
      [num_examples, height, width, channels]: uint8, other integers from 0 to 255, or
      floats from 0 to 1, which become 0 to 255. One image alone is not taken.

  Raises:
    DatasetError: If they are something else.
  """
  array = _array(where, images, f'{_WANTED}, {_WANTED_SHAPE}')
  if not array.size:
    raise DatasetError(f'{where}: got no images, want at least one')
  wanted = [] if array.dtype.kind in 'iuf' else [_WANTED]
  # An image with its channels would pass for gray images of a column or three.
  is_image = array.ndim == 3 and array.shape[-1] in (1, 3)
  wanted += [] if array.ndim in (3, 4) else [_WANTED_SHAPE]
  wanted += ['one image as image[np.newaxis]'] if is_image else []
  if wanted:
    found = Declared(array.shape, array.dtype)
    raise DatasetError(f'{where}: got {found}, want {", ".join(wanted)}')
  if array.ndim == 3:
    array = array[..., np.newaxis]
  if array.dtype == np.uint8:
    return array
  is_float = array.dtype.kind == 'f'
  least, most = array.min(), array.max()
  if not 0 <= least <= most <= (1 if is_float else 255):  # Not so with NaN either.
    raise DatasetError(
      f'{where}: got {array.dtype} from {least:g} to {most:g}, want {_WANTED}'
    )
  if not is_float:
    return array.astype(np.uint8)
  # One by one: twice the size of a large array of floats may not fit into memory.
  return np.stack([np.rint(image * 255).astype(np.uint8) for image in array])


def examples(
  images: np.ndarray, labels: np.ndarray, image_size: int | None
) -> Examples:
  """Returns labelled images, resized if they are to be.

  Args:
    images: uint8 [num_examples, height, width], or with channels.
    labels: int32 [num_examples].
    image_size: Pixels per side to resize to; None keeps the size of the images.
  """
  if images.ndim == 3:
    images = images[..., np.newaxis]
  keys = digests(images)
  return Examples(resized(images, image_size), labels, keys)


def resized(images: np.ndarray, image_size: int | None) -> np.ndarray:
  """Returns images, uint8 [num_examples, height, width, channels], as squares."""
  if image_size is None:
    return images
  return np.stack([decoding.resize(image, image_size) for image in images])


def resized_shape(shape: Sequence[int], image_size: int | None) -> tuple[int, ...]:
  """Returns height, width and channels after resizing.

  Args:
    shape: Of an array of images, with channels or without.
    image_size: Pixels per side to resize to; None keeps the size of the images.
  """
  height, width, channels = (*shape[1:], 1)[:3]
  return (image_size or height, image_size or width, channels)


def _suitable_pixels(where: str, images: Any, image_size: int | None) -> np.ndarray:
  array = pixels(where, images)
  check_shape(where, resized_shape(array.shape, image_size))
  return array


def _labels(where: str, labels: Any, num_examples: int) -> np.ndarray:
  """Returns labels as an array of integers or of strings, [num_examples]."""
  wanted = f'{num_examples} integers or strings, one for each image'
  array = _array(where, labels, wanted)
  found = Declared(array.shape, array.dtype)
  if array.dtype.kind == 'O' and all(isinstance(value, str) for value in array.flat):
    array = array.astype(str)  # As pandas has them.
  # Keras's data sets have labels of shape [num_examples, 1].
  shapes = ((num_examples,), (num_examples, 1))
  if array.dtype.kind not in 'biuU' or array.shape not in shapes:
    raise DatasetError(f'{where}: got {found}, want {wanted}')
  array = array.reshape(-1)
  if array.dtype.kind == 'U':
    array = np.array([unicodedata.normalize('NFC', label) for label in array])
    if blank := [index for index, label in enumerate(array) if not label.strip()]:
      raise DatasetError(f'{where}: got an empty string at {blank[0]}, want {wanted}')
  return array


def _indices(where: str, values: np.ndarray, classes: np.ndarray) -> np.ndarray:
  """Returns the index of each label among the classes, int32."""
  if values.dtype.kind != classes.dtype.kind and 'U' in (
    values.dtype.kind + classes.dtype.kind
  ):
    raise DatasetError(
      f'{where}: got {values.dtype}, want the {classes.dtype} of labels'
    )
  unknown = values[~np.isin(values, classes)]
  if len(unknown):
    raise DatasetError(
      f'{where}: got {unknown[0]!s}, of which there are no training images, want labels'
      ' of training images'
    )
  return np.searchsorted(classes, values).astype(np.int32)


def _array(where: str, values: Any, wanted: str) -> np.ndarray:
  try:
    return np.asarray(values)
  except Exception as error:  # Whatever the libraries that have made them raise.
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise DatasetError(f'{where}: got {reason[:200]}, want {wanted}') from error
