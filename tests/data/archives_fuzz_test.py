"""Damaged archives are read or refused by name, never with another error."""

import gzip
import io
import tarfile

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from lamarck_jax.data import archives
from lamarck_jax.errors import DatasetError

_TRAIN_IMAGES = 'train-images-idx3-ubyte.gz'
_TEST_IMAGES = 't10k-images-idx3-ubyte.gz'

_FUZZ = settings(max_examples=200, deadline=None, derandomize=True)
_IDX = (
  b'\0\0\x08\x03' + b''.join(n.to_bytes(4, 'big') for n in (2, 28, 28)) + bytes(1568)
)


@st.composite
def mutated(draw, original: bytes) -> bytes:
  """A file with some bytes replaced, put in or cut out."""
  content = bytearray(original)
  for _ in range(draw(st.integers(1, 4))):
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 32)))
    content[start:end] = draw(st.binary(max_size=32))
  return bytes(content)


def _tar(names: list[str]) -> bytes:
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w') as archive:
    for name in names:
      data = b'class\n' * 10 if name.endswith('.txt') else bytes(3073 * 2)
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return file.getvalue()


_LAYOUT = archives.CifarLayout(
  'cifar', ('train.bin',), ('test.bin',), (('label', 'names.txt', 10),)
)
_TAR = _tar(sorted(_LAYOUT.members))
_LABELS = bytes.fromhex('00000801 00000002 0000')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with the archives of MNIST but for the images of the training split."""
  path = tmp_path_factory.mktemp('archives')
  (path / _TEST_IMAGES).write_bytes(gzip.compress(_IDX))
  for prefix in ('train', 't10k'):
    content = gzip.compress(_LABELS)
    (path / f'{prefix}-labels-idx1-ubyte.gz').write_bytes(content)
  return path


def _read_mnist(path):
  paths = {file.name: file for file in path.parent.glob('*.gz')}
  contents = archives.read_mnist(paths)
  assert contents.splits['train'].images.dtype == np.uint8
  assert contents.splits['train'].images.shape == (2, 28, 28, 1)


def _read_cifar(path):
  contents = archives.read_cifar({path.name: path}, _LAYOUT)
  for examples in contents.splits.values():
    assert examples.images.shape[1:] == (32, 32, 3)


def _check(read, path, content: bytes) -> None:
  path.write_bytes(content)
  try:
    read(path)
  except DatasetError as error:
    assert str(path) in str(error)


def test_undamaged_archives_are_read(folder):
  for read, name, original in (
    (_read_mnist, _TRAIN_IMAGES, _IDX),
    (_read_cifar, 'cifar.tar', _TAR),
  ):
    (folder / name).write_bytes(gzip.compress(original))
    read(folder / name)


@_FUZZ
@given(mutated(_IDX) | st.binary(max_size=100))
def test_an_idx_file_is_read_or_refused_by_name(folder, content):
  path = folder / _TRAIN_IMAGES
  _check(_read_mnist, path, gzip.compress(content, 1))


@_FUZZ
@given(mutated(_TAR) | st.binary(max_size=2000))
def test_a_cifar_archive_is_read_or_refused_by_name(folder, content):
  path = folder / 'cifar.tar'
  _check(_read_cifar, path, gzip.compress(content, 1))


@_FUZZ
@given(mutated(gzip.compress(_IDX)) | st.binary(max_size=100))
def test_a_damaged_gzip_file_is_refused_by_name(folder, content):
  path = folder / _TRAIN_IMAGES
  _check(_read_mnist, path, content)
