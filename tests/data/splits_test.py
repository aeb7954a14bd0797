"""Splits are fit to learn from: every class in each, the same for every order."""

import hashlib
import itertools
import logging

import numpy as np
import pytest

from lamarck_jax.data import datasets, splits
from lamarck_jax.data.datasets import DatasetError
from lamarck_jax.data.source import Examples, Source, digests


def _examples(counts, seed=0):
  """Returns random images, sorted by class as many sets are stored."""
  shape = (sum(counts), 8, 8, 1)
  images = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
  labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
  return Examples(images, labels, digests(images))


def _source(counts, test_counts=None):
  test = None if test_counts is None else _examples(test_counts, seed=1)
  class_names = tuple(f'class {number}' for number in range(len(counts)))
  return Source(_examples(counts), test, class_names)


def _take(source, indices):
  """Returns some of the examples of a source, without a test split."""
  train = source.train
  arrays = (train.images, train.labels, train.digests)
  return Source(
    Examples(*(array[indices] for array in arrays)), None, source.class_names
  )


def _split(source, num_train=None, num_validation=None):
  return splits.split('own', source, num_train, num_validation)


def _contents(split):
  return {image.tobytes() for image in split.images}


def _counts(split, num_classes):
  return np.bincount(split.labels, minlength=num_classes).tolist()


def test_a_set_that_is_sorted_by_class_has_all_classes_in_proportion():
  source = _source([100] * 10, [10] * 10)
  train, validation, _ = _split(source)
  assert _counts(train, 10) == [90] * 10
  assert _counts(validation, 10) == [10] * 10
  assert _counts(_split(source, num_train=300)[0], 10) == [30] * 10
  # Mixed, not class by class.
  assert len(set(train.labels[:100])) == 10


@pytest.mark.parametrize('rare', range(3, 13))
def test_every_class_is_in_every_split_or_one_line_says_why_not(rare):
  source, num_classes = _source([60, 30, rare]), 3
  sizes = (None, 1, 2, 3, 7, 20, 40, 75)
  num_refused = 0
  for num_train, num_validation in itertools.product(sizes, sizes):
    try:
      chosen = _split(source, num_train, num_validation)
    except DatasetError as error:
      assert 'dataset.num_' in str(error) and '\n' not in str(error)
      num_refused += 1
      continue
    for split in chosen:
      assert all(_counts(split, num_classes))
    assert num_train in (None, len(chosen[0].labels))
    assert num_validation in (None, len(chosen[1].labels))
    contents = [_contents(split) for split in chosen]
    assert sum(map(len, contents)) == len(set.union(*contents))
  assert 0 < num_refused <= 40


@pytest.mark.parametrize('counts', [(9, 2), (9, 0), (2, 2)])
def test_a_class_too_small_for_three_splits_is_named(counts):
  with pytest.raises(DatasetError, match=r"class 'class [01]': got .* at least 3"):
    _split(_source(counts))


def test_a_class_without_test_images_is_named():
  with pytest.raises(DatasetError, match="class 'class 1': got no test images"):
    _split(_source([9, 9], [5, 0]))


def test_a_class_with_fewer_than_a_handful_is_told(caplog):
  with caplog.at_level(logging.WARNING):
    _split(_source([60, 5]))
  assert 'fewer than 5 training images: class 1 (3)' in caplog.text
  caplog.clear()
  with caplog.at_level(logging.WARNING):
    _split(_source([60, 12]))
  assert 'training images' not in caplog.text


def test_a_validation_split_of_few_images_is_told(caplog):
  source = _source([70, 70])
  with caplog.at_level(logging.WARNING):
    _split(source, num_validation=29)
  assert '29 validation images: fitness moves in steps of 1/29' in caplog.text
  caplog.clear()
  with caplog.at_level(logging.WARNING):
    _split(source, num_validation=30)
  assert not caplog.text


def test_the_order_of_the_files_does_not_matter():
  source = _source([30, 40])
  shuffled = _take(source, np.random.default_rng(0).permutation(70))
  for first, second in zip(_split(source), _split(shuffled)):
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)


def test_new_images_move_few_others_between_splits():
  source = _source([300, 300])
  before = [_contents(split) for split in _split(source)]
  keep = np.random.default_rng(0).permutation(600)[:570]
  after = [_contents(split) for split in _split(_take(source, keep))]
  moved = 570 - sum(len(old & new) for old, new in zip(before, after))
  assert moved < 25


def test_fewer_training_images_are_a_part_of_more():
  source = _source([50, 30, 20])
  train, validation, test = _split(source, num_validation=10)
  small = _split(source, num_train=20, num_validation=10)
  other = _split(source, num_train=20, num_validation=30)
  assert _contents(small[0]) < _contents(train)
  assert _contents(small[0]) == _contents(other[0])
  for old, new in zip((validation, test), small[1:]):
    np.testing.assert_array_equal(old.images, new.images)


def test_copies_of_an_image_stay_on_one_side(caplog):
  chosen = _split(_take(_source([60, 60]), np.arange(120).repeat(3)))
  contents = [_contents(split) for split in chosen]
  assert sum(map(len, contents)) == 120
  sizes = [len(split.labels) for split in chosen]
  assert sum(sizes) == 360
  np.testing.assert_allclose(sizes, [270, 30, 60], atol=6)
  assert not caplog.text


def test_copies_that_cannot_be_kept_apart_are_told(caplog):
  with caplog.at_level(logging.WARNING):
    chosen = _split(_take(_source([30, 30]), np.repeat([0, 30], 30)))
  assert all(all(_counts(split, 2)) for split in chosen)
  assert 'validation and test images are equal to training images' in caplog.text


def test_test_images_among_the_training_images_are_told(caplog):
  source = _source([30, 30])
  test = _take(source, np.arange(0, 60, 6)).train
  with caplog.at_level(logging.WARNING):
    chosen = _split(Source(source.train, test, source.class_names))
  assert len(chosen[2].labels) == 10
  assert 'are equal to training images' in caplog.text


def test_published_sets_keep_their_order():
  source = _source([40, 20], [5, 5])
  published = Source(source.train, source.test, source.class_names, is_published=True)
  train, validation, test = splits.split('digits', published, 10, 6)
  np.testing.assert_array_equal(train.images, source.train.images[:10])
  np.testing.assert_array_equal(validation.images, source.train.images[-6:])
  np.testing.assert_array_equal(test.images, source.test.images)


def test_the_digits_are_split_as_in_the_published_results():
  dataset = datasets.load('digits')
  digest = hashlib.sha256()
  for split in (dataset.train, dataset.validation, dataset.test):
    digest.update(split.images.tobytes())
    digest.update(split.labels.tobytes())
  assert digest.hexdigest()[:32] == '65b15f6d1fa4914ff22109a4e05c9c19'
