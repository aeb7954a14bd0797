"""Cells of `benchmarks.results_table`: studies, tests and the paper's Table 1."""

import dataclasses
import functools
import pathlib

import numpy as np
from scipy import stats

from lamarck_jax.study import analysis, plots, results, tables
from lamarck_jax.study.analysis import Comparison
from lamarck_jax.study.results import Setting, Study

RESULTS = pathlib.Path(__file__).parent.parent / 'docs' / 'results'
# Studies whose plan names the tests that decide, test accuracy at the full budget
# against both baselines, corrects over these alone and asks for runs of each setting.
PLANNED = {'cifar10_8px': 20}

TEST, VALIDATION = 'test accuracy', 'best validation accuracy'
BASELINES = ('baseline_1', 'baseline_2')
LABELS = {
  'lamarckian': 'inheritance',
  'baseline_1': 'baseline I',
  'baseline_2': 'baseline II',
}
PAPER_N = 20
# Fewer runs get no p value.
_MIN_N = 5


@functools.cache
def study(name: str) -> Study | None:
  """Returns a study below docs/results; None if it has no runs yet."""
  root = RESULTS / name
  return results.collect(root) if (root / 'study.json').exists() else None


@functools.cache
def comparisons(name: str) -> list[Comparison]:
  """Returns all tests of a study, Holm-corrected within each measure."""
  found = study(name)
  return analysis.compare(found) if found else []


def comparison(
  name: str, measure: str, other: str, *, early: bool = False
) -> Comparison | None:
  """Returns a study's test against a setting at the full budget, or None.

  Args:
    name: The study.
    measure: `TEST` or `VALIDATION`.
    other: The setting that inheritance is compared with.
    early: Whether inheritance is at the first checkpoint instead.

  Returns:
    The test, whose Holm correction is the plan's if it names the test.
  """
  found = study(name)
  if found is None or not found.checkpoint_epochs:
    return None
  first, last = found.checkpoint_epochs[0], found.budget_epochs
  wanted = (measure, first if early else last, other, last)
  tests = {
    (c.measure, c.greater_epochs, c.other, c.other_epochs): c for c in comparisons(name)
  }
  test = tests.get(wanted)
  if test and name in PLANNED and measure == TEST and not early:
    family = [tests[measure, last, baseline, last] for baseline in BASELINES]
    corrected = dict(zip(BASELINES, analysis.holm([c.p for c in family])))
    # Settings beyond the plan are described, not tested.
    return dataclasses.replace(test, p_holm=corrected.get(other, np.nan))
  return test


# ------------------------------------------------------------------------------
# Cells
# ------------------------------------------------------------------------------


def p_value(p: float) -> str:
  """Returns a p value with two digits, or one if it is below 0.01."""
  if np.isnan(p):
    return '-'
  if p < 1e-6:
    return f'{p:.0e}'
  digits = 2 if p >= 0.0095 else 1
  return np.format_float_positional(float(f'{p:.{digits}g}'), trim='-')


def mean_std(sample: list[float]) -> str:
  """Returns mean and standard deviation of accuracies, in percent."""
  summary = analysis.summarise(sample)
  if not summary.n:
    return '-'
  std = '' if summary.n == 1 else f'±{100 * summary.std:.1f}'
  return f'{100 * summary.mean:.1f}{std}'


def with_range(sample: list[float]) -> str:
  """Returns mean, standard deviation and range of accuracies, in percent."""
  if not sample:
    return '-'
  return f'{mean_std(sample)} ({100 * min(sample):.1f} to {100 * max(sample):.1f})'


def test_cells(test: Comparison | None) -> list[str]:
  """Returns the cells of difference, effect, p and Holm's p; p from five runs on."""
  if test is None:
    return [''] * 4
  cells = [tables.points(test), f'{test.effect:.2f}']
  if min(test.n) < _MIN_N:
    return [*cells, f'n < {_MIN_N}', '']
  return [*cells, p_value(test.p), p_value(test.p_holm)]


def papers(found: Study) -> list[Setting]:
  """Returns the settings of a study that the paper compares, in its order."""
  by_name = {setting.name: setting for setting in found.settings}
  return [by_name[name] for name in LABELS if name in by_name]


def state(name: str) -> str:
  """Returns `, interim` if a study has fewer runs than its plan asks for."""
  found = study(name)
  if found is None or name not in PLANNED:
    return ''
  n = min(len(setting.runs) for setting in papers(found))
  return ', interim' if n < PLANNED[name] else ''


def label(setting: Setting) -> str:
  """Returns what tables call a setting."""
  return LABELS.get(setting.name, setting.name.replace('_', ' '))


def link(name: str) -> str:
  """Returns a link to a study, from docs/results.md."""
  return f'[{name}](results/{name}/README.md){state(name)}'


def paper(inheritance: str, e: int, epochs: int) -> dict[str, float]:
  """Returns a row of the paper's Table 1 on CIFAR-10."""
  (row,) = (
    row
    for row in plots.paper_table_1()
    if row['dataset'] == 'cifar10'
    and (row['inheritance'], row['e'], row['epochs']) == (inheritance, e, epochs)
  )
  return row


PAPER_SETTINGS = {
  'inheritance': ('lamarckian', 4),
  'baseline I': ('none', 4),
  'baseline II': ('none', 16),
}


def paper_cell(name: str, epochs: int) -> str:
  """Returns mean, standard deviation and range of the paper, as `with_range` does."""
  row = paper(*PAPER_SETTINGS[name], epochs)
  return f'{row["mean"]}±{row["std"]} ({row["min"]} to {row["max"]})'


def paper_difference(other: str, epochs: int, other_epochs: int) -> str:
  """Returns inheritance less another, with Welch's 95% interval, in points."""
  x = paper(*PAPER_SETTINGS['inheritance'], epochs)
  y = paper(*PAPER_SETTINGS[other], other_epochs)
  variances = np.array([x['std'], y['std']]) ** 2 / PAPER_N
  error = np.sqrt(variances.sum())
  freedom = variances.sum() ** 2 / (variances**2).sum() * (PAPER_N - 1)
  margin = stats.t.ppf(0.975, freedom) * error
  difference = x['mean'] - y['mean']
  low, high = difference - margin, difference + margin
  return f'{difference:+.1f} ({low:+.1f} to {high:+.1f})'


@functools.cache
def share(name: str, other: str) -> str:
  """Returns the budget that reaches a setting's final mean validation accuracy."""
  found = study(name)
  assert found
  settings = {setting.name: setting for setting in found.settings}
  value = analysis.data_efficiency(found, found.settings[0], settings[other])
  if value is None:
    return '-'

  def text(part: float) -> str:
    return 'over 100%' if np.isinf(part) else f'{part:.0%}'

  return f'{text(value.share)} ({text(value.low)} to {text(value.high)})'


def number_range(numbers: list[int]) -> str:
  """Returns the least and the greatest number, or the one that they all are."""
  low, high = min(numbers), max(numbers)
  return str(low) if low == high else f'{low} to {high}'
