"""Image data sets as arrays: training, validation and test split.

`digits` comes with scikit-learn. `npz:FILE` and `folder:DIR` are a user's own images
(`data.own_images`). Every other name is a tfds data set, which is read without
TensorFlow. The data sets of the paper are downloaded and prepared on first use. The
decoded arrays are cached beside the prepared data, so that a second start reads 60,000
images in about a second.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import struct
from typing import Any
import uuid

from absl import logging
import numpy as np

from lamarck_jax.data import decoding, own_images, tfds_preparation
from lamarck_jax.errors import DatasetError

__all__ = [
  'IMAGE_SIZES',
  'Dataset',
  'DatasetError',
  'Split',
  'channel_statistics',
  'load',
]

# Pixels per side of images whose size is known before they are read.
IMAGE_SIZES = {'digits': 8, **tfds_preparation.PREPARABLE}
_MAX_VALIDATION = 5_000  # Examples, the paper's number.
_DIGITS_TEST = 360
_DIGITS_VALIDATION = 300
_DIGITS_SEED = 0
_READ_BLOCK = 1_000  # Examples.

_CACHE_DIR_NAME = 'lamarck_jax_cache'
_CACHED_ARRAYS = ('train_images', 'train_labels', 'test_images', 'test_labels')
_CACHE_FORMAT = 1  # To be raised when the cached arrays would differ.


@dataclasses.dataclass(frozen=True)
class Split:
  """Labelled images.

  Attributes:
    images: uint8 [num_examples, height, width, channels].
    labels: int32 [num_examples], from 0 to num_classes - 1.
  """

  images: np.ndarray
  labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Three disjoint splits of a data set.

  Attributes:
    name: The name that `load` was given.
    train: What networks are trained on.
    validation: What fitness is measured on.
    test: What is looked at once, at the end.
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
    """Name, shape of the images, sizes of the splits and classes, ready for JSON."""
    splits = {'train': self.train, 'validation': self.validation, 'test': self.test}
    return {
      'name': self.name,
      'image_shape': list(self.image_shape),
      **{f'num_{name}': len(split.labels) for name, split in splits.items()},
      'class_names': list(self.class_names),
    }


@dataclasses.dataclass(frozen=True)
class _Source:
  """A data set as it comes, before validation examples are set aside."""

  train: Split
  test: Split
  class_names: tuple[str, ...]


def load(
  name: str,
  *,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  num_train: int | None = None,
  num_validation: int | None = None,
  image_size: int | None = None,
) -> Dataset:
  """Returns a data set, downloading and preparing it if need be.

  The last `num_validation` examples of the source's training split are the
  validation split, the first `num_train` of the others the training split: a
  smaller `num_train` leaves the validation split as it is. The order is tfds's,
  which is shuffled. The test split is the source's own; where there is none, its
  `validation` split is taken.

  `digits` are scikit-learn's 1,797 images of 8x8 pixels, shuffled by a fixed seed:
  360 are for testing, and by default 300 for validation, which leaves 1,137.

  Args:
    name: `digits`, `npz:FILE` or `folder:DIR` (see `own_data`), or the tfds name of
      an image classification data set. `mnist`, `fashion_mnist`, `cifar10` and
      `cifar100` are prepared on first use, any other must have been prepared.
    data_dir: tfds's data folder; None: tfds's default, which is $TFDS_DATA_DIR or
      else ~/tensorflow_datasets.
    manual_dir: Folder with official archives, to be used instead of a download;
      None: tfds's default, `downloads/manual` in the data folder.
    num_train: Number of training examples; None: all that are left.
    num_validation: Number of validation examples; None: a tenth of the source's
      training split, at most 5,000 (300 of digits).
    image_size: Pixels per side to which images are resized, as squares and by area
      averaging; None: as they are.

  Returns:
    The data set.

  Raises:
    DatasetError: If the name is unknown, the data set cannot be had or is not for
      image classification, or the numbers do not fit it.
  """
  if image_size is not None and image_size < 1:
    raise DatasetError(
      f'dataset.image_size is {image_size}: wanted is at least 1 pixel'
    )
  if name == 'digits':
    source = _load_digits(image_size)
    default_validation = _DIGITS_VALIDATION
  else:
    if name.startswith(own_images.PREFIXES):
      own = own_images.load(name, image_size)
      source = _Source(Split(*own.train), Split(*own.test), own.class_names)
    else:
      source = _load_tfds(name, data_dir, manual_dir, image_size)
    default_validation = min(_MAX_VALIDATION, max(1, len(source.train.labels) // 10))
  if num_validation is None:
    num_validation = default_validation
  train, validation = _split_off_validation(
    name, source.train, num_train, num_validation
  )
  return Dataset(name, train, validation, source.test, source.class_names)


def channel_statistics(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and standard deviation of every channel.

  Args:
    pixels: uint8 [num_examples, height, width, channels].

  Returns:
    float32 [channels] each. A constant channel gets a deviation of one.
  """
  mean = pixels.mean(axis=(0, 1, 2), dtype=np.float64)
  mean_square = np.einsum(
    'nhwc,nhwc->c', pixels, pixels, dtype=np.float64, casting='safe'
  ) / (pixels.size / pixels.shape[-1])
  std = np.sqrt(np.maximum(mean_square - mean**2, 0))
  return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


def _split_off_validation(
  name: str, pool: Split, num_train: int | None, num_validation: int
) -> tuple[Split, Split]:
  """Returns the training and the validation split.

  Raises:
    DatasetError: If the source's training split is too small for them.
  """
  size = len(pool.labels)
  if not 1 <= num_validation < size:
    raise DatasetError(
      f'dataset.num_validation is {num_validation}: wanted is 1 to {size - 1}, as'
      f' {name} has {size} training examples'
    )
  left = size - num_validation
  if num_train is None:
    num_train = left
  if not 1 <= num_train <= left:
    raise DatasetError(
      f'dataset.num_train is {num_train}: wanted is 1 to {left}, as {name} has {size}'
      f' training examples, of which {num_validation} are for validation'
      ' (dataset.num_validation)'
    )
  return (
    Split(pool.images[:num_train], pool.labels[:num_train]),
    Split(pool.images[left:], pool.labels[left:]),
  )


def _load_digits(image_size: int | None) -> _Source:
  """Returns scikit-learn's digits, their 17 gray levels spread over uint8."""
  from sklearn import datasets as sklearn_datasets

  digits = sklearn_datasets.load_digits()
  order = np.random.RandomState(_DIGITS_SEED).permutation(len(digits.target))
  images = np.rint(digits.images[order] * (255 / 16)).astype(np.uint8)[..., np.newaxis]
  if image_size is not None:
    images = np.stack([decoding.resize(image, image_size) for image in images])
  labels = digits.target[order].astype(np.int32)
  return _Source(
    train=Split(images[:-_DIGITS_TEST], labels[:-_DIGITS_TEST]),
    test=Split(images[-_DIGITS_TEST:], labels[-_DIGITS_TEST:]),
    class_names=tuple(str(name) for name in digits.target_names),
  )


# ------------------------------------------------------------------------------
# tfds
# ------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
  """Keeps tfds's warnings, such as that a data set is not prepared, from view."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


def _load_tfds(
  name: str, data_dir: str | None, manual_dir: str | None, image_size: int | None
) -> _Source:
  """Returns a tfds data set, preparing it if need be; see `load`."""
  builder = _prepared_builder(name, data_dir, manual_dir)
  layout = _Layout.of(builder, image_size)
  cache_path, fingerprint = _cache_location(builder, image_size)
  arrays = _read_cache(cache_path, fingerprint)
  if arrays is None:
    arrays = {}
    for role, split in (('train', 'train'), ('test', layout.test_split)):
      examples = _read_split(builder, split, layout)
      arrays[f'{role}_images'] = examples.images
      arrays[f'{role}_labels'] = examples.labels
    _write_cache(cache_path, fingerprint, arrays)
  return _Source(
    train=Split(arrays['train_images'], arrays['train_labels']),
    test=Split(arrays['test_images'], arrays['test_labels']),
    class_names=layout.class_names,
  )


def _prepared_builder(name: str, data_dir: str | None, manual_dir: str | None) -> Any:
  """Returns the tfds builder of a data set that is prepared.

  Raises:
    DatasetError: If there is no such data set or it cannot be prepared.
  """
  builder, is_prepared = _find_builder(name, data_dir)
  if not is_prepared and builder.name in tfds_preparation.PREPARABLE:
    tfds_preparation.prepare(builder, manual_dir)
    builder, is_prepared = _find_builder(name, data_dir)
    if not is_prepared:
      raise DatasetError(
        f'{builder.data_dir} exists but is not a complete tfds data set: remove it'
      )
  if not is_prepared:
    raise DatasetError(
      f'{name} is not prepared in {builder.data_dir}: where TensorFlow is installed,'
      f' run `tfds build {name} --file_format=array_record --data_dir=DIR`, and give'
      ' DIR as dataset.data_dir'
    )
  return builder


def _find_builder(name: str, data_dir: str | None) -> tuple[Any, bool]:
  """Returns the tfds builder of a data set, and whether it is prepared.

  Raises:
    DatasetError: If there is no such data set.
  """
  import tensorflow_datasets as tfds

  known = ', '.join(('digits', *tfds_preparation.PREPARABLE, 'folder:DIR', 'npz:FILE'))
  try:
    path = None if data_dir is None else os.path.expanduser(data_dir)
    with _quiet_absl():
      builder = tfds.builder(name, data_dir=path)
      if not builder.is_prepared():
        return builder, False
      # It may be so only since the builder looked; another one has read it for certain.
      return tfds.builder(name, data_dir=path), True
  except (ValueError, AssertionError, ImportError, OSError) as error:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    raise DatasetError(
      f'dataset.name is {name!r}: wanted is one of {known}, or the tfds name of an'
      f' image classification data set that is prepared ({reason})'
    ) from error


@dataclasses.dataclass(frozen=True)
class _Layout:
  """Where a tfds data set has what is needed.

  Attributes:
    image_key: Name of the image feature.
    label_key: Name of the label feature.
    image_shape: Height and width in pixels, and channels, after resizing.
    image_size: Pixels per side to resize to, or None.
    class_names: Names of the classes, in label order.
    test_split: Name of the split to test on.
  """

  image_key: str
  label_key: str
  image_shape: tuple[int, int, int]
  image_size: int | None
  class_names: tuple[str, ...]
  test_split: str

  @classmethod
  def of(cls, builder: Any, image_size: int | None) -> '_Layout':
    """Returns the layout of a prepared data set.

    Raises:
      DatasetError: If it is not one of image classification, or lacks a split.
    """
    import tensorflow_datasets as tfds

    name, info = builder.info.full_name, builder.info
    keys = info.supervised_keys or ('image', 'label')
    image, label = (
      info.features[key] if isinstance(key, str) and key in info.features else None
      for key in keys[:2]
    )
    if (
      not isinstance(image, tfds.features.Image)
      or not isinstance(label, tfds.features.ClassLabel)
      or image.np_dtype != np.uint8
      or image.shape[-1] not in (1, 3)
    ):
      raise DatasetError(
        f'dataset.name is {builder.name!r}: wanted is a data set with one uint8 image'
        f' of 1 or 3 channels and one class label per example; {name} has'
        f' {" ".join(str(info.features).split())}'
      )
    test_split = next((s for s in ('test', 'validation') if s in info.splits), None)
    if 'train' not in info.splits or test_split is None:
      raise DatasetError(
        f'dataset.name is {builder.name!r}: wanted is a data set with a split `train`,'
        f' and `test` or `validation`; {name} has {", ".join(info.splits)}'
      )
    height, width, channels = image.shape
    if image_size is not None:
      height = width = image_size
    if height is None or width is None:
      raise DatasetError(
        f'dataset.image_size is None: wanted is a number of pixels, as the images of'
        f' {name} differ in size'
      )
    return cls(
      image_key=keys[0],
      label_key=keys[1],
      image_shape=(height, width, channels),
      image_size=image_size,
      class_names=tuple(label.names),
      test_split=test_split,
    )


def _read_split(builder: Any, split: str, layout: _Layout) -> Split:
  """Reads and decodes a whole split, in tfds's order.

  Raises:
    DatasetError: If the prepared data is damaged or of an unreadable format.
  """
  num_examples = builder.info.splits[split].num_examples
  images = np.empty((num_examples, *layout.image_shape), np.uint8)
  labels = np.empty(num_examples, np.int32)
  num_read = 0
  try:
    with _quiet_absl():
      for example in _read_examples(builder, split, layout.image_key):
        images[num_read] = _decode_image(example[layout.image_key], layout)
        labels[num_read] = example[layout.label_key]
        num_read += 1
  except DatasetError:
    raise
  except Exception as error:  # Readers and decoders raise all kinds on bad data.
    raise DatasetError(
      f'{builder.data_dir}: cannot read example {num_read} of {split}'
      f' ({type(error).__name__}: {" ".join(str(error).split())}); if the data is'
      ' damaged, remove that folder to have it prepared again'
    ) from error
  num_classes = len(layout.class_names)
  if num_read != num_examples:
    raise DatasetError(
      f'{builder.data_dir}: {split} has {num_read} examples, not {num_examples};'
      ' remove that folder to have it prepared again'
    )
  if num_examples and (labels.min() < 0 or labels.max() >= num_classes):
    raise DatasetError(
      f'{builder.data_dir}: {split} has labels from {labels.min()} to {labels.max()};'
      f' wanted are 0 to {num_classes - 1}'
    )
  return Split(images, labels)


def _read_examples(
  builder: Any, split: str, image_key: str
) -> Iterator[dict[str, Any]]:
  """Yields the examples of a split, their images still encoded.

  Raises:
    DatasetError: If TensorFlow would be needed to read the files.
  """
  import tensorflow_datasets as tfds

  # Decoded here, images are the same whether or not tfds finds OpenCV.
  decoders = {image_key: tfds.decode.SkipDecoding()}
  formats = {file_format.value for file_format in builder.info.available_file_formats()}
  if formats & {'array_record', 'parquet'}:
    source = builder.as_data_source(split, decoders=decoders)
    for start in range(0, len(source), _READ_BLOCK):
      yield from source.__getitems__(
        range(start, min(start + _READ_BLOCK, len(source)))
      )
  elif 'tfrecord' in formats:
    for shard in builder.info.splits[split].file_instructions:
      for record in _read_tfrecord(pathlib.Path(shard.filename)):
        yield builder.info.features.deserialize_example_np(record, decoders=decoders)
  else:
    raise DatasetError(
      f'{builder.data_dir} is in the format {" and ".join(sorted(formats))}: wanted is'
      ' array_record, parquet or tfrecord; prepare it so in another folder and give'
      ' that as dataset.data_dir'
    )


def _read_tfrecord(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the records of a TFRecord file, tfds's usual format.

  A record is its length (8 bytes), the length's checksum (4 bytes), the data, and
  the data's checksum (4 bytes). The checksums are not looked at: Python has no fast
  CRC-32C, and encoded images have checksums of their own.
  """
  with path.open('rb') as file:
    while header := file.read(12):
      (length,) = struct.unpack('<Q', header[:8])
      record = file.read(min(length, path.stat().st_size))
      if len(record) != length or len(file.read(4)) != 4:
        raise EOFError(f'{path.name} ends inside a record')
      yield record


def _decode_image(encoded: bytes, layout: _Layout) -> np.ndarray:
  """Returns the image, uint8 [height, width, channels] as the layout says."""
  pixels = decoding.decode(io.BytesIO(encoded), layout.image_shape[-1])
  if layout.image_size is not None:
    return decoding.resize(pixels, layout.image_size)
  if pixels.shape != layout.image_shape:
    raise ValueError(f'image of shape {pixels.shape}, not {layout.image_shape}')
  return pixels


# ------------------------------------------------------------------------------
# The cache of decoded arrays
# ------------------------------------------------------------------------------


def _cache_location(
  builder: Any, image_size: int | None
) -> tuple[pathlib.Path, np.ndarray]:
  """Returns the path of the cache, and what it must begin with to be valid.

  The cache lies inside the folder of the prepared version and so goes with it; the
  fingerprint is of the files that say what was prepared.
  """
  digest = hashlib.sha256(f'{_CACHE_FORMAT} {image_size}'.encode())
  for filename in ('dataset_info.json', 'features.json'):
    digest.update((builder.data_path / filename).read_bytes())
  size = 'native' if image_size is None else f'{image_size}px'
  path = pathlib.Path(builder.data_dir) / _CACHE_DIR_NAME / f'{size}.npz'
  return path, np.frombuffer(digest.digest(), np.uint8)


def _read_cache(
  path: pathlib.Path, fingerprint: np.ndarray
) -> dict[str, np.ndarray] | None:
  """Returns the cached arrays, or None if there is no sound and fitting cache."""
  try:
    # Reading an array to its end also checks its CRC-32.
    with np.load(path, allow_pickle=False) as cache:
      if np.array_equal(cache['fingerprint'], fingerprint):
        return {key: cache[key] for key in _CACHED_ARRAYS}
    logging.info('%s is of other data: making it anew.', path)
  except FileNotFoundError:
    pass
  except Exception as error:  # However it is damaged, the data itself is there.
    logging.info('%s cannot be read: making it anew (%s).', path, error)
  return None


def _write_cache(
  path: pathlib.Path, fingerprint: np.ndarray, arrays: dict[str, np.ndarray]
) -> None:
  """Writes the cache; a folder that cannot be written to is no error."""
  members: dict[str, Any] = {'fingerprint': fingerprint, **arrays}
  temporary = path.with_name(f'{path.name}.{uuid.uuid4().hex}.tmp')
  try:
    path.parent.mkdir(exist_ok=True)
    try:
      with temporary.open('xb') as file:
        np.savez(file, **members)
        file.flush()
        os.fsync(file.fileno())
      temporary.replace(path)
    finally:
      temporary.unlink(missing_ok=True)
  except OSError as error:
    logging.info('Decoded images are not cached: %s', error)
