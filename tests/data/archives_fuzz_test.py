"""Readers of downloaded archives meet files that others have made or damaged."""

import gzip
import io
import tarfile
import types

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np

from lamarck_jax.data import tfds_preparation
from lamarck_jax.data.tfds_preparation import DatasetError

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


def _tar(prefix: str, names: list[str]) -> bytes:
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w') as archive:
    for name in names:
      data = b'class\n' * 10 if name.endswith('.txt') else bytes(3073 * 2)
      member = tarfile.TarInfo(prefix + name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return file.getvalue()


_PREFIX, _TRAIN, _TEST, _NAMES = 'cifar/', ['train.bin'], ['test.bin'], ['names.txt']
_TAR = _tar(_PREFIX, [*_NAMES, *_TRAIN, *_TEST])
# As much of tfds's builder as the reader looks at.
_BUILDER = types.SimpleNamespace(
  _cifar_info=types.SimpleNamespace(
    prefix=_PREFIX,
    train_files=_TRAIN,
    test_files=_TEST,
    label_files=_NAMES,
    label_keys=['label'],
  ),
  info=types.SimpleNamespace(
    features={'label': types.SimpleNamespace(num_classes=10, names=None)}
  ),
)


def _read_idx(path):
  images = tfds_preparation._read_idx(path, 0x803, (28, 28))
  assert images.dtype == np.uint8
  assert images.shape[1:] == (28, 28)


def _read_cifar(path):
  splits = tfds_preparation._read_cifar(_BUILDER, {'archive': path})
  for examples in splits.values():
    assert examples.images.shape[1:] == (32, 32, 3)


def _check(read, path, content: bytes) -> None:
  path.write_bytes(content)
  try:
    read(path)
  except DatasetError as error:
    assert str(path) in str(error)


def test_the_originals_are_read(tmp_path):
  path = tmp_path / 'archive'
  for read, original in ((_read_idx, _IDX), (_read_cifar, _TAR)):
    path.write_bytes(gzip.compress(original))
    read(path)


@_FUZZ
@given(mutated(_IDX) | st.binary(max_size=100))
def test_an_idx_file_is_read_or_refused_by_name(tmp_path_factory, content):
  path = tmp_path_factory.getbasetemp() / 'idx'
  _check(_read_idx, path, gzip.compress(content, 1))


@_FUZZ
@given(mutated(_TAR) | st.binary(max_size=2000))
def test_a_cifar_archive_is_read_or_refused_by_name(tmp_path_factory, content):
  path = tmp_path_factory.getbasetemp() / 'cifar'
  _check(_read_cifar, path, gzip.compress(content, 1))


@_FUZZ
@given(mutated(gzip.compress(_IDX)) | st.binary(max_size=100))
def test_a_damaged_gzip_file_is_refused_by_name(tmp_path_factory, content):
  path = tmp_path_factory.getbasetemp() / 'gzip'
  _check(_read_idx, path, content)
