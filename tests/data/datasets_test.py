"""Loading data sets by name: splits, sizes and statistics."""

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from lamarck_jax import errors
from lamarck_jax.data import datasets
from tests.data.conftest import REPOSITORY, Place, counts, make_archives


def test_digits_splits_hold_every_example_exactly_once() -> None:
  from sklearn import datasets as sklearn_datasets

  digits = datasets.load('digits')
  source = sklearn_datasets.load_digits()
  expected = datasets.Split(
    np.rint(source.images * 255 / 16).astype(np.uint8), source.target
  )

  sizes = [len(s.labels) for s in (digits.train, digits.validation, digits.test)]
  assert sizes == [1137, 300, 360]
  assert digits.image_shape == (8, 8, 1)
  assert digits.num_classes == 10
  assert digits.class_names == tuple('0123456789')
  for split in (digits.train, digits.validation, digits.test):
    assert split.images.dtype == np.uint8
    assert split.labels.dtype == np.int32
    assert set(split.labels.tolist()) == set(range(10))
  assert digits.train.images.max() == 255
  assert counts(digits.train, digits.validation, digits.test) == counts(expected)
  # They are read from scikit-learn's file without it, in an order of their own.
  order = np.random.RandomState(0).permutation(len(source.target))
  parts = (digits.train, digits.validation, digits.test)
  images = np.concatenate([split.images for split in parts])[..., 0]
  np.testing.assert_array_equal(images, expected.images[order])
  labels = np.concatenate([split.labels for split in parts])
  np.testing.assert_array_equal(labels, expected.labels[order])


def test_fewer_training_examples_leave_the_other_splits_as_they_are() -> None:
  whole, small = datasets.load('digits'), datasets.load('digits', num_train=100)

  np.testing.assert_array_equal(small.train.images, whole.train.images[:100])
  np.testing.assert_array_equal(small.validation.images, whole.validation.images)
  np.testing.assert_array_equal(small.test.labels, whole.test.labels)


@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist', 'cifar10', 'cifar100'])
def test_the_papers_data_sets_are_split_by_the_order_of_tfds(
  name: str, place: Place
) -> None:
  place.put(name, make_archives(name)[1])
  whole = place.load(name)
  small = place.load(name, num_train=10, num_validation=3)
  for array in ('images', 'labels'):
    stored = np.concatenate(
      [getattr(whole.train, array), getattr(whole.validation, array)]
    )
    np.testing.assert_array_equal(getattr(small.train, array), stored[:10])
    np.testing.assert_array_equal(getattr(small.validation, array), stored[-3:])


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'num_train': 1138}, r'dataset\.num_train: got 1138, want 1 to 1137'),
    ({'num_train': 0}, r'dataset\.num_train: got 0'),
    ({'num_train': -5}, r'dataset\.num_train: got -5'),
    (
      {'num_train': 1000, 'num_validation': 500},
      r'dataset\.num_train: got 1000.* 937',
    ),
    ({'num_validation': 1437}, r'dataset\.num_validation: got 1437, want 1 to 1436'),
    ({'num_validation': 0}, r'dataset\.num_validation: got 0'),
    ({'image_size': 0}, r'dataset\.image_size: got 0'),
  ],
)
def test_impossible_numbers_name_the_field(
  kwargs: dict[str, Any], message: str
) -> None:
  with pytest.raises(datasets.DatasetError, match=message):
    datasets.load('digits', **kwargs)


def test_channel_statistics_are_those_of_numpy() -> None:
  pixels = np.random.default_rng(0).integers(0, 256, (50, 5, 7, 3)).astype(np.uint8)
  pixels[..., 2] = 9  # A constant channel must not divide by zero.
  mean, std = datasets.channel_statistics(pixels)
  np.testing.assert_allclose(mean, pixels.astype(float).mean((0, 1, 2)), rtol=1e-6)
  np.testing.assert_allclose(
    std[:2], pixels.astype(float).std((0, 1, 2))[:2], rtol=1e-6
  )
  assert std[2] == 1


def test_images_are_resized_by_area_averaging() -> None:
  images = datasets.load('digits').test.images.astype(np.float64)
  resized = datasets.load('digits', image_size=4)

  assert resized.image_shape == (4, 4, 1)
  means = images.reshape(-1, 4, 2, 4, 2, 1).mean(axis=(2, 4))
  # Pillow rounds twice: after averaging along rows, and then along columns.
  assert np.abs(resized.test.images - means).max() <= 1


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(place: Place) -> None:
  assert issubclass(datasets.DatasetError, errors.UserError)
  for name in ('mnits', '', '../mnist', 'some:thing', 'a/b/c', 'mnist:9.9.9'):
    start = time.monotonic()
    message = place.error(name)
    assert time.monotonic() - start < 5
    assert repr(name) in message
    assert 'digits, mnist, fashion_mnist, cifar10, cifar100' in message
  assert not place.data_dir.exists()


def test_a_data_set_that_is_not_prepared_here_says_how_to_prepare_it(
  place: Place,
) -> None:
  message = place.error('kmnist')
  assert 'tfds build kmnist --file_format=array_record' in message
  assert 'dataset.data_dir' in message


def test_a_search_of_digits_imports_no_library_that_it_does_not_use() -> None:
  code = (
    'import sys, lamarck_jax.search, lamarck_jax.report.html_page;'
    "from lamarck_jax.data import datasets; datasets.load('digits');"
    "heavy = {'tensorflow_datasets', 'tensorflow', 'sklearn', 'PIL', 'requests',"
    " 'scipy.linalg', 'scipy.stats', 'matplotlib', 'plotly', 'pandas'};"
    'sys.exit(str(heavy & sys.modules.keys()) if heavy & sys.modules.keys() else 0)'
  )
  subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, check=True)
