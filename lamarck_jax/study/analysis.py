"""Statistical tests of a study (Sections 4.1 and 4.3)."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import math
from typing import NamedTuple

import numpy as np
import scipy.stats

from lamarck_jax.study.results import Setting, Study

_NUM_RESAMPLES = 9999
_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Summary:
  """Summary statistics of a sample, as Table 1 reports them.

  Attributes:
    n: Size of the sample.
    min: Minimum; NaN for an empty sample, as are the others.
    mean: Mean.
    std: Standard deviation with n - 1 in its denominator; NaN below two values.
    max: Maximum.
  """

  n: int
  min: float
  mean: float
  std: float
  max: float


def summarise(sample: Sequence[float]) -> Summary:
  """Returns the summary statistics of a sample."""
  values = np.asarray(sample, float)
  n = len(values)
  if not n:
    return Summary(0, math.nan, math.nan, math.nan, math.nan)
  std = float(values.std(ddof=1)) if n > 1 else math.nan
  return Summary(n, float(values.min()), float(values.mean()), std, float(values.max()))


class Interval(NamedTuple):
  """A 95% percentile bootstrap interval over the runs of both settings."""

  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A one-sided Mann-Whitney U test of whether one setting's values are greater.

  Attributes:
    measure: The measure that is compared.
    greater: The setting that is greater under the alternative hypothesis.
    greater_epochs: The budget at which it is measured, in epochs.
    other: The setting that it is compared with.
    other_epochs: The budget at which that one is measured.
    n: Sizes of both samples.
    u: The U statistic of the first sample.
    p: p value, not corrected.
    p_holm: p value with Holm's correction over the tests of one measure.
    effect: U / (n1 n2): the probability that a value of the first sample is greater
      than one of the second, ties counted half. One half is no difference.
    effect_interval: Its interval.
    difference: Mean of the first sample less that of the second.
    difference_interval: Its interval.
  """

  measure: str
  greater: str
  greater_epochs: int
  other: str
  other_epochs: int
  n: tuple[int, int]
  u: float
  p: float
  p_holm: float
  effect: float
  effect_interval: Interval
  difference: float
  difference_interval: Interval


# Returns the values of a setting's runs within a budget of epochs.
_Sample = Callable[[Setting, int], list[float]]


def compare(study: Study) -> list[Comparison]:
  """Tests the first setting against each of the others.

  Test accuracy is compared at each checkpoint's budget, best validation accuracy at
  these and at each quarter of the budget. Each is compared at equal budgets, and at the
  earlier ones also with the others' last (the paper's claim of data efficiency). Left
  out are budgets that a setting does not have, and samples of fewer than two values.

  Returns:
    The comparisons, Holm-corrected within each measure.
  """
  comparisons = []
  for measure, sample, budgets in _measures(study):
    family = list(_family(study, measure, sample, budgets))
    corrected = holm([comparison.p for comparison in family])
    comparisons += [
      dataclasses.replace(comparison, p_holm=p)
      for comparison, p in zip(family, corrected)
    ]
  return comparisons


def _measures(study: Study) -> list[tuple[str, _Sample, Sequence[int]]]:
  """Returns each measure's name, its sample, and the budgets in epochs, ascending."""

  def best_fitnesses(setting: Setting, epochs: int) -> list[float]:
    budget = study.budget_of(setting)
    # The last evaluation of a run may exceed the budget, and counts all the same.
    return setting.best_fitnesses(epochs if epochs < budget else math.inf)

  checkpoints = study.checkpoint_epochs
  quarters = [study.budget_epochs * quarter // 4 for quarter in range(1, 5)]
  return [
    ('test accuracy', Setting.test_accuracies, checkpoints),
    (
      study.selected_name,
      best_fitnesses,
      sorted({*checkpoints, *quarters, *map(study.budget_of, study.settings)}),
    ),
  ]


def _family(
  study: Study, measure: str, sample: _Sample, budgets: Sequence[int]
) -> Iterator[Comparison]:
  """Yields the tests of one measure, which Holm's correction takes together."""
  first = study.settings[0]
  for other in study.settings[1:]:
    own = [n for n in budgets if n <= study.budget_of(first)]
    others = [n for n in budgets if n <= study.budget_of(other)]
    pairs = [(epochs, epochs) for epochs in own if epochs in others]
    pairs += [(epochs, others[-1]) for epochs in own if others and epochs < others[-1]]
    for epochs, other_epochs in pairs:
      x = _without_nan(sample(first, epochs))
      y = _without_nan(sample(other, other_epochs))
      if min(len(x), len(y)) < 2:
        continue
      u, p = scipy.stats.mannwhitneyu(x, y, alternative='greater')
      effect_interval, difference_interval = _intervals(np.array(x), np.array(y))
      yield Comparison(
        measure,
        first.name,
        epochs,
        other.name,
        other_epochs,
        (len(x), len(y)),
        float(u),
        float(p),
        math.nan,
        float(u) / (len(x) * len(y)),
        effect_interval,
        float(np.mean(x) - np.mean(y)),
        difference_interval,
      )


def _intervals(x: np.ndarray, y: np.ndarray) -> tuple[Interval, Interval]:
  """Returns the intervals of the effect and of the difference of two samples."""
  rng = np.random.default_rng(0)  # The same runs give the same tables.
  # The weight of each run in each resample [resamples, n]: the resamples themselves
  # would need a loop, or an array of all pairs for each.
  weights_x, weights_y = (
    rng.multinomial(n, np.full(n, 1 / n), _NUM_RESAMPLES) / n for n in (len(x), len(y))
  )
  wins = (x[:, None] > y) + (x[:, None] == y) / 2
  effects = (weights_x @ wins * weights_y).sum(axis=1)
  return _interval(effects), _interval(weights_x @ x - weights_y @ y)


def _interval(resampled: np.ndarray) -> Interval:
  tail = (1 - _CONFIDENCE) / 2
  return Interval(*map(float, np.quantile(resampled, (tail, 1 - tail))))


def _without_nan(sample: Sequence[float]) -> list[float]:
  return [value for value in sample if not math.isnan(value)]


def holm(p_values: Sequence[float]) -> list[float]:
  """Returns p values with Holm's correction for multiple tests (Holm 1979)."""
  corrected = [0.0] * len(p_values)
  greatest = 0.0
  for rank, index in enumerate(np.argsort(p_values, kind='stable')):
    greatest = max(greatest, (len(p_values) - rank) * p_values[index])
    corrected[index] = min(1.0, greatest)
  return corrected


@dataclasses.dataclass(frozen=True)
class DataEfficiency:
  """The share of the budget in which one setting reaches another's final accuracy.

  Attributes:
    faster: The setting that is claimed to be faster.
    other: The other one.
    target: The other one's mean best validation accuracy at the end.
    share: Share of the other one's budget after which the faster one's mean reaches it;
      infinite if it does not. The paper's "75 % less" is a share of 0.25.
    low: Lower end of the share's 95% bootstrap interval.
    high: Upper end; infinite where the target is not reached.
  """

  faster: str
  other: str
  target: float
  share: float
  low: float
  high: float


def data_efficiency(
  study: Study, faster: Setting, other: Setting, seed: int = 0
) -> DataEfficiency | None:
  """Returns the data efficiency of a setting compared with another.

  The interval is a percentile bootstrap over the runs of both settings.

  Args:
    study: The study.
    faster: The setting that is claimed to be faster.
    other: The other one.
    seed: Seed of the resampling.

  Returns:
    The data efficiency, or None if a setting has fewer than two runs.
  """
  grid = sorted({epochs for run in faster.runs for epochs in run.epochs})
  curves = np.array([[run.best_fitness_at(n) for n in grid] for run in faster.runs])
  finals = np.array(other.best_fitnesses(math.inf))
  if min(len(curves), len(finals)) < 2:
    return None

  def share(rows: np.ndarray, other_rows: np.ndarray) -> float:
    reached = curves[rows].mean(axis=0) >= finals[other_rows].mean()
    if not reached.any():
      return math.inf
    return grid[int(reached.argmax())] / study.budget_of(other)

  samples = np.arange(len(curves)), np.arange(len(finals))
  rng = np.random.default_rng(seed)
  resampled = [
    share(*(rng.choice(sample, len(sample)) for sample in samples))
    for _ in range(_NUM_RESAMPLES)
  ]
  tail = (1 - _CONFIDENCE) / 2
  # Shares may be infinite, and interpolating between infinities gives NaN.
  low, high = np.quantile(resampled, (tail, 1 - tail), method='inverted_cdf')
  return DataEfficiency(
    faster.name, other.name, float(finals.mean()), share(*samples), low, high
  )
