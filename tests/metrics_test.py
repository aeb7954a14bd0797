import numpy as np
import pytest
import sklearn.metrics

from lamarck_jax import config, metrics


def test_measures_agree_with_scikit_learn():
  rng = np.random.default_rng(0)
  labels = rng.choice(4, size=200, p=[0.7, 0.2, 0.07, 0.03])
  predicted = np.where(rng.random(200) < 0.6, labels, rng.integers(4, size=200))
  confusion = sklearn.metrics.confusion_matrix(labels, predicted)
  measures = metrics.measures(confusion)
  assert measures['accuracy'] == pytest.approx(
    sklearn.metrics.accuracy_score(labels, predicted)
  )
  assert measures['balanced_accuracy'] == pytest.approx(
    sklearn.metrics.balanced_accuracy_score(labels, predicted)
  )
  assert metrics.accuracy_by_class(confusion) == pytest.approx(
    sklearn.metrics.recall_score(labels, predicted, average=None)
  )


def test_a_class_without_examples_has_no_accuracy_and_no_part_in_the_balanced_one():
  confusion = np.array([[3, 1, 0], [0, 0, 0], [0, 1, 1]])
  assert metrics.accuracy_by_class(confusion) == [0.75, None, 0.5]
  assert metrics.balanced_accuracy(confusion) == 0.625
  assert metrics.accuracy(confusion) == 4 / 6


def test_every_measure_can_be_the_fitness():
  assert config.FITNESS_MEASURES == metrics.MEASURES
