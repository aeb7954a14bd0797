import math

import numpy as np
import pytest
import scipy.stats

from lamarck_jax.study import analysis, results, tables


@pytest.fixture
def make_study(make_run):
  """Makes a study of two settings, by their runs' curves of best fitness."""

  def make(first, second, budget=12):
    settings = [
      results.Setting(
        name,
        'none',
        4,
        tuple(
          make_run(i, curve, {budget: curve[-1]}) for i, curve in enumerate(curves)
        ),
        {},
      )
      for name, curves in (('first', first), ('second', second))
    ]
    return results.Study('digits', budget, (budget,), tuple(settings))

  return make


def test_a_summary_agrees_with_numpy():
  values = [0.1, 0.5, 0.25]
  summary = analysis.summarise(values)
  assert summary.n == 3
  assert (summary.min, summary.max) == (0.1, 0.5)
  assert summary.mean == pytest.approx(np.mean(values))
  assert summary.std == pytest.approx(np.std(values, ddof=1))


def test_one_value_has_no_deviation_and_none_has_no_mean():
  assert math.isnan(analysis.summarise([0.5]).std)
  assert analysis.summarise([]).n == 0
  assert math.isnan(analysis.summarise([]).mean)


def test_comparisons_are_one_sided_and_agree_with_scipy(make_study):
  rng = np.random.default_rng(0)
  first, second = rng.uniform(0.2, 1, (7, 3)), rng.uniform(0, 0.8, (9, 3))
  study = make_study(first.tolist(), second.tolist())
  comparison = next(c for c in analysis.compare(study) if c.measure == 'test accuracy')
  u, p = scipy.stats.mannwhitneyu(first[:, -1], second[:, -1], alternative='greater')
  assert (comparison.u, comparison.p) == (u, p)
  assert comparison.n == (7, 9)
  wins = np.mean(first[:, None, -1] > second[None, :, -1])
  assert comparison.effect == pytest.approx(wins)


def test_intervals_are_those_of_resampled_runs(make_study):
  rng = np.random.default_rng(0)
  first, second = rng.uniform(0.2, 1, (12, 1)), rng.uniform(0, 0.8, (9, 1))
  study = make_study(first.tolist(), second.tolist())
  comparison = next(c for c in analysis.compare(study) if c.measure == 'test accuracy')
  difference, effect = first.mean() - second.mean(), comparison.effect
  assert comparison.difference == pytest.approx(difference)
  desired = scipy.stats.bootstrap(
    (first[:, 0], second[:, 0]),
    lambda x, y: np.mean(x) - np.mean(y),
    vectorized=False,
    method='percentile',
    rng=0,
  ).confidence_interval
  assert comparison.difference_interval == pytest.approx(tuple(desired), abs=0.02)
  assert comparison.difference_interval.low < difference
  assert difference < comparison.difference_interval.high
  assert 0 <= comparison.effect_interval.low < effect
  assert effect < comparison.effect_interval.high <= 1
  assert analysis.compare(study) == analysis.compare(study)


def test_samples_that_do_not_overlap_have_an_effect_of_one(make_study):
  study = make_study([(0.7,), (0.8,), (0.9,)], [(0.1,), (0.2,)])
  comparison = next(c for c in analysis.compare(study) if c.measure == 'test accuracy')
  assert comparison.effect == 1
  assert comparison.effect_interval == pytest.approx((1, 1))
  assert comparison.difference == pytest.approx(0.65)


def test_early_checkpoints_are_also_compared_with_the_last_of_the_others(study):
  found = {
    (c.greater_epochs, c.other_epochs)
    for c in analysis.compare(study)
    if c.measure == 'test accuracy'
  }
  assert found == {(4, 4), (12, 12), (4, 12)}


def test_validation_accuracy_is_compared_along_the_budget_too(study):
  found = {
    (c.greater_epochs, c.other_epochs)
    for c in analysis.compare(study)
    if c.measure == 'best validation accuracy'
  }
  # At quarters and checkpoints except 3 epochs, before the first evaluation.
  same = {(epochs, epochs) for epochs in (4, 6, 9, 12)}
  assert found == same | {(epochs, 12) for epochs in (4, 6, 9)}


def test_no_comparison_with_fewer_than_two_runs(make_study):
  assert analysis.compare(make_study([(0.1, 0.2)], [(0.1, 0.2)] * 5)) == []


def test_holm_agrees_with_a_computation_by_hand():
  # From Holm's procedure by hand: 4 * 0.005, 3 * 0.01, 2 * 0.03, then the maximum.
  corrected = analysis.holm([0.01, 0.04, 0.03, 0.005])
  np.testing.assert_allclose(corrected, [0.03, 0.06, 0.06, 0.02])
  assert analysis.holm([0.9, 0.8]) == [1.0, 1.0]
  assert analysis.holm([]) == []


def test_data_efficiency_is_the_share_until_the_mean_reaches_the_others_end(
  make_study,
):
  # Means of the first: 0.2, 0.5, 0.8 after 4, 8, 12 of 12 epochs.
  study = make_study([(0.1, 0.4, 0.7), (0.3, 0.6, 0.9)], [(0.1, 0.2, 0.5)] * 3)
  efficiency = analysis.data_efficiency(study, *study.settings)
  assert efficiency.target == pytest.approx(0.5)
  assert efficiency.share == pytest.approx(8 / 12)
  # Both runs 0.4 -> 12 epochs; both 0.6 -> 8 epochs.
  assert efficiency.low == pytest.approx(8 / 12)
  assert efficiency.high == pytest.approx(1)


def test_data_efficiency_is_infinite_if_the_target_is_not_reached(make_study):
  study = make_study([(0.1, 0.2, 0.3)] * 4, [(0.1, 0.2, 0.5)] * 3)
  efficiency = analysis.data_efficiency(study, *study.settings)
  assert efficiency.share == efficiency.low == efficiency.high == math.inf
  assert 'more than 100%' in tables.report(study)


def test_an_evaluation_that_exceeds_the_budget_counts_at_the_end(make_study):
  study = make_study([(0.1, 0.1, 0.7)] * 3, [(0.1, 0.2, 0.5)] * 3, budget=10)
  effects = {
    (c.greater_epochs, c.other_epochs): c.effect for c in analysis.compare(study)
  }
  assert effects[10, 10] == 1  # 0.7 against 0.5, after 12 epochs each.
  assert effects[7, 10] == 0  # 0.1 after 4.
