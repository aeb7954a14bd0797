"""The official archives of the paper's data sets: MNIST's IDX and CIFAR's binary files.

Archives are read in memory and within size limits; nothing is extracted to disk.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import gzip
import io
import pathlib
import tarfile
import zlib

import numpy as np

from lamarck_jax.data import files
from lamarck_jax.errors import DatasetError

_MNIST_IMAGE_SIZE = 28  # Pixels per side.
_MNIST_NUM_CLASSES = 10
_CIFAR_IMAGE_SIZE = 32

_IDX_IMAGES_MAGIC = 0x803
_IDX_LABELS_MAGIC = 0x801

# Both limits are a little above what the official archives need.
_MAX_IDX_EXAMPLES = 100_000
_MAX_TAR_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Examples:
  """One split, in the order of the archive.

  Attributes:
    images: uint8 [num_examples, height, width, channels].
    labels: By name of the label, uint8 [num_examples].
  """

  images: np.ndarray
  labels: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Contents:
  """What the archives of a data set hold.

  Attributes:
    splits: By name, `train` and `test`.
    class_names: By name of the label, in label order; empty if not in the archives.
  """

  splits: dict[str, Examples]
  class_names: dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class CifarLayout:
  """Where a CIFAR archive keeps what.

  Attributes:
    folder: Folder inside the archive.
    train_files: Files of the training split, in order.
    test_files: Files of the test split, in order.
    labels: Name of the label, file of the class names and number of classes, in the
      order in which labels stand in a record.
  """

  folder: str
  train_files: tuple[str, ...]
  test_files: tuple[str, ...]
  labels: tuple[tuple[str, str, int], ...]

  @property
  def members(self) -> set[str]:
    """Full names of all files."""
    names_files = tuple(filename for _, filename, _ in self.labels)
    filenames = self.train_files + self.test_files + names_files
    return {f'{self.folder}/{filename}' for filename in filenames}


_CIFAR10 = CifarLayout(
  folder='cifar-10-batches-bin',
  train_files=tuple(f'data_batch_{i}.bin' for i in range(1, 6)),
  test_files=('test_batch.bin',),
  labels=(('label', 'batches.meta.txt', 10),),
)
_CIFAR100 = CifarLayout(
  folder='cifar-100-binary',
  train_files=('train.bin',),
  test_files=('test.bin',),
  labels=(
    ('coarse_label', 'coarse_label_names.txt', 20),
    ('label', 'fine_label_names.txt', 100),
  ),
)


def read_mnist(paths: Mapping[str, pathlib.Path]) -> Contents:
  """Reads the four files of MNIST or Fashion-MNIST.

  Args:
    paths: The archives by official file name.

  Raises:
    DatasetError: If an archive is damaged or of another format.
  """
  image_shape = (_MNIST_IMAGE_SIZE, _MNIST_IMAGE_SIZE)
  splits = {}
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    images_path = paths[f'{prefix}-images-idx3-ubyte.gz']
    labels_path = paths[f'{prefix}-labels-idx1-ubyte.gz']
    images = _read_idx(images_path, _IDX_IMAGES_MAGIC, image_shape)
    labels = _read_idx(labels_path, _IDX_LABELS_MAGIC, ())
    if len(images) != len(labels):
      raise DatasetError(
        f'{labels_path}: got {len(labels)} labels, want {len(images)} as {images_path}'
        ' has images'
      )
    _check_labels(labels_path, labels, _MNIST_NUM_CLASSES)
    splits[split] = Examples(images[..., np.newaxis], {'label': labels})
  return Contents(splits, class_names={})


def _read_idx(
  path: pathlib.Path, magic: int, example_shape: tuple[int, ...]
) -> np.ndarray:
  """Reads a gzipped IDX file of bytes.

  Args:
    path: The file.
    magic: Number at the start of the file, which tells type and dimensions.
    example_shape: Shape of one example.

  Returns:
    uint8 [num_examples, *example_shape].

  Raises:
    DatasetError: If the file is damaged, longer than any official one, or has another
      magic number or shape.
  """
  example_size = int(np.prod(example_shape))
  header_size = 4 * (2 + len(example_shape))
  data = _gunzip(path, header_size + _MAX_IDX_EXAMPLES * example_size)
  header = np.frombuffer(data[:header_size].ljust(header_size, b'\0'), '>u4').tolist()
  num_examples, body_size = header[1], len(data) - header_size
  if header[0] != magic or tuple(header[2:]) != example_shape:
    raise DatasetError(
      f'{path}: got IDX header {header}, want magic number {magic} and examples of'
      f' shape {list(example_shape)}'
    )
  if num_examples == 0 or body_size != num_examples * example_size:
    raise DatasetError(
      f'{path}: got {body_size} bytes of data, want the {num_examples} examples of'
      f' {example_size} bytes that its header announces, at least 1'
    )
  return np.frombuffer(data, np.uint8, offset=header_size).reshape(
    num_examples, *example_shape
  )


def read_cifar(paths: Mapping[str, pathlib.Path], layout: CifarLayout) -> Contents:
  """Reads the archive of CIFAR-10 or CIFAR-100.

  Args:
    paths: The one archive by official file name.
    layout: The files in the archive.

  Raises:
    DatasetError: If the archive is damaged or of another format.
  """
  (path,) = paths.values()
  contents = _read_tar_members(path, layout.members)
  class_names = {}
  for key, filename, num_classes in layout.labels:
    text = contents[f'{layout.folder}/{filename}'].decode(errors='replace')
    class_names[key] = [line for line in text.split('\n') if line]
    if len(class_names[key]) != num_classes:
      raise DatasetError(
        f'{path}: {filename}: got {len(class_names[key])} class names, want'
        f' {num_classes}'
      )
  splits = {}
  for split, filenames in (('train', layout.train_files), ('test', layout.test_files)):
    batches = [
      _read_cifar_records(path, contents, f'{layout.folder}/{filename}', layout)
      for filename in filenames
    ]
    splits[split] = Examples(
      images=np.concatenate([batch.images for batch in batches]),
      labels={
        key: np.concatenate([batch.labels[key] for batch in batches])
        for key in class_names
      },
    )
  return Contents(splits, class_names)


def _read_cifar_records(
  path: pathlib.Path, contents: Mapping[str, bytes], member: str, layout: CifarLayout
) -> Examples:
  """Returns the examples of one file.

  A record is one byte for each label, then the image's red, green and blue pixels.
  """
  data, num_labels = contents[member], len(layout.labels)
  image_shape = (3, _CIFAR_IMAGE_SIZE, _CIFAR_IMAGE_SIZE)
  record_size = num_labels + int(np.prod(image_shape))
  if not data or len(data) % record_size:
    raise DatasetError(
      f'{path}: {member}: got {len(data)} bytes, want a multiple of {record_size}'
    )
  records = np.frombuffer(data, np.uint8).reshape(-1, record_size)
  labels = {}
  for i, (key, _, num_classes) in enumerate(layout.labels):
    labels[key] = records[:, i]
    _check_labels(f'{path}: {member}', labels[key], num_classes)
  images = records[:, num_labels:].reshape(-1, *image_shape).transpose(0, 2, 3, 1)
  return Examples(images, labels)


def _check_labels(
  where: str | pathlib.Path, labels: np.ndarray, num_classes: int
) -> None:
  if labels.max() >= num_classes:
    raise DatasetError(
      f'{where}: got label {labels.max()}, want 0 to {num_classes - 1}'
    )


def _read_tar_members(path: pathlib.Path, names: set[str]) -> dict[str, bytes]:
  """Returns the contents of some plain files of a .tar.gz, and ignores all others.

  Raises:
    DatasetError: If the archive is damaged or too large, or if one of the files is
      missing, occurs twice or is not a plain file.
  """
  contents: dict[str, bytes] = {}
  try:
    # A member is at most as long as the archive, so this limits their sizes too.
    data = io.BytesIO(_gunzip(path, _MAX_TAR_BYTES))
    with tarfile.open(fileobj=data, mode='r:') as archive:
      for member in archive:
        if member.name not in names:
          continue
        # The content of a link or a sparse file is not its own bytes.
        file = None
        if member.isreg() and not member.issparse() and member.name not in contents:
          file = archive.extractfile(member)
        if file is None:
          raise DatasetError(
            f'{path}: {member.name}: got a link, a special file or a second copy,'
            ' want one plain file'
          )
        contents[member.name] = file.read()
  except tarfile.TarError as error:
    raise DatasetError(f'{path}: got {error}, want a complete tar file') from error
  missing = sorted(names - contents.keys())
  if missing:
    raise DatasetError(
      f'{path}: got {len(contents)} of {len(names)} files, want also'
      f' {", ".join(missing)}'
    )
  return contents


def _gunzip(path: pathlib.Path, max_bytes: int) -> bytes:
  """Returns the decompressed file, or raises DatasetError on more than `max_bytes`."""
  try:
    with files.open_regular(path) as compressed, gzip.open(compressed) as file:
      data = file.read(max_bytes + 1)
  except (OSError, EOFError, zlib.error) as error:
    raise DatasetError(f'{path}: got {error}, want a complete gzip file') from error
  if len(data) > max_bytes:
    raise DatasetError(f'{path}: got more bytes, want at most {max_bytes}')
  return data


@dataclasses.dataclass(frozen=True)
class Format:
  """How the archives of a data set are read.

  Attributes:
    image_size: Pixels per side.
    read: Returns the contents of the archives, given by official file name.
  """

  image_size: int
  read: Callable[[Mapping[str, pathlib.Path]], Contents]


# By TFDS name; these are the data sets that can be prepared without TensorFlow.
FORMATS = {
  'mnist': Format(_MNIST_IMAGE_SIZE, read_mnist),
  'fashion_mnist': Format(_MNIST_IMAGE_SIZE, read_mnist),
  'cifar10': Format(_CIFAR_IMAGE_SIZE, functools.partial(read_cifar, layout=_CIFAR10)),
  'cifar100': Format(
    _CIFAR_IMAGE_SIZE, functools.partial(read_cifar, layout=_CIFAR100)
  ),
}
