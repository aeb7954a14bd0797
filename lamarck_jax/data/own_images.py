"""The user's own images, from an npz file or from a folder with a folder per class.

`dataset.name` is one of::

  npz:FILE     x_train, y_train; optional x_test, y_test, class_names
  folder:DIR   DIR/train/<class>/*.png|jpg|..., optional DIR/test/<class>/...

Without a test split, a sixth of the images of every class is set aside as one.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import pathlib

from absl import logging
import numpy as np

from lamarck_jax.data import decoding
from lamarck_jax.data.source import Source, Split
from lamarck_jax.errors import DatasetError
from lamarck_jax.runtime import paths

MIN_SIZE, MAX_SIZE = 8, 256  # Pixels per side.
PREFIXES = ('npz:', 'folder:')

_TEST_FRACTION = 6  # One image in six.
_SEED = 0
_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.gif')


def load(name: str, image_size: int | None = None) -> Source:
  """Returns the user's images, shuffled so that every part has all classes.

  Args:
    name: `npz:FILE` or `folder:DIR`.
    image_size: Pixels per side to resize to; None keeps the size of the images, which
      must then be the same for all.

  Raises:
    DatasetError: If the data cannot be read or is not suitable for training.
  """
  if image_size is not None and not MIN_SIZE <= image_size <= MAX_SIZE:
    raise DatasetError(
      f'dataset.image_size: got {image_size}, want {MIN_SIZE} to {MAX_SIZE} pixels'
    )
  kind, _, location = name.partition(':')
  path = pathlib.Path(paths.local('dataset.name', location))
  read, want = {
    'npz': (_read_npz, 'an npz file'),
    'folder': (_read_folder, 'a folder with train/<class>/ in it'),
  }[kind]
  try:
    splits, class_names = read(path, image_size)
  except OSError as error:
    raise DatasetError(
      f'{error.filename or path}: got {error.strerror or error}, want {want}'
    ) from error
  for split, examples in splits.items():
    _check(path, split, examples, class_names)
  train = _shuffle(splits['train'])
  if 'test' not in splits:
    train, test = _split_off_test(path, train)
  else:
    test = _shuffle(splits['test'])
    if train.images.shape[1:] != test.images.shape[1:]:
      raise DatasetError(
        f'{path}: got test images of {_shape(test)}, want the {_shape(train)} of the'
        ' training images'
      )
  return Source(train, test, class_names)


def _shuffle(split: Split) -> Split:
  """Shuffles the examples such that any slice has the classes in proportion.

  The examples of a class, in random order, are spread evenly over 0 to 1; sorting all
  examples by these positions interleaves the classes.
  """
  rng = np.random.RandomState(_SEED)
  position = np.empty(len(split.labels))
  for label in np.unique(split.labels):
    (members,) = np.nonzero(split.labels == label)
    spread = (np.arange(len(members)) + rng.random_sample(len(members))) / len(members)
    position[rng.permutation(members)] = spread
  order = np.argsort(position, kind='stable')
  return Split(split.images[order], split.labels[order])


def _split_off_test(path: pathlib.Path, pool: Split) -> tuple[Split, Split]:
  """Returns a training and a test split of shuffled examples."""
  size = len(pool.labels)
  if size < _TEST_FRACTION:
    raise DatasetError(
      f'{path}: got {size} images, want at least {_TEST_FRACTION}, or a test split'
    )
  count = size - size // _TEST_FRACTION
  return (
    Split(pool.images[:count], pool.labels[:count]),
    Split(pool.images[count:], pool.labels[count:]),
  )


def _check(
  path: pathlib.Path, split: str, examples: Split, class_names: Sequence[str]
) -> None:
  """Raises DatasetError unless networks can be trained on the split."""
  height, width, channels = examples.images.shape[1:]
  if not all(
    MIN_SIZE <= size <= MAX_SIZE for size in (height, width)
  ) or channels not in (1, 3):
    raise DatasetError(
      f'{path}: got {split} images of {_shape(examples)}, want {MIN_SIZE} to'
      f' {MAX_SIZE} pixels (dataset.image_size resizes them) and 1 or 3 channels'
    )
  if len(class_names) < 2:
    raise DatasetError(f'{path}: got {len(class_names)} class, want at least 2')
  if split == 'train':
    counts = np.bincount(examples.labels, minlength=len(class_names))
    if not counts.all():
      empty = class_names[int(np.argmin(counts))]
      raise DatasetError(
        f'{path}: class {empty!r}: got no training images, want at least 1'
      )


def _shape(split: Split) -> str:
  return 'x'.join(map(str, split.images.shape[1:]))


# ------------------------------------------------------------------------------
# npz
# ------------------------------------------------------------------------------


def _read_npz(
  path: pathlib.Path, image_size: int | None
) -> tuple[dict[str, Split], tuple[str, ...]]:
  """Returns the splits by name, and the class names."""
  try:
    with np.load(path, allow_pickle=False) as file:
      if not isinstance(file, np.lib.npyio.NpzFile):
        raise DatasetError(f'{path}: got a single array, want an npz file')
      arrays = {key: file[key] for key in file.files}
  except (DatasetError, OSError):
    raise
  except Exception as error:  # NumPy, zipfile and zlib raise errors of many types.
    raise DatasetError(
      f'{path}: got {" ".join(str(error).split())}, want an npz file'
    ) from error
  splits = {'train': _npz_split(path, arrays, 'train', image_size)}
  if {'x_test', 'y_test'} & arrays.keys():
    splits['test'] = _npz_split(path, arrays, 'test', image_size)
  num_classes = 1 + max(int(split.labels.max()) for split in splits.values())
  names = arrays.get('class_names')
  if names is None:
    names = np.arange(num_classes)
  if names.ndim != 1 or len(names) < num_classes:
    raise DatasetError(
      f'{path}: class_names: got shape {list(names.shape)}, want {num_classes} names'
    )
  return splits, tuple(map(str, names))


def _npz_split(
  path: pathlib.Path,
  arrays: Mapping[str, np.ndarray],
  split: str,
  image_size: int | None,
) -> Split:
  x, y = f'x_{split}', f'y_{split}'
  for key in (x, y):
    if key not in arrays:
      raise DatasetError(f'{path}: got arrays {", ".join(arrays)}, want {x} and {y}')
  images, labels = arrays[x], arrays[y]
  if images.dtype != np.uint8 or images.ndim not in (3, 4):
    raise DatasetError(
      f'{path}: {x}: got {images.dtype} {list(images.shape)}, want uint8'
      ' [num_examples, height, width] or [num_examples, height, width, channels]'
    )
  if images.ndim == 3:
    images = images[..., np.newaxis]
  if labels.ndim == 2 and labels.shape[1] == 1:  # Keras's data sets have this shape.
    labels = labels[:, 0]
  if labels.dtype.kind not in 'iu' or labels.shape != images.shape[:1]:
    raise DatasetError(
      f'{path}: {y}: got {labels.dtype} {list(labels.shape)}, want'
      f' {len(images)} integers'
    )
  # The upper bound keeps a stray label from asking for billions of classes.
  if not len(labels) or labels.min() < 0 or labels.max() >= len(labels):
    limits = f'{labels.min()} to {labels.max()}' if len(labels) else 'none'
    raise DatasetError(
      f'{path}: {y}: got labels {limits}, want labels from 0 and fewer classes than'
      f' the {len(labels)} examples'
    )
  if image_size is not None and images.shape[-1] in (1, 3):
    images = np.stack([decoding.resize(image, image_size) for image in images])
  return Split(images, labels.astype(np.int32))


# ------------------------------------------------------------------------------
# Folders
# ------------------------------------------------------------------------------


def _read_folder(
  path: pathlib.Path, image_size: int | None
) -> tuple[dict[str, Split], tuple[str, ...]]:
  """Returns the splits by name, and the class names, which are those of the folders."""
  if not (path / 'train').is_dir():
    hint = f'; {path.parent} has one' if (path.parent / 'train').is_dir() else ''
    raise DatasetError(f'{path}: got no folder train in it, want train/<class>/{hint}')
  class_names = _class_names(path / 'train')
  files = {'train': _files(path / 'train', class_names)}
  if (path / 'test').exists():
    files['test'] = _test_files(path / 'test', class_names)
  channels = _num_channels([file for split in files.values() for file, _ in split])
  splits = {}
  for split, members in files.items():
    images = [_decode(file, channels, image_size) for file, _ in members]
    for image, (file, _) in zip(images, members):
      if image.shape != images[0].shape:
        raise DatasetError(
          f'{file}: got {image.shape[1]}x{image.shape[0]} pixels, want'
          f' {images[0].shape[1]}x{images[0].shape[0]} as {members[0][0]}, or'
          ' dataset.image_size to resize to'
        )
    labels = np.array([label for _, label in members], np.int32)
    splits[split] = Split(np.stack(images), labels)
  return splits, class_names


def _class_names(path: pathlib.Path) -> tuple[str, ...]:
  names = sorted(
    entry.name
    for entry in path.iterdir()
    if entry.is_dir() and not entry.name.startswith('.')
  )
  if not names:
    raise DatasetError(f'{path}: got no folders, want one per class')
  return tuple(names)


def _files(
  path: pathlib.Path, class_names: Sequence[str]
) -> list[tuple[pathlib.Path, int]]:
  """Returns the image files of a split, with their labels."""
  files = []
  for label, name in enumerate(class_names):
    folder = path / name
    members = sorted(folder.iterdir()) if folder.is_dir() else []
    members = [file for file in members if file.suffix.lower() in _SUFFIXES]
    if not members and path.name == 'train':
      raise DatasetError(
        f'{folder}: got no images, want files ending in {", ".join(_SUFFIXES)}'
      )
    files += [(file, label) for file in members]
  return files


def _test_files(
  path: pathlib.Path, class_names: Sequence[str]
) -> list[tuple[pathlib.Path, int]]:
  """Returns the files of the test split, which may lack some of the classes."""
  unknown = sorted(set(_class_names(path)) - set(class_names))
  if unknown:
    raise DatasetError(
      f'{path}: got class {unknown[0]!r}, want those in train: {", ".join(class_names)}'
    )
  files = _files(path, class_names)
  if not files:
    raise DatasetError(f'{path}: got no images, want at least 1')
  present = {class_names[label] for _, label in files}
  if missing := sorted(set(class_names) - present):
    logging.warning('%s: no images of %s', path, ', '.join(missing))
  return files


def _num_channels(files: Sequence[pathlib.Path]) -> int:
  """Returns the number of channels for all images: 1 only if all are gray."""
  from PIL import Image

  for file in files:
    with _name_on_error(file), Image.open(file, formats=decoding.FORMATS) as image:
      if image.mode not in ('1', 'L'):
        return 3
  return 1


def _decode(file: pathlib.Path, channels: int, image_size: int | None) -> np.ndarray:
  with _name_on_error(file):
    image = decoding.decode(file, channels)
  return image if image_size is None else decoding.resize(image, image_size)


@contextlib.contextmanager
def _name_on_error(file: pathlib.Path) -> Iterator[None]:
  """Raises a DatasetError that names the file where Pillow cannot read it."""
  try:
    yield
  except Exception as error:  # Pillow's readers raise errors of many types.
    reason = ' '.join(str(error).split())
    raise DatasetError(f'{file}: got {reason}, want an image') from error
