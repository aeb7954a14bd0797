"""Reads prepared TFDS data sets without TensorFlow."""

from collections.abc import Iterator
import contextlib
import dataclasses
import io
import os
import pathlib
import re
import struct
from typing import Any

from absl import logging
import numpy as np

from lamarck_jax.data import archives, array_cache, decoding, files, tfds_preparation
from lamarck_jax.data.source import Examples, Source, digest
from lamarck_jax.errors import DatasetError
from lamarck_jax.runtime import paths

_READ_BLOCK = 1_000  # Examples.


def load(
  name: str,
  image_size: int | None = None,
  *,
  data_dir: str | None = None,
  manual_dir: str | None = None,
) -> Source:
  """Returns a TFDS data set in TFDS's order.

  Args:
    name: TFDS name of an image classification data set. Those in `archives.FORMATS`
      are prepared on first use.
    image_size: Pixels per side to resize to; None keeps the size of the images, which
      must then be the same for all.
    data_dir: TFDS's data folder; None: TFDS's default.
    manual_dir: Folder with official archives; see `tfds_preparation.prepare`.

  Raises:
    DatasetError: If the data set is unknown, cannot be prepared or read, or is not one
      of image classification.
  """
  builder = _prepared_builder(name, data_dir, manual_dir)
  layout = _layout(builder, image_size)
  prepared_dir = pathlib.Path(builder.data_dir)
  splits = array_cache.read(prepared_dir, image_size)
  if splits is None:
    splits = {
      'train': _read_split(builder, 'train', layout),
      'test': _read_split(builder, layout.test_split, layout),
    }
    array_cache.write(prepared_dir, image_size, splits)
  return Source(
    train=splits['train'],
    test=splits['test'],
    class_names=layout.class_names,
    # TFDS has shuffled them; others may be sorted by class.
    is_published=builder.name in archives.FORMATS,
  )


# ------------------------------------------------------------------------------
# Finding the data set
# ------------------------------------------------------------------------------


def _prepared_builder(name: str, data_dir: str | None, manual_dir: str | None) -> Any:
  """Returns the TFDS builder of a data set, preparing it if possible and necessary."""
  builder, is_prepared = _find_builder(name, data_dir)
  if not is_prepared and builder.name in archives.FORMATS:
    tfds_preparation.prepare(builder, manual_dir)
    builder, is_prepared = _find_builder(name, data_dir)
    if not is_prepared:
      raise DatasetError(
        f'dataset.data_dir: got {builder.data_dir}, which exists but is incomplete,'
        ' want a complete TFDS data set; remove that folder to have it prepared again'
      )
  if not is_prepared:
    raise DatasetError(
      f'dataset.name: got {name!r}, which is not prepared in {builder.data_dir}, want a'
      ' prepared data set: where TensorFlow is installed, run'
      f' `tfds build {name} --file_format=array_record --data_dir=DIR`, and give DIR'
      ' as dataset.data_dir'
    )
  return builder


def _find_builder(name: str, data_dir: str | None) -> tuple[Any, bool]:
  """Returns the TFDS builder of a data set, and whether it is prepared."""
  import tensorflow_datasets as tfds

  path = None if data_dir is None else paths.local('dataset.data_dir', data_dir)
  if path is None and os.environ.get('TFDS_DATA_DIR'):
    path = paths.local('TFDS_DATA_DIR', os.environ['TFDS_DATA_DIR'])
  _check_files(name, path or tfds.core.constants.DATA_DIR)
  try:
    with _quiet_absl():
      builder = tfds.builder(name, data_dir=path)
      if not builder.is_prepared():
        return builder, False
      # A builder reads the metadata when it is made. Another process may have prepared
      # the data since then, so only a second builder has surely read it.
      return tfds.builder(name, data_dir=path), True
  except (ValueError, AssertionError, ImportError, OSError) as error:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    known = ', '.join(('digits', *archives.FORMATS, 'folder:DIR', 'npz:FILE'))
    raise DatasetError(
      f'dataset.name: got {name!r}, want one of {known}, or the TFDS name of a prepared'
      f' image classification data set ({reason})'
    ) from error


def _check_files(name: str, data_dir: str) -> None:
  """Raises DatasetError if a file of a prepared data set is a pipe or a device.

  TFDS opens files by name, and would wait for ever.
  """
  base_name = re.match(r'\w+', name)
  if base_name is None:
    return
  folder = pathlib.Path(data_dir).expanduser() / base_name[0]
  try:
    for path in files.walk(folder):
      files.check_regular(path)
  except (FileNotFoundError, NotADirectoryError):
    pass  # Not prepared, or a link without its target; TFDS says more.
  except OSError as error:
    raise DatasetError(
      f'{error.filename}: got {error.strerror}, want a regular file'
    ) from error


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
  """Hides TFDS's warnings, such as that a data set is not prepared."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


# ------------------------------------------------------------------------------
# Layout
# ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Layout:
  """Where a TFDS data set keeps images and labels.

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


def _layout(builder: Any, image_size: int | None) -> _Layout:
  """Returns the layout of a prepared data set.

  Raises:
    DatasetError: If it is not one of image classification, or lacks a split.
  """
  import tensorflow_datasets as tfds

  info = builder.info
  image_key, label_key = (info.supervised_keys or ('image', 'label'))[:2]
  image, label = (
    info.features[key] if isinstance(key, str) and key in info.features else None
    for key in (image_key, label_key)
  )
  if (
    not isinstance(image, tfds.features.Image)
    or not isinstance(label, tfds.features.ClassLabel)
    or image.np_dtype not in (np.uint8, np.uint16)
    or image.shape[-1] not in (1, 3, 4)
  ):
    raise DatasetError(
      f'dataset.name: got {builder.name!r} with {" ".join(str(info.features).split())},'
      ' want a data set with one image of 8 or 16 bits and 1, 3 or 4 channels and one'
      ' class label per example'
    )
  test_split = next((s for s in ('test', 'validation') if s in info.splits), None)
  if 'train' not in info.splits or test_split is None:
    raise DatasetError(
      f'dataset.name: got {builder.name!r} with the splits {", ".join(info.splits)},'
      ' want a split `train`, and `test` or `validation`'
    )
  height, width, channels = image.shape
  channels = min(channels, 3)  # The fourth is transparency.
  if image_size is not None:
    height = width = image_size
  if height is None or width is None:
    raise DatasetError(
      'dataset.image_size: got None, want a number of pixels, as the images of'
      f' {info.full_name} differ in size'
    )
  return _Layout(
    image_key=image_key,
    label_key=label_key,
    image_shape=(height, width, channels),
    image_size=image_size,
    class_names=tuple(label.names),
    test_split=test_split,
  )


# ------------------------------------------------------------------------------
# Reading
# ------------------------------------------------------------------------------


def _read_split(builder: Any, split: str, layout: _Layout) -> Examples:
  """Reads and decodes a whole split.

  Raises:
    DatasetError: If the prepared data is damaged or of an unreadable format.
  """
  num_examples = builder.info.splits[split].num_examples
  try:  # The number is the metadata's; memory is taken as examples are read.
    images = np.empty((num_examples, *layout.image_shape), np.uint8)
    labels = np.empty(num_examples, np.int32)
    digests = np.empty(num_examples, np.uint64)
  except (MemoryError, ValueError) as error:
    raise DatasetError(
      f'{builder.data_dir}: {split}: got {num_examples} examples of'
      f' {layout.image_shape}, want what fits into memory'
    ) from error
  num_read = 0
  try:
    with _quiet_absl():
      for example in _read_examples(builder, split, layout.image_key):
        encoded = io.BytesIO(example[layout.image_key])
        image = decoding.decode(encoded, layout.image_shape[-1])
        digests[num_read] = digest(image)
        images[num_read] = _fit(image, layout)
        labels[num_read] = example[layout.label_key]
        num_read += 1
  except DatasetError:
    raise
  except Exception as error:  # Readers and decoders raise errors of many types.
    reason = f'{type(error).__name__}: {" ".join(str(error).split())}'
    raise DatasetError(
      f'{builder.data_dir}: {split}: got {reason} at example {num_read}, want'
      f' {num_examples} examples; if the data is damaged, remove that folder to have'
      ' it prepared again'
    ) from error
  if num_read != num_examples:
    raise DatasetError(
      f'{builder.data_dir}: {split}: got {num_read} examples, want {num_examples};'
      ' remove that folder to have it prepared again'
    )
  num_classes = len(layout.class_names)
  if num_examples and (labels.min() < 0 or labels.max() >= num_classes):
    raise DatasetError(
      f'{builder.data_dir}: {split}: got labels {labels.min()} to {labels.max()}, want'
      f' 0 to {num_classes - 1}'
    )
  return Examples(images, labels, digests)


def _read_examples(
  builder: Any, split: str, image_key: str
) -> Iterator[dict[str, Any]]:
  """Yields the examples of a split, with their images still encoded.

  Raises:
    DatasetError: If TensorFlow would be needed to read the files.
  """
  import tensorflow_datasets as tfds

  # TFDS decodes with OpenCV or Pillow, whichever is installed. Decoded here, images
  # are the same everywhere.
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
      f'{builder.data_dir}: got the format {" and ".join(sorted(formats))}, want'
      ' array_record, parquet or tfrecord: prepare it so in another folder and give'
      ' that as dataset.data_dir'
    )


def _read_tfrecord(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the records of a TFRecord file, TFDS's default format.

  A record is its length (8 bytes), the length's checksum (4 bytes), the data, and
  the data's checksum (4 bytes). The checksums are ignored: Python has no fast CRC-32C,
  and encoded images have checksums of their own.
  """
  with files.open_regular(path) as file:
    size = os.fstat(file.fileno()).st_size
    while header := file.read(12):
      (length,) = struct.unpack('<Q', header[:8])
      # A damaged length must not allocate more than the file has.
      record = file.read(min(length, size))
      if len(record) != length or len(file.read(4)) != 4:
        raise EOFError(f'{path.name} ends inside a record')
      yield record


def _fit(image: np.ndarray, layout: _Layout) -> np.ndarray:
  """Returns the image in the layout's shape."""
  if layout.image_size is not None:
    return decoding.resize(image, layout.image_size)
  if image.shape != layout.image_shape:
    raise ValueError(f'image of shape {image.shape}, not {layout.image_shape}')
  return image
