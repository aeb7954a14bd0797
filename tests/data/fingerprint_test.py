"""A fingerprint is equal for equal data, and says what differs in others."""

import dataclasses
import json

import numpy as np
import pytest

from lamarck_jax.data import datasets, fingerprint
from lamarck_jax.data.fingerprint import Fingerprint


def test_equal_data_have_equal_fingerprints_also_read_back_from_json(tiny_dataset):
  found = fingerprint.take(tiny_dataset)
  assert found.differences(fingerprint.take(tiny_dataset)) == []
  assert Fingerprint.from_json(json.loads(json.dumps(found.to_json()))) == found
  assert found.description == {
    name: value for name, value in tiny_dataset.description.items() if name != 'name'
  }


def test_the_statistics_are_those_that_images_are_standardised_with(tiny_dataset):
  found = fingerprint.take(tiny_dataset)
  mean, std = datasets.channel_statistics(tiny_dataset.train.images)
  assert np.float32(found.mean) == mean
  assert np.float32(found.std) == std


def _changed(dataset: datasets.Dataset, what: str) -> datasets.Dataset:
  images, labels = dataset.test.images.copy(), dataset.test.labels.copy()
  names = dataset.class_names
  match what:
    case 'pixel':
      images[3, 2, 1, 0] ^= 1
    case 'label':
      labels[0] = (labels[0] + 1) % 3
    case 'order':
      images, labels = images[::-1], labels[::-1]
    case 'size':
      images, labels = images[1:], labels[1:]
    case 'dtype':
      labels = labels.astype(np.int64)
    case 'added':
      names = (*names, 'd')
    case 'renamed':
      names = ('a', 'B', 'c')
    case 'swapped':
      names = ('b', 'a', 'c')
  return dataclasses.replace(
    dataset, test=datasets.Split(images, labels), class_names=names
  )


@pytest.mark.parametrize(
  ('what', 'words'),
  [
    ('pixel', ['other images, or another order of them, in test']),
    ('label', ['other labels in test']),
    ('order', ['other labels or images, or another order of them, in test']),
    ('size', ['18 test images instead of 19']),
    ('dtype', ['other labels in test']),
    ('added', ["class 'd' added"]),
    ('renamed', ["class 'B' added", "class 'b' missing"]),
    ('swapped', ['the classes in another order']),
  ],
)
def test_every_change_is_found_and_said_in_words(tiny_dataset, what, words):
  before = fingerprint.take(tiny_dataset)
  assert before.differences(fingerprint.take(_changed(tiny_dataset, what))) == words


def test_statistics_alone_may_differ_by_rounding_but_by_no_more(tiny_dataset):
  found = fingerprint.take(tiny_dataset)
  rounded = dataclasses.replace(found, std=(found.std[0] * (1 + 1e-7),))
  assert found.differences(rounded) == []
  other = dataclasses.replace(found, std=(found.std[0] * 1.01,))
  assert found.differences(other) == ['another std of the channels']


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('image_shape', [8, 8]),
    ('image_shape', [8, 8, '1']),
    ('image_shape', [8, 8, 0]),
    ('class_names', []),
    ('class_names', [1, 2]),
    ('mean', [1.0, 2.0]),
    ('mean', ['1']),
    ('std', [0.0]),
    ('std', 3),
    ('splits', {}),
    ('splits', {'train': {}}),
    ('splits', None),
  ],
)
def test_json_of_the_wrong_form_is_refused(tiny_dataset, field, value):
  content = json.loads(json.dumps(fingerprint.take(tiny_dataset).to_json()))
  with pytest.raises(ValueError, match='got'):
    Fingerprint.from_json({**content, field: value})
