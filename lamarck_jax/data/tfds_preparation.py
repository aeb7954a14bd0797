"""Prepares the data sets of the paper for tfds, with no need of TensorFlow.

tfds reads prepared data without TensorFlow, but extracts archives and encodes
images through it. So the builder of the data set is subclassed here and only
these two steps are replaced. Version, features, ids, order of the examples, file
names and metadata stay tfds's own, as do the download and its checksums.

Archives are read in memory and within size bounds; nothing is extracted to disk.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import fcntl
import gzip
import hashlib
import io
import os
import pathlib
import shutil
import sys
import tarfile
import threading
import types
from typing import Any
from urllib import parse
import zlib

from absl import logging
import numpy as np

from lamarck_jax.errors import DatasetError

_MNIST_IMAGE_SIZE = 28  # Pixels per side.
_CIFAR_IMAGE_SIZE = 32
# The data sets that can be prepared, with their images' pixels per side.
PREPARABLE = {
  'mnist': _MNIST_IMAGE_SIZE,
  'fashion_mnist': _MNIST_IMAGE_SIZE,
  'cifar10': _CIFAR_IMAGE_SIZE,
  'cifar100': _CIFAR_IMAGE_SIZE,
}
_IDX_IMAGES_MAGIC = 0x803
_IDX_LABELS_MAGIC = 0x801
# Both bounds are a little above what the real archives need.
_MAX_IDX_EXAMPLES = 100_000
_MAX_TAR_BYTES = 256 * 2**20

# tfds retries a failing download for minutes, so the server is tried first.
_PROBE_TIMEOUT_SECONDS = 5  # For each of connecting and reading.
_PROBE_LIMIT_SECONDS = 8  # In all; looking up a host name has no time limit.


@dataclasses.dataclass(frozen=True)
class _Examples:
  """One split, in the order of the archive.

  Attributes:
    images: uint8 [num_examples, height, width, channels].
    labels: By name of the label feature, uint8 [num_examples].
  """

  images: np.ndarray
  labels: dict[str, np.ndarray]


# ------------------------------------------------------------------------------
# Archives
# ------------------------------------------------------------------------------


def _gunzip(path: pathlib.Path, max_bytes: int) -> bytes:
  """Returns the decompressed file, which may have at most `max_bytes` bytes.

  Raises:
    DatasetError: If the file cannot be read, is damaged or is too long.
  """
  try:
    with gzip.open(path) as file:
      data = file.read(max_bytes + 1)
  except (OSError, EOFError, zlib.error) as error:
    raise DatasetError(f'{path} is not a complete gzip file: {error}') from error
  if len(data) > max_bytes:
    raise DatasetError(f'{path} holds more than the {max_bytes} bytes expected')
  return data


def _read_idx(
  path: pathlib.Path, magic: int, example_shape: tuple[int, ...]
) -> np.ndarray:
  """Reads a gzipped IDX file of bytes.

  Args:
    path: The file.
    magic: Number that the file must begin with.
    example_shape: Shape of one example, which the file must have.

  Returns:
    uint8 [num_examples, *example_shape].

  Raises:
    DatasetError: If the file is not of that kind, incomplete or absurdly long.
  """
  example_size = int(np.prod(example_shape))
  header_size = 4 * (2 + len(example_shape))
  data = _gunzip(path, header_size + _MAX_IDX_EXAMPLES * example_size)
  header = np.frombuffer(data[:header_size].ljust(header_size, b'\0'), '>u4').tolist()
  num_examples, body_size = header[1], len(data) - header_size
  if header[0] != magic or tuple(header[2:]) != example_shape:
    raise DatasetError(
      f'{path} is not an IDX file with magic number {magic:#x} and examples of'
      f' shape {example_shape}: its header is {header}'
    )
  if num_examples == 0 or body_size != num_examples * example_size:
    raise DatasetError(
      f'{path} has {body_size} bytes of data; its header promises {num_examples}'
      f' examples of {example_size} bytes'
    )
  return np.frombuffer(data, np.uint8, offset=header_size).reshape(
    num_examples, *example_shape
  )


def _read_mnist(
  builder: Any, archives: dict[str, pathlib.Path]
) -> dict[str, _Examples]:
  """Reads the four files of MNIST or Fashion-MNIST.

  Args:
    builder: tfds builder of the data set.
    archives: Where the archives are, by official file name.

  Returns:
    The examples, by split name.

  Raises:
    DatasetError: If an archive is not what it should be.
  """
  del builder  # All that matters is in the files.
  image_shape = (_MNIST_IMAGE_SIZE, _MNIST_IMAGE_SIZE)
  splits = {}
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    images_path = archives[f'{prefix}-images-idx3-ubyte.gz']
    labels_path = archives[f'{prefix}-labels-idx1-ubyte.gz']
    images = _read_idx(images_path, _IDX_IMAGES_MAGIC, image_shape)
    labels = _read_idx(labels_path, _IDX_LABELS_MAGIC, ())
    if len(images) != len(labels):
      raise DatasetError(
        f'{images_path} has {len(images)} images, but {labels_path} has'
        f' {len(labels)} labels'
      )
    splits[split] = _Examples(images[..., np.newaxis], {'label': labels})
  return splits


def _read_tar_members(path: pathlib.Path, names: set[str]) -> dict[str, bytes]:
  """Reads plain files of a .tar.gz; whatever else it has is left alone.

  Raises:
    DatasetError: If the archive is damaged or too large, or if a wanted file is
      missing, there twice, or not a plain file.
  """
  contents: dict[str, bytes] = {}
  try:
    # As no size in the archive can reach past its bytes, this bounds them all.
    data = io.BytesIO(_gunzip(path, _MAX_TAR_BYTES))
    with tarfile.open(fileobj=data, mode='r:') as archive:
      for member in archive:
        if member.name not in names:
          continue
        # A link or a sparse file could stand for something other than its bytes.
        file = None
        if member.isreg() and not member.issparse() and member.name not in contents:
          file = archive.extractfile(member)
        if file is None:
          raise DatasetError(f'{path}: {member.name} is not one plain file')
        contents[member.name] = file.read()
  except tarfile.TarError as error:
    raise DatasetError(f'{path} is not a complete tar file: {error}') from error
  missing = sorted(names - contents.keys())
  if missing:
    raise DatasetError(f'{path} lacks {", ".join(missing)}')
  return contents


def _read_cifar(
  builder: Any, archives: dict[str, pathlib.Path]
) -> dict[str, _Examples]:
  """Reads CIFAR-10 or CIFAR-100 and gives the builder the names of the classes.

  A record is one byte per kind of label, then the red, the green and the blue
  pixels of the image.

  Args:
    builder: tfds builder of the data set.
    archives: Where the one archive is, by official file name.

  Returns:
    The examples, by split name.

  Raises:
    DatasetError: If the archive is not what it should be.
  """
  info = builder._cifar_info  # tfds's own table of the archive's layout.
  (path,) = archives.values()
  split_files = {'train': info.train_files, 'test': info.test_files}
  filenames = [*info.label_files, *info.train_files, *info.test_files]
  contents = _read_tar_members(path, {info.prefix + name for name in filenames})

  for key, filename in zip(info.label_keys, info.label_files, strict=True):
    text = contents[info.prefix + filename].decode(errors='replace')
    class_names = [line for line in text.split('\n') if line]
    num_classes = builder.info.features[key].num_classes
    if len(class_names) != num_classes:
      raise DatasetError(
        f'{path}: {filename} has {len(class_names)} class names, not {num_classes}'
      )
    builder.info.features[key].names = class_names

  num_labels = len(info.label_keys)
  image_shape = (3, _CIFAR_IMAGE_SIZE, _CIFAR_IMAGE_SIZE)
  record_size = num_labels + int(np.prod(image_shape))
  splits = {}
  for split, filenames in split_files.items():
    batches = []
    for filename in filenames:
      data = contents[info.prefix + filename]
      if not data or len(data) % record_size:
        raise DatasetError(
          f'{path}: {filename} has {len(data)} bytes, not a multiple of {record_size}'
        )
      batches.append(np.frombuffer(data, np.uint8).reshape(-1, record_size))
    records = np.concatenate(batches)
    splits[split] = _Examples(
      images=records[:, num_labels:].reshape(-1, *image_shape).transpose(0, 2, 3, 1),
      labels={key: records[:, i] for i, key in enumerate(info.label_keys)},
    )
  return splits


# ------------------------------------------------------------------------------
# Finding or downloading the archives
# ------------------------------------------------------------------------------


def _check_manual_archive(path: pathlib.Path, size: int, sha256: str) -> None:
  """Raises DatasetError unless the file has the size and SHA-256 tfds registered."""
  try:
    actual_size = path.stat().st_size
    with path.open('rb') as file:
      actual_sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise DatasetError(f'dataset.manual_dir: cannot read {path}: {error}') from error
  if (actual_size, actual_sha256) != (size, sha256):
    raise DatasetError(
      f'dataset.manual_dir: {path} is not the official file: it has {actual_size}'
      f' bytes with SHA-256 {actual_sha256}, wanted are {size} bytes with {sha256}'
    )


def _archives_to_download(
  builder: Any, manual_dir: pathlib.Path, download_dir: pathlib.Path
) -> dict[str, str]:
  """Returns {file name: URL} of the archives that are nowhere on disk yet.

  Raises:
    DatasetError: If an archive in `manual_dir` has a wrong checksum.
  """
  from tensorflow_datasets.core.download import resource

  wanted = {}
  for url, url_info in builder.url_infos.items():
    manual_path = manual_dir / url_info.filename
    cached_name = resource.get_dl_fname(url, url_info.checksum)
    if manual_path.exists():
      _check_manual_archive(manual_path, url_info.size, url_info.checksum)
    elif not (
      (download_dir / builder.name / cached_name).exists()
      or (download_dir / cached_name).exists()
    ):
      wanted[url_info.filename] = url
  return wanted


def _why_unreachable(url: str) -> str | None:
  """Returns in one line why the URL cannot be fetched, or None if it can."""
  import requests

  outcome: list[str | None] = []

  def probe() -> None:
    try:
      with requests.get(url, stream=True, timeout=_PROBE_TIMEOUT_SECONDS) as response:
        failed = response.status_code != requests.codes.ok
        outcome.append(f'HTTP status {response.status_code}' if failed else None)
    except requests.RequestException as error:
      outcome.append(type(error).__name__)

  thread = threading.Thread(target=probe, daemon=True)
  thread.start()
  thread.join(_PROBE_LIMIT_SECONDS)
  return outcome[0] if outcome else f'no answer in {_PROBE_LIMIT_SECONDS} s'


def _check_obtainable(
  builder: Any, manual_dir: pathlib.Path, download_dir: pathlib.Path
) -> None:
  """Raises DatasetError, within seconds, if an archive cannot be had."""
  missing = _archives_to_download(builder, manual_dir, download_dir)
  if not missing:
    return
  url = next(iter(missing.values()))
  reason = _why_unreachable(url)
  if reason is not None:
    raise DatasetError(
      f'{builder.name} is not prepared in {builder.data_dir} and cannot be downloaded'
      f' from {parse.urlsplit(url).hostname} ({reason}): put {", ".join(missing)} into'
      f' {manual_dir} or another folder given as dataset.manual_dir, or prepare it on'
      ' a machine with a network (python -c "from lamarck_jax import datasets;'
      f" datasets.load('{builder.name}', data_dir='DIR')\"), copy DIR here and give it"
      ' as dataset.data_dir'
    )


# ------------------------------------------------------------------------------
# Writing
# ------------------------------------------------------------------------------


def _encode_png(image: np.ndarray) -> bytes:
  from PIL import Image

  # Pillow wants [height, width] for one channel.
  pixels = image[..., 0] if image.shape[-1] == 1 else image
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, format='PNG')
  return buffer.getvalue()


class _TensorFlowFree:
  """Replaces the reading and encoding of a tfds builder, as a base before it."""

  url_infos: Any  # Of the tfds builder, as all else that is not defined here.
  info: Any
  name: str

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
    urls = {url_info.filename: url for url, url_info in self.url_infos.items()}
    paths = dl_manager.download(urls)
    read_archives = _read_cifar if hasattr(self, '_cifar_info') else _read_mnist
    splits = read_archives(
      self, {name: pathlib.Path(path) for name, path in paths.items()}
    )
    for split, examples in splits.items():
      for key, labels in examples.labels.items():
        num_classes = self.info.features[key].num_classes
        if labels.max() >= num_classes:
          raise DatasetError(
            f'{self.name}: {split} has the {key} {labels.max()}, but there are only'
            f' {num_classes} classes'
          )
    return {
      split: self._generate_examples(split, examples)
      for split, examples in splits.items()
    }

  def _generate_examples(
    self, split: str, examples: _Examples
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    # tfds orders the examples by a hash of these keys, so they have to be the
    # original builder's: the position in the archive.
    for index, image in enumerate(examples.images):
      example: dict[str, Any] = {'image': _encode_png(image)}
      for key, labels in examples.labels.items():
        example[key] = int(labels[index])
      if 'id' in self.info.features:
        example['id'] = f'{split}_{index:05d}'
      yield index, example


def _tensorflow_free(builder_cls: Any) -> Any:
  """Returns the tfds builder class with its reading and encoding replaced."""
  # tfds looks for its registered checksums beside the module of the class.
  identity = {'name': builder_cls.name, '__module__': builder_cls.__module__}
  return types.new_class(
    builder_cls.__name__,
    (_TensorFlowFree, builder_cls),
    {'skip_registration': True},
    lambda namespace: namespace.update(identity),
  )


@contextlib.contextmanager
def _staging_dir(data_dir: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
  """Yields an empty folder inside `data_dir`, to one process at a time."""
  own_dir = data_dir / '.lamarck_jax'
  own_dir.mkdir(parents=True, exist_ok=True)
  staging_dir = own_dir / name
  with (own_dir / f'{name}.lock').open('w') as lock_file:
    try:
      fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logging.info('Waiting for another process that prepares %s.', name)
      fcntl.flock(lock_file, fcntl.LOCK_EX)
    # Closing the file, or the end of the process, gives the lock back.
    shutil.rmtree(staging_dir, ignore_errors=True)  # Of a process that was killed.
    staging_dir.mkdir()
    try:
      yield staging_dir
    finally:
      shutil.rmtree(staging_dir, ignore_errors=True)


def _move_durably(source: pathlib.Path, target: pathlib.Path) -> None:
  """Renames a folder of files once its contents are safely on the disk."""
  for path in source.iterdir():
    with path.open('rb') as file:
      os.fsync(file.fileno())
  target.parent.mkdir(parents=True, exist_ok=True)
  source.rename(target)


def prepare(builder: Any, manual_dir: str | None = None) -> None:
  """Downloads and prepares one of the `PREPARABLE` data sets.

  Safe to interrupt and to run in several processes at once: the data set is made
  in a staging folder under a lock and then renamed into place.

  Args:
    builder: tfds builder of the data set, which is not prepared. A builder made
      afterwards finds the data; this one may not.
    manual_dir: Folder that may have official archives under their official names;
      None: tfds's default, `downloads/manual` in the data folder. What it lacks
      is downloaded.

  Raises:
    DatasetError: If an archive cannot be had or is not the official one, or if
      the data set cannot be written.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import download_manager

  data_dir = pathlib.Path(builder.data_dir_root).absolute()
  download_dir = data_dir / 'downloads'
  manual_path = download_dir / 'manual'
  if manual_dir is not None:
    manual_path = pathlib.Path(manual_dir).expanduser().absolute()
    if not manual_path.is_dir():
      raise DatasetError(
        f'dataset.manual_dir is {manual_dir!r}: there is no such folder'
      )
  _check_obtainable(builder, manual_path, download_dir)

  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  logging.info('Preparing %s in %s: about a minute.', builder.name, builder.data_dir)
  try:
    with _staging_dir(data_dir, builder.name) as staging_dir:
      target = pathlib.Path(builder.data_dir).absolute()
      if target.exists():
        return  # Another process made it in the meantime.
      staged = _tensorflow_free(type(builder))(
        data_dir=staging_dir, file_format='array_record'
      )
      # tfds prints where it writes, which would be the staging folder.
      with contextlib.redirect_stdout(io.StringIO()):
        staged.download_and_prepare(
          download_dir=download_dir,
          download_config=tfds.download.DownloadConfig(
            manual_dir=manual_path,
            force_checksums_validation=True,
            try_download_gcs=False,
          ),
        )
      _move_durably(pathlib.Path(staged.data_dir), target)
  except (
    OSError,  # Also of the network.
    tfds.download.DownloadError,
    download_manager.NonMatchingChecksumError,
  ) as error:
    reason = ' '.join(str(error).split())
    raise DatasetError(
      f'{builder.name} cannot be prepared in {data_dir} (dataset.data_dir): {reason}'
    ) from error
