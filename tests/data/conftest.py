"""Small archives in the official formats, and folders to load data sets from.

The archives differ from the official ones in content only; their checksums are
registered with TFDS in place of the official ones. No network is needed.
"""

import collections
from collections.abc import Mapping
import gzip
import hashlib
import io
import pathlib
import struct
import tarfile
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

from lamarck_jax.data import datasets

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SIZES = {'train': 40, 'test': 20}


def random_splits(
  shape: tuple[int, ...], num_classes: int
) -> dict[str, datasets.Split]:
  """Returns 40 training and 20 test examples with random images and labels."""
  generator = np.random.default_rng(0)
  return {
    name: datasets.Split(
      generator.integers(0, 256, (size, *shape), np.uint8),
      generator.integers(0, num_classes, size, np.int32),
    )
    for name, size in SIZES.items()
  }


def idx(values: np.ndarray) -> bytes:
  """Returns an IDX file of bytes."""
  header = struct.pack(
    f'>{1 + values.ndim}I', 0x800 | values.ndim, *(int(n) for n in values.shape)
  )
  return header + values.astype(np.uint8).tobytes()


def _mnist_files(splits: Mapping[str, datasets.Split]) -> dict[str, bytes]:
  files = {}
  for name, prefix in (('train', 'train'), ('test', 't10k')):
    images, labels = splits[name].images[..., 0], splits[name].labels
    files[f'{prefix}-images-idx3-ubyte.gz'] = gzip.compress(idx(images))
    files[f'{prefix}-labels-idx1-ubyte.gz'] = gzip.compress(idx(labels))
  return files


def _cifar_records(split: datasets.Split, num_labels: int) -> bytes:
  images = split.images.transpose(0, 3, 1, 2).reshape(len(split.images), -1)
  labels = [split.labels % 20] * (num_labels - 1) + [split.labels]
  return np.column_stack([*labels, images]).astype(np.uint8).tobytes()


def cifar_members(
  name: str, splits: Mapping[str, datasets.Split]
) -> list[tuple[tarfile.TarInfo, bytes]]:
  """Returns the members of the archive of CIFAR-10 or CIFAR-100."""
  if name == 'cifar10':
    prefix, num_labels = 'cifar-10-batches-bin', 1
    train = _cifar_records(splits['train'], num_labels)
    fifth = len(train) // 5
    files = {
      f'data_batch_{i + 1}.bin': train[i * fifth : (i + 1) * fifth] for i in range(5)
    }
    files['test_batch.bin'] = _cifar_records(splits['test'], num_labels)
    files['batches.meta.txt'] = class_names('class', 10)
  else:
    prefix, num_labels = 'cifar-100-binary', 2
    files = {
      'train.bin': _cifar_records(splits['train'], num_labels),
      'test.bin': _cifar_records(splits['test'], num_labels),
      'coarse_label_names.txt': class_names('coarse', 20),
      'fine_label_names.txt': class_names('class', 100),
    }
  return [member(f'{prefix}/{filename}', data) for filename, data in files.items()]


def class_names(prefix: str, count: int) -> bytes:
  """Returns CIFAR's file of class names, which ends in an empty line."""
  return ''.join(f'{prefix}{i}\n' for i in range(count)).encode() + b'\n'


def member(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
  """Returns a plain file of a tar archive."""
  info = tarfile.TarInfo(name)
  info.size = len(data)
  return info, data


def tar_gz(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
    for info, data in members:
      archive.addfile(info, io.BytesIO(data))
  return buffer.getvalue()


def make_archives(
  name: str,
) -> tuple[dict[str, datasets.Split], dict[str, bytes]]:
  """Returns small splits, and their archives by official file name."""
  if name in ('mnist', 'fashion_mnist'):
    splits = random_splits((28, 28, 1), 10)
    return splits, _mnist_files(splits)
  filename, num_classes = {
    'cifar10': ('cifar-10-binary.tar.gz', 10),
    'cifar100': ('cifar-100-binary.tar.gz', 100),
  }[name]
  splits = random_splits((32, 32, 3), num_classes)
  return splits, {filename: tar_gz(cifar_members(name, splits))}


class Place:
  """A data folder, and a folder of archives whose checksums TFDS has registered."""

  def __init__(self, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    self.data_dir = path / 'data'
    self.manual_dir = path / 'manual'
    self.manual_dir.mkdir()
    self._monkeypatch = monkeypatch

  def put(
    self, name: str, archives: Mapping[str, bytes], base_url: str | None = None
  ) -> None:
    """Stores archives and registers them with TFDS, to be downloaded from base_url."""
    for filename, content in archives.items():
      (self.manual_dir / filename).write_bytes(content)
    builder_cls = tfds.builder_cls(name)
    url_infos = self.url_infos(builder_cls, archives)
    if base_url is not None:
      url_infos = {base_url + info.filename: info for info in url_infos.values()}
    self._monkeypatch.setattr(builder_cls, 'url_infos', url_infos)

  @staticmethod
  def url_infos(builder_cls: Any, archives: Mapping[str, bytes]) -> dict[str, Any]:
    """Returns TFDS's table of archives, with the checksums of those given."""
    return {
      url: checksums.UrlInfo(
        size=len(archives[info.filename]),
        checksum=hashlib.sha256(archives[info.filename]).hexdigest(),
        filename=info.filename,
      )
      for url, info in builder_cls.url_infos.items()
    }

  def load(self, name: str, **kwargs: Any) -> datasets.Dataset:
    """Loads a data set from these folders."""
    return datasets.load(
      name, data_dir=str(self.data_dir), manual_dir=str(self.manual_dir), **kwargs
    )

  def version_dir(self, name: str) -> pathlib.Path:
    """Returns the folder of a prepared data set."""
    (path,) = (self.data_dir / name).iterdir()
    return path

  def error(self, name: str, **kwargs: Any) -> str:
    """Returns the error message, of one line, with which loading fails."""
    with pytest.raises(datasets.DatasetError) as caught:
      self.load(name, **kwargs)
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Place:
  return Place(tmp_path, monkeypatch)


def counts(*splits: datasets.Split) -> collections.Counter[tuple[bytes, int]]:
  """Returns how often each labelled image occurs."""
  return collections.Counter(
    (image.tobytes(), int(label))
    for split in splits
    for image, label in zip(split.images, split.labels, strict=True)
  )


def assert_equal(first: datasets.Dataset, second: datasets.Dataset) -> None:
  assert first.class_names == second.class_names
  for name in ('train', 'validation', 'test'):
    for array in ('images', 'labels'):
      np.testing.assert_array_equal(
        getattr(getattr(first, name), array), getattr(getattr(second, name), array)
      )


class Cached(NamedTuple):
  """Folders from which MNIST was read once, the data set read, and its cache file."""

  place: Place
  dataset: datasets.Dataset
  path: pathlib.Path


@pytest.fixture
def cached(place: Place) -> Cached:
  place.put('mnist', make_archives('mnist')[1])
  dataset = place.load('mnist')
  (path,) = (place.version_dir('mnist') / 'lamarck_jax_cache').iterdir()
  return Cached(place, dataset, path)
