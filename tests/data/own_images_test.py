"""A user's own images, from an npz file and from a folder."""

import os
import pickle
import shutil

import numpy as np
from PIL import Image
import pytest

from lamarck_jax.data import datasets
from lamarck_jax.data.datasets import DatasetError


def _images(count, size=9, channels=3):
  shape = (count, size, size + 1, channels)
  return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def _write_npz(path, **arrays):
  content = {'x_train': _images(60), 'y_train': np.arange(60) % 3, **arrays}
  np.savez(path, **{key: value for key, value in content.items() if value is not None})
  return f'npz:{path}'


def _write_folder(path, counts=(('cat', 24), ('dog', 36)), split='train', **image):
  for number, (name, count) in enumerate(counts):
    folder = path / split / name
    folder.mkdir(parents=True)
    for index, pixels in enumerate(_images(count, **image)):
      pixels = pixels // 2 + 100 * number
      pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
      Image.fromarray(pixels).save(folder / f'{index:03d}.png')
  return f'folder:{path}'


def test_npz_with_a_test_split_gives_its_own_images(tmp_path):
  test = _images(7)[::-1]
  name = _write_npz(
    tmp_path / 'a.npz',
    x_test=test,
    y_test=np.arange(7)[:, np.newaxis] % 3,
    class_names=np.array(['a', 'b', 'c']),
  )
  dataset = datasets.load(name, num_validation=12)
  assert dataset.class_names == ('a', 'b', 'c')
  assert dataset.image_shape == (9, 10, 3)
  assert len(dataset.train.labels) == 48
  assert len(dataset.test.labels) == 7
  for split, pool in (
    (dataset.test, test),
    (dataset.train, _images(60)),
    (dataset.validation, _images(60)),
  ):
    labels = {image.tobytes(): index % 3 for index, image in enumerate(pool)}
    assert [labels[image.tobytes()] for image in split.images] == [*split.labels]


def test_splits_are_disjoint_stratified_and_the_same_every_time(tmp_path):
  labels = np.array([0] * 60 + [1] * 180 + [2] * 30)
  name = _write_npz(tmp_path / 'a.npz', x_train=_images(270), y_train=labels)
  dataset = datasets.load(name, num_validation=45)
  splits = (dataset.train, dataset.validation, dataset.test)
  assert [len(split.labels) for split in splits] == [180, 45, 45]
  for split in splits:
    shares = np.bincount(split.labels) / len(split.labels)
    np.testing.assert_allclose(shares, [6 / 27, 18 / 27, 3 / 27], atol=0.03)
  images = [image.tobytes() for split in splits for image in split.images]
  assert len(set(images)) == 270
  again = datasets.load(name, num_validation=45)
  assert np.array_equal(again.train.images, dataset.train.images)
  smaller = datasets.load(name, num_validation=45, num_train=54)
  assert np.array_equal(smaller.validation.images, dataset.validation.images)
  np.testing.assert_allclose(np.bincount(smaller.train.labels), [12, 36, 6], atol=1)


def test_a_folder_gives_its_images_and_the_names_of_its_classes(tmp_path):
  name = _write_folder(tmp_path)
  (tmp_path / 'train' / 'cat' / 'notes.txt').write_text('no image')
  _write_folder(tmp_path, (('cat', 2), ('dog', 3)), 'test')
  dataset = datasets.load(name, num_validation=10)
  assert dataset.class_names == ('cat', 'dog')
  assert dataset.image_shape == (9, 10, 3)
  assert len(dataset.train.labels) == 50
  assert list(dataset.test.labels) == [0] * 2 + [1] * 3
  expected = {(image // 2).tobytes() for image in _images(36)}
  for image, label in zip(dataset.train.images, dataset.train.labels):
    assert (image - np.uint8(100 * label)).tobytes() in expected


@pytest.mark.parametrize('channels', [1, 3])
def test_gray_images_have_one_channel_unless_one_of_them_has_colour(tmp_path, channels):
  name = _write_folder(tmp_path, channels=1)
  if channels == 3:
    Image.fromarray(_images(1)[0]).save(tmp_path / 'train' / 'dog' / 'last.jpg')
  assert datasets.load(name).image_shape == (9, 10, channels)


def test_images_of_many_sizes_can_be_resized(tmp_path):
  name = _write_folder(tmp_path)
  Image.fromarray(_images(1, size=300)[0]).save(tmp_path / 'train' / 'dog' / 'big.png')
  assert datasets.load(name, image_size=16).image_shape == (16, 16, 3)
  assert datasets.load(_write_npz(tmp_path / 'a.npz'), image_size=8).image_shape == (
    8,
    8,
    3,
  )


@pytest.mark.parametrize(
  ('arrays', 'wanted'),
  [
    ({'x_train': None}, 'x_train'),
    ({'y_train': None}, 'y_train'),
    ({'x_test': _images(3)}, 'y_test'),
    ({'x_train': _images(60).astype(np.float32)}, 'uint8'),
    ({'x_train': _images(60)[:, 0, 0]}, 'height'),
    ({'x_train': _images(60, channels=2)}, 'channels'),
    ({'x_train': _images(60, size=7)}, '8 to 256'),
    ({'x_train': _images(60, size=257)}, '8 to 256'),
    ({'y_train': np.arange(59) % 3}, '60 integers'),
    ({'y_train': np.arange(60) / 3}, 'integers'),
    ({'y_train': np.arange(60) % 3 - 1}, 'labels from 0'),
    ({'y_train': np.full(60, 10**9)}, 'fewer classes'),
    ({'y_train': np.arange(60) % 2 * 2}, "class '1': got no training images"),
    ({'y_train': np.zeros(60, int)}, 'at least 2'),
    ({'class_names': np.array(['a'])}, 'class_names'),
    ({'x_train': _images(4), 'y_train': np.arange(4) % 3}, 'at least 3'),
    ({'x_test': _images(3, size=10), 'y_test': np.arange(3)}, 'want the 9x10x3'),
    ({'x_test': _images(2), 'y_test': np.arange(2)}, "class '2': got no test images"),
  ],
)
def test_an_unsuitable_npz_is_refused_with_the_reason(tmp_path, arrays, wanted):
  name = _write_npz(tmp_path / 'own.npz', **arrays)
  with pytest.raises(DatasetError) as raised:
    datasets.load(name)
  assert 'own.npz' in str(raised.value)
  assert wanted in str(raised.value)
  assert '\n' not in str(raised.value)


class _Evil:
  def __reduce__(self):
    return pytest.fail, ('code was run',)


@pytest.mark.parametrize('content', [b'', b'PK', b'no zip', pickle.dumps(_Evil())])
def test_a_file_that_is_not_an_npz_is_refused_by_name(tmp_path, content):
  (tmp_path / 'own.npz').write_bytes(content)
  with pytest.raises(DatasetError, match=r'own\.npz'):
    datasets.load(f'npz:{tmp_path / "own.npz"}')


def test_an_npz_with_pickles_runs_no_code(tmp_path):
  name = _write_npz(tmp_path / 'own.npz', x_train=np.array([_Evil()], dtype=object))
  with pytest.raises(pytest.fail.Exception, match='code was run'):
    np.load(tmp_path / 'own.npz', allow_pickle=True)['x_train']
  with pytest.raises(DatasetError, match=r'own\.npz'):
    datasets.load(name)


@pytest.mark.parametrize('seed', range(40))
def test_a_damaged_npz_is_read_or_refused_by_name(tmp_path, seed):
  path = tmp_path / 'own.npz'
  name = _write_npz(path)
  rng = np.random.default_rng(seed)
  content = bytearray(path.read_bytes())
  for position in rng.integers(0, len(content), 20):
    content[position] = rng.integers(256)
  path.write_bytes(content[: rng.integers(len(content) // 2, len(content) + 1)])
  try:
    datasets.load(name)
  except DatasetError as error:
    assert 'own.npz' in str(error)


def _break_folder(path, how):
  if how == 'nowhere':
    return f'folder:{path / "nowhere"}', 'nowhere'
  name = _write_folder(path)
  image = path / 'train' / 'dog' / '004.png'
  if how == 'empty class':
    (path / 'train' / 'fox').mkdir()
    return name, 'fox'
  if how == 'another size':
    Image.fromarray(_images(1, size=12)[0]).save(image)
  elif how == 'cut off':
    image.write_bytes(image.read_bytes()[:-40])
  elif how == 'no image':
    image.write_text('no image')
  elif how == 'a pipe':
    image.unlink()
    os.mkfifo(image)
  elif how == 'a broken link':
    image.unlink()
    image.symlink_to('nowhere.png')
  elif how == 'empty':
    image.write_bytes(b'')
  elif how == 'no folder below train':
    shutil.rmtree(path / 'train')
    (path / 'train').mkdir()
    return name, 'one per class'
  elif how == 'unknown class':
    _write_folder(path, (('cat', 2), ('dog', 2), ('fox', 2)), 'test')
    return name, 'fox'
  elif how == 'a class without test images':
    _write_folder(path, (('cat', 2),), 'test')
    return name, 'dog'
  elif how == 'no test images':
    (path / 'test' / 'dog').mkdir(parents=True)
    return name, 'test'
  return name, '004.png'


@pytest.mark.parametrize(
  'how',
  [
    'nowhere',
    'empty class',
    'another size',
    'cut off',
    'no image',
    'a pipe',
    'a broken link',
    'empty',
    'no folder below train',
    'unknown class',
    'a class without test images',
    'no test images',
  ],
)
def test_an_unsuitable_folder_is_refused_with_the_reason(tmp_path, how):
  name, wanted = _break_folder(tmp_path, how)
  with pytest.raises(DatasetError) as raised:
    datasets.load(name)
  assert wanted in str(raised.value)
  assert '\n' not in str(raised.value)
