"""The user's own images, from an npz file or from a folder with a folder per class.

`dataset.name` is one of::

  npz:FILE     x_train, y_train; optional x_test, y_test, class_names
  folder:DIR   DIR/train/<class>/..., optional DIR/test/<class>/...
"""

import pathlib
import unicodedata

import numpy as np

from lamarck_jax.data import arrays, image_folder, npz
from lamarck_jax.data.files import printable
from lamarck_jax.data.source import (
  Examples,
  Source,
  check_image_size,
  check_shape,
  checked,
)
from lamarck_jax.errors import DatasetError
from lamarck_jax.runtime import paths

PREFIXES = ('npz:', 'folder:')


def load(name: str, image_size: int | None = None) -> Source:
  """Returns the user's images.

  Args:
    name: `npz:FILE` or `folder:DIR`.
    image_size: Pixels per side to resize to; None keeps the size of the images, which
      must then be the same for all.

  Raises:
    DatasetError: If the data cannot be read or is not suitable for training.
  """
  check_image_size(image_size)
  kind, _, location = name.partition(':')
  path = pathlib.Path(paths.local('dataset.name', location))
  read, want = {
    'npz': (_read_npz, 'an npz file'),
    'folder': (image_folder.read, 'a folder with train/<class>/ in it'),
  }[kind]
  try:
    splits, class_names = read(path, image_size)
  except OSError as error:
    raise DatasetError(
      f'{error.filename or path}: got {error.strerror or error}, want {want}'
    ) from error
  return checked(path, splits['train'], splits.get('test'), class_names)


# ------------------------------------------------------------------------------
# npz
# ------------------------------------------------------------------------------


def _read_npz(
  path: pathlib.Path, image_size: int | None
) -> tuple[dict[str, Examples], tuple[str, ...]]:
  """Returns the splits by name, and the class names."""
  with npz.opened(path) as file:
    # All headers are checked before any array is read.
    _check_npz_split(path, file, 'train', image_size)
    splits = ['train']
    if {'x_test', 'y_test'} & {*file.names}:
      _check_npz_split(path, file, 'test', image_size)
      splits.append('test')
    labels = {split: _npz_labels(path, file, split) for split in splits}
    num_classes = 1 + max(int(values.max()) for values in labels.values())
    class_names = _npz_class_names(path, file, num_classes)
    return {
      split: arrays.examples(file.read(f'x_{split}'), labels[split], image_size)
      for split in splits
    }, class_names


def _check_npz_split(
  path: pathlib.Path, file: npz.NpzFile, split: str, image_size: int | None
) -> None:
  """Raises DatasetError unless images and labels are declared as they should be."""
  x, y = f'x_{split}', f'y_{split}'
  for key in (x, y):
    if key not in file.names:
      raise DatasetError(
        f'{path}: got arrays {printable(", ".join(file.names))}, want {x} and {y}'
      )
  images, labels = file.declared(x), file.declared(y)
  if images.dtype != np.uint8 or len(images.shape) not in (3, 4):
    raise DatasetError(
      f'{path}: {x}: got {images}, want uint8 [num_examples, height, width] or'
      ' [num_examples, height, width, channels]'
    )
  # Keras's data sets have labels of shape [num_examples, 1].
  shapes = (images.shape[:1], (*images.shape[:1], 1))
  if labels.dtype.kind not in 'iu' or labels.shape not in shapes:
    raise DatasetError(f'{path}: {y}: got {labels}, want {images.shape[0]} integers')
  check_shape(f'{path}: {x}', arrays.resized_shape(images.shape, image_size))


def _npz_labels(path: pathlib.Path, file: npz.NpzFile, split: str) -> np.ndarray:
  """Returns the labels of a split, int32 [num_examples]."""
  labels = file.read(f'y_{split}').reshape(-1)
  # The upper bound keeps a stray label from asking for billions of classes.
  if not len(labels) or labels.min() < 0 or labels.max() >= len(labels):
    limits = f'{labels.min()} to {labels.max()}' if len(labels) else 'none'
    raise DatasetError(
      f'{path}: y_{split}: got labels {limits}, want labels from 0 and fewer classes'
      f' than the {len(labels)} examples'
    )
  return labels.astype(np.int32)


def _npz_class_names(
  path: pathlib.Path, file: npz.NpzFile, num_classes: int
) -> tuple[str, ...]:
  """Returns the names of the classes, or their numbers where none are given."""
  if 'class_names' not in file.names:
    return tuple(map(str, range(num_classes)))
  declared = file.declared('class_names')
  if declared.dtype.kind not in 'US' or declared.shape != (num_classes,):
    raise DatasetError(
      f'{path}: class_names: got {declared}, want {num_classes} strings, one for each'
      f' label from 0 to {num_classes - 1}'
    )
  names = file.read('class_names')
  if names.dtype.kind == 'S':
    names = np.char.decode(names, 'utf-8')
  class_names = tuple(unicodedata.normalize('NFC', str(name)) for name in names)
  for index, name in enumerate(class_names):
    if not name.strip() or name in class_names[:index]:
      raise DatasetError(
        f'{path}: class_names: got {name!r} at {index}, want strings that differ'
      )
  return class_names
