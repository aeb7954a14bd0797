"""An npz file of unknown origin: only the arrays wanted are read, within bounds."""

import io
import os
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from lamarck_jax.data import datasets
from lamarck_jax.data.datasets import DatasetError


def _arrays(**others):
  generator = np.random.default_rng(0)
  images = generator.integers(0, 256, (60, 9, 9, 1)).astype(np.uint8)
  return {'x_train': images, 'y_train': np.arange(60) % 3, **others}


def _save(path, **others):
  np.savez_compressed(path, **_arrays(**others))
  return f'npz:{path}'


def _header(shape, dtype='|u1'):
  buffer = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    buffer, {'descr': dtype, 'fortran_order': False, 'shape': shape}
  )
  return buffer.getvalue()


def _error(name):
  with pytest.raises(DatasetError) as raised:
    datasets.load(name)
  assert '\n' not in str(raised.value)
  return str(raised.value)


def _peak(function):
  tracemalloc.start()
  start = time.monotonic()
  function()
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert time.monotonic() - start < 10
  return peak


def test_arrays_that_are_not_wanted_are_not_read(tmp_path):
  name = _save(tmp_path / 'a.npz', other=np.zeros(2**26, np.uint8))
  assert _peak(lambda: datasets.load(name)) < 2**24
  # Not even if they are no arrays.
  with zipfile.ZipFile(tmp_path / 'a.npz', 'a') as file:
    file.writestr('__MACOSX/._x_train.npy', b'litter')
    file.writestr('notes.txt', b'mine')
  assert len(datasets.load(name).test.labels) == 9


@pytest.mark.parametrize('key', ['x_train', 'y_train', 'class_names'])
@pytest.mark.parametrize('size', [2**33, 2**62])
def test_an_array_that_is_declared_too_large_is_refused_unread(tmp_path, key, size):
  shape, dtype = {
    'x_train': ((size, 9, 9), '|u1'),
    'y_train': ((60,), '<i8'),
    'class_names': ((3,), f'<U{2**28}'),
  }[key]
  arrays = _arrays()
  with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED) as file:
    for name in {*arrays, key}:
      with file.open(f'{name}.npy', 'w') as member:
        if name == key or (name == 'y_train' and key == 'x_train'):
          member.write(
            _header((size,), '<i8') if name == 'y_train' else _header(shape, dtype)
          )
        else:
          np.lib.format.write_array(member, arrays[name])
  assert _peak(lambda: _error(f'npz:{tmp_path / "a.npz"}')) < 2**24


def test_a_small_file_does_not_become_gigabytes(tmp_path):
  with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED) as file:
    shape = (2**14, 256, 256)  # 1 GiB of zeros in 1 MB.
    file.writestr('x_train.npy', _header(shape))
    with file.open('y_train.npy', 'w') as member:
      np.lib.format.write_array(member, np.arange(2**14) % 2)
  message = _error(f'npz:{tmp_path / "a.npz"}')
  assert 'x_train: got uint8 [16384, 256, 256]' in message
  assert 'times the size of the file' in message


def test_honest_files_are_read_however_well_they_compress(tmp_path):
  name = _save(tmp_path / 'a.npz', x_train=np.zeros((60, 256, 256), np.uint8))
  assert len(datasets.load(name).validation.labels) == 5


@pytest.mark.parametrize(
  ('names', 'wanted'),
  [
    (np.arange(3), 'got int64 [3], want 3 strings'),
    (np.array(['a', 'b']), 'want 3 strings'),
    (np.array(['a', 'b', 'c', 'd']), 'want 3 strings'),
    (np.array([['a', 'b', 'c']]), 'want 3 strings'),
    (np.array(['a', 'b', 'c'], object), 'got object [3], want 3 strings'),
    (np.array(['a', 'b', 'a']), "got 'a' at 2, want strings that differ"),
    (np.array(['e\u0301', 'b', '\xe9']), 'at 2, want strings that differ'),
    (np.array(['a', ' ', 'c']), "got ' ' at 1"),
  ],
)
def test_class_names_are_strings_unique_and_as_many_as_classes(tmp_path, names, wanted):
  message = _error(_save(tmp_path / 'a.npz', class_names=names))
  assert 'class_names: ' in message and wanted in message


def test_class_names_may_be_bytes_in_utf_8(tmp_path):
  names = np.array([b'a', b'b', 'é'.encode()])
  name = _save(tmp_path / 'a.npz', class_names=names)
  assert datasets.load(name).class_names == ('a', 'b', 'é')


def test_an_npz_that_is_no_regular_file_is_refused_at_once(tmp_path):
  os.mkfifo(tmp_path / 'pipe.npz')
  for path, wanted in (
    (tmp_path / 'pipe.npz', 'Not a regular file'),
    ('/dev/zero', 'Not a regular file'),
    (tmp_path, 'directory'),
  ):
    assert wanted in _error(f'npz:{path}')
  _save(tmp_path / 'a.npz')
  (tmp_path / 'link.npz').symlink_to('a.npz')
  datasets.load(f'npz:{tmp_path / "link.npz"}')
