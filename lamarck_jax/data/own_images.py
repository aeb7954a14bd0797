"""A user's own images: an npz file, or a folder with one folder per class.

As `dataset.name` has them::

  npz:FILE     x_train, y_train; optional x_test, y_test, class_names
  folder:DIR   DIR/train/<class>/*.png|jpg|..., optional DIR/test/<class>/...

Without a test split a sixth of the images is set aside for it, in every class.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import os
import pathlib
from typing import NamedTuple

from absl import logging
import numpy as np

from lamarck_jax.data import decoding
from lamarck_jax.errors import DatasetError

MIN_SIZE, MAX_SIZE = 8, 256  # Pixels.
PREFIXES = ('npz:', 'folder:')

_TEST_SHARE = 6  # One in so many.
_SEED = 0
_WANTED = {'npz': 'an npz file', 'folder': 'a folder with train/<class>/ in it'}
_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.gif')


class OwnData(NamedTuple):
  """Images and labels as they come, in an order that keeps classes in proportion.

  Attributes:
    train: uint8 [num_examples, height, width, channels], int32 [num_examples].
    test: Likewise.
    class_names: Names of the classes, in label order.
  """

  train: tuple[np.ndarray, np.ndarray]
  test: tuple[np.ndarray, np.ndarray]
  class_names: tuple[str, ...]


def load(name: str, image_size: int | None = None) -> OwnData:
  """Reads a user's own data set.

  Args:
    name: `npz:FILE` or `folder:DIR`.
    image_size: Pixels per side to which images are resized; None: as they are.

  Raises:
    DatasetError: If it cannot be read, or is not what is wanted.
  """
  if image_size is not None and not MIN_SIZE <= image_size <= MAX_SIZE:
    raise DatasetError(
      f'dataset.image_size is {image_size}: wanted is {MIN_SIZE} to {MAX_SIZE} pixels'
    )
  kind, _, location = name.partition(':')
  path = pathlib.Path(os.path.expanduser(location))
  read = {'npz': _read_npz, 'folder': _read_folder}[kind]
  try:
    splits, class_names = read(path, image_size)
  except OSError as error:
    raise DatasetError(
      f'{error.filename or path}: {error.strerror or error}: wanted is {_WANTED[kind]}'
    ) from error
  for split, (images, labels) in splits.items():
    _check(path, split, images, labels, class_names)
  train = _in_proportion(*splits['train'])
  if 'test' in splits:
    test = _in_proportion(*splits['test'])
    if train[0].shape[1:] != test[0].shape[1:]:
      raise DatasetError(
        f'{path}: images for training are {_shape(train[0])}, those for testing'
        f' {_shape(test[0])}: wanted is one shape'
      )
  else:
    count = len(train[1]) - len(train[1]) // _TEST_SHARE
    train, test = (
      (train[0][:count], train[1][:count]),
      (train[0][count:], train[1][count:]),
    )
    if not len(test[1]):
      raise DatasetError(
        f'{path}: {len(train[1])} images: wanted are at least {_TEST_SHARE}, or a test'
        ' split'
      )
  return OwnData(train, test, class_names)


def _in_proportion(
  images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the examples shuffled so that every part of them has all classes.

  The examples of a class, in random order, are spread evenly from 0 to 1; all are
  sorted by where that puts them.
  """
  rng = np.random.RandomState(_SEED)
  position = np.empty(len(labels))
  for label in np.unique(labels):
    (members,) = np.nonzero(labels == label)
    spread = (np.arange(len(members)) + rng.random_sample(len(members))) / len(members)
    position[rng.permutation(members)] = spread
  order = np.argsort(position, kind='stable')
  return images[order], labels[order]


def _check(
  path: pathlib.Path,
  split: str,
  images: np.ndarray,
  labels: np.ndarray,
  class_names: Sequence[str],
) -> None:
  """Raises DatasetError if a split is not what can be trained on."""
  height, width, channels = images.shape[1:]
  if not all(
    MIN_SIZE <= size <= MAX_SIZE for size in (height, width)
  ) or channels not in (1, 3):
    raise DatasetError(
      f'{path}: {split} images are {_shape(images)}: wanted are {MIN_SIZE} to'
      f' {MAX_SIZE} pixels and 1 or 3 channels; dataset.image_size resizes them'
    )
  if len(class_names) < 2:
    raise DatasetError(f'{path}: {len(class_names)} class: wanted are 2 or more')
  if split == 'train':
    counts = np.bincount(labels, minlength=len(class_names))
    if not counts.all():
      empty = class_names[int(np.argmin(counts))]
      raise DatasetError(f'{path}: class {empty!r} has no images for training')


def _shape(images: np.ndarray) -> str:
  return 'x'.join(map(str, images.shape[1:]))


# ------------------------------------------------------------------------------
# npz
# ------------------------------------------------------------------------------


def _read_npz(
  path: pathlib.Path, image_size: int | None
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], tuple[str, ...]]:
  try:
    with np.load(path, allow_pickle=False) as file:
      if not isinstance(file, np.lib.npyio.NpzFile):
        raise DatasetError(f'{path}: one array: wanted is an npz file of several')
      arrays = {key: file[key] for key in file.files}
  except (DatasetError, OSError):
    raise
  except Exception as error:  # NumPy's, zipfile's, zlib's: it depends on the damage.
    raise DatasetError(
      f'{path}: cannot be read as npz: {" ".join(str(error).split())}'
    ) from error
  splits = {}
  for split in ('train', 'test'):
    if split == 'test' and not {'x_test', 'y_test'} & arrays.keys():
      continue
    splits[split] = _npz_split(path, arrays, split, image_size)
  num_classes = 1 + max(int(labels.max()) for _, labels in splits.values())
  names = arrays.get('class_names')
  if names is None:
    names = np.arange(num_classes)
  if names.ndim != 1 or len(names) < num_classes:
    raise DatasetError(
      f'{path}: class_names has shape {names.shape}: wanted are {num_classes} names'
    )
  return splits, tuple(map(str, names))


def _npz_split(
  path: pathlib.Path,
  arrays: Mapping[str, np.ndarray],
  split: str,
  image_size: int | None,
) -> tuple[np.ndarray, np.ndarray]:
  for key in (f'x_{split}', f'y_{split}'):
    if key not in arrays:
      raise DatasetError(f'{path}: no array {key}; it has {", ".join(arrays)}')
  images, labels = arrays[f'x_{split}'], arrays[f'y_{split}']
  if images.dtype != np.uint8 or images.ndim not in (3, 4):
    raise DatasetError(
      f'{path}: x_{split} is {images.dtype} {list(images.shape)}: wanted is uint8'
      ' [num_examples, height, width(, channels)]'
    )
  if images.ndim == 3:
    images = images[..., np.newaxis]
  if labels.ndim == 2 and labels.shape[1] == 1:  # As Keras gives them.
    labels = labels[:, 0]
  if labels.dtype.kind not in 'iu' or labels.shape != images.shape[:1]:
    raise DatasetError(
      f'{path}: y_{split} is {labels.dtype} {list(labels.shape)}: wanted are'
      f' {len(images)} integers'
    )
  if not len(labels) or labels.min() < 0 or labels.max() >= len(labels):
    raise DatasetError(
      f'{path}: y_{split} wants labels from 0, fewer classes than its'
      f' {len(labels)} examples'
    )
  if image_size is not None and images.shape[-1] in (1, 3):
    resized = [decoding.resize(image, image_size) for image in images]
    images = np.stack(resized)
  return images, labels.astype(np.int32)


# ------------------------------------------------------------------------------
# Folders
# ------------------------------------------------------------------------------


def _read_folder(
  path: pathlib.Path, image_size: int | None
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], tuple[str, ...]]:
  if not (path / 'train').is_dir():
    hint = f'; {path.parent} has one' if (path.parent / 'train').is_dir() else ''
    raise DatasetError(f'{path}: no folder train in it: wanted is train/<class>/{hint}')
  class_names = _class_names(path / 'train')
  files = {'train': _files(path / 'train', class_names)}
  if (path / 'test').exists():
    names = _class_names(path / 'test')
    unknown = sorted(set(names) - set(class_names))
    if unknown:
      raise DatasetError(f'{path}: class {unknown[0]!r} has no folder in train')
    files['test'] = _files(path / 'test', class_names)
    if not files['test']:
      raise DatasetError(f'{path / "test"}: no images')
    tested = {class_names[label] for _, label in files['test']}
    if missing := sorted(set(class_names) - tested):
      logging.warning('%s: no images of %s', path / 'test', ', '.join(missing))
  channels = _num_channels([file for split in files.values() for file, _ in split])
  splits = {}
  for split, members in files.items():
    images = [_decode(file, channels, image_size) for file, _ in members]
    for image, (file, _) in zip(images, members):
      if image.shape != images[0].shape:
        raise DatasetError(
          f'{file}: {image.shape[1]}x{image.shape[0]} pixels, {members[0][0]} has'
          f' {images[0].shape[1]}x{images[0].shape[0]}: wanted is one size, or'
          ' dataset.image_size to resize to'
        )
    labels = np.array([label for _, label in members], np.int32)
    splits[split] = np.stack(images), labels
  return splits, class_names


def _class_names(path: pathlib.Path) -> tuple[str, ...]:
  names = sorted(
    entry.name
    for entry in path.iterdir()
    if entry.is_dir() and not entry.name.startswith('.')
  )
  if not names:
    raise DatasetError(f'{path}: no folders: wanted is one per class')
  return tuple(names)


def _files(
  path: pathlib.Path, class_names: Sequence[str]
) -> list[tuple[pathlib.Path, int]]:
  files = []
  for label, name in enumerate(class_names):
    folder = path / name
    members = sorted(folder.iterdir()) if folder.is_dir() else []
    members = [file for file in members if file.suffix.lower() in _SUFFIXES]
    if not members and path.name == 'train':
      raise DatasetError(
        f'{folder}: no images: wanted are files ending in {", ".join(_SUFFIXES)}'
      )
    files += [(file, label) for file in members]
  return files


def _num_channels(files: Sequence[pathlib.Path]) -> int:
  """Returns the channels for all images: 1 only if all are gray."""
  from PIL import Image

  for file in files:
    with _decoding(file), Image.open(file, formats=decoding.FORMATS) as image:
      if image.mode not in ('1', 'L'):
        return 3
  return 1


def _decode(file: pathlib.Path, channels: int, image_size: int | None) -> np.ndarray:
  with _decoding(file):
    image = decoding.decode(file, channels)
  return image if image_size is None else decoding.resize(image, image_size)


@contextlib.contextmanager
def _decoding(file: pathlib.Path) -> Iterator[None]:
  """Names the file where Pillow cannot read it."""
  try:
    yield
  except Exception as error:  # Pillow's readers raise all kinds on bad files.
    reason = ' '.join(str(error).split())
    raise DatasetError(f'{file}: cannot be decoded as an image: {reason}') from error
