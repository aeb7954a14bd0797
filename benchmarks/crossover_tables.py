"""The tables of docs/results/crossover, from its committed files alone.

Their analysis is planned on that page. Tests are two-sided: Wilcoxon's signed-rank test
of pairs, Mann-Whitney's of searches. The states of one search are not independent, so
intervals are bootstrapped over searches, and the test is given for their means as well.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import json
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import crossover_births
from benchmarks.results_cells import RESULTS, mean_std, p_value, study
from lamarck_jax.study import analysis, tables
from lamarck_jax.study.results import Setting

Records = Sequence[Mapping[str, Any]]

NAME = 'crossover'
SEARCHES = f'{NAME}/searches'
# The other arms of the four planned tests, and one that is described alone.
PLANNED = ('mutant', 'leaf_rule', 'unrelated', 'fresh')
DESCRIBED = ('mutant_net2net',)
_NUM_RESAMPLES = 9999
_NUM_RHO_RESAMPLES = 1999  # Ranks take longer.
_NO_RUNS = 'No runs yet.'


@functools.cache
def records() -> Records:
  """Returns the committed records of paired births."""
  return crossover_births.read(RESULTS / NAME / 'births.jsonl')


# ------------------------------------------------------------------------------
# Statistics
# ------------------------------------------------------------------------------


def wilcoxon(differences: np.ndarray) -> float:
  """Returns p of the signed-rank test; 1 if all are 0."""
  return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def mean_interval(values: np.ndarray, seeds: np.ndarray) -> tuple[float, float]:
  """Returns the 95% percentile interval of a mean, with whole searches resampled.

  Args:
    values: A value for each state, [states].
    seeds: The seed of its search, int [states].
  """
  groups = [values[seeds == seed] for seed in np.unique(seeds)]
  sums, sizes = (np.array([f(group) for group in groups]) for f in (np.sum, len))
  rng, n = np.random.default_rng(0), len(groups)
  counts = rng.multinomial(n, np.full(n, 1 / n), _NUM_RESAMPLES)
  return _interval((counts @ sums) / (counts @ sizes))


def rho_interval(
  x: np.ndarray, y: np.ndarray, seeds: np.ndarray
) -> tuple[float, float]:
  """Returns the interval of Spearman's rho, as `mean_interval` does."""
  members = [np.flatnonzero(seeds == seed) for seed in np.unique(seeds)]
  rng = np.random.default_rng(0)
  resampled = []
  for _ in range(_NUM_RHO_RESAMPLES):
    drawn = rng.integers(len(members), size=len(members))
    rows = np.concatenate([members[index] for index in drawn])
    resampled.append(_rho(x[rows], y[rows]))
  return _interval(np.array(resampled))


def _rho(x: np.ndarray, y: np.ndarray) -> float:
  # SciPy's function tests as well, which takes most of the time.
  ranks = stats.rankdata(x), stats.rankdata(y)
  if np.ptp(ranks[0]) == 0 or np.ptp(ranks[1]) == 0:
    return np.nan
  return float(np.corrcoef(*ranks)[0, 1])


def _interval(resampled: np.ndarray) -> tuple[float, float]:
  low, high = np.nanquantile(resampled, (0.025, 0.975))
  return float(low), float(high)


def _group_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
  return np.array([values[groups == group].mean() for group in np.unique(groups)])


def _column(found: Records, name: str, epoch: int) -> np.ndarray:
  """Returns an arm's accuracies in percent after some epochs; -1 is the last."""
  arms = [record['arms'][name] for record in found]
  return np.array([100 * arm['accuracies'][epoch] if arm else np.nan for arm in arms])


def _seeds(found: Records) -> np.ndarray:
  return np.array([record['seed'] for record in found])


def differences(
  found: Records, other: str, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the stitched child's accuracy less another's, in points, and its seed."""
  values = _column(found, 'stitched', epoch) - _column(found, other, epoch)
  known = ~np.isnan(values)
  # Accuracies are counts over examples; what is equal differs by rounding.
  return np.round(values[known], 9), _seeds(found)[known]


# ------------------------------------------------------------------------------
# Paired births
# ------------------------------------------------------------------------------


def arms(found: Records) -> str:
  """Accuracy of each arm before training and after each epoch."""
  epochs = len(found[0]['arms']['stitched']['losses'])
  header = ['Arm, percent', 'n', 'Before training']
  header += [f'After {epoch}' for epoch in range(1, epochs + 1)]
  header += ['R²']
  rows = []
  for name in crossover_births.ARMS:
    cells = []
    for epoch in range(epochs + 1):
      values = _column(found, name, epoch)
      cells.append(_quartiles(values[~np.isnan(values)]))
    arms = [record['arms'][name] for record in found if record['arms'][name]]
    r2 = [arm['r2'] for arm in arms if arm['r2'] is not None]
    row = [name.replace('_', ' '), str(len(arms)), *cells]
    rows.append([*row, _quartiles(np.array(r2), 2) if r2 else ''])
  for place, name in enumerate(('first parent', 'second parent')):
    values = np.array([100 * record['fitness'][place] for record in found])
    blank = [''] * epochs
    rows.append([name, str(len(values)), *blank, _quartiles(values), ''])
  return tables.markdown(header, rows)


def _quartiles(values: np.ndarray, digits: int = 1) -> str:
  low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
  return f'{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})'


def all_differences(found: Records) -> str:
  """The stitched child less each other arm, with the planned tests."""
  header = ['Stitched less', 'When', 'n', 'Median', 'Mean, points']
  header += ['Higher, equal, lower', 'p', 'p Holm', 'p of seed means']
  rows = []
  for when, epoch in (('before training', 0), ('after e epochs', -1)):
    corrected = holm_p_values(found, epoch)
    for other in (*PLANNED, *DESCRIBED):
      values, seeds = differences(found, other, epoch)
      low, high = mean_interval(values, seeds)
      counts = [np.sum(sign * values > 0) for sign in (1, -1)]
      equal = len(values) - sum(counts)
      rows.append(
        [
          other.replace('_', ' '),
          when,
          str(len(values)),
          f'{np.median(values):+.1f}',
          f'{values.mean():+.1f} ({low:+.1f} to {high:+.1f})',
          f'{counts[0]}, {equal}, {counts[1]}',
          p_value(wilcoxon(values)),
          p_value(corrected[other]) if other in corrected else '',
          p_value(wilcoxon(_group_means(values, seeds))),
        ]
      )
  return tables.markdown(header, rows)


def holm_p_values(found: Records, epoch: int) -> dict[str, float]:
  """Returns Holm's p of the planned tests at an epoch, by the other arm."""
  p_values = [wilcoxon(differences(found, other, epoch)[0]) for other in PLANNED]
  return dict(zip(PLANNED, analysis.holm(p_values)))


def correlations(found: Records) -> str:
  """Rank correlations of what a stitched child loses with R² and distance."""
  header = ["Loss of the second parent's accuracy", 'With', 'n', "Spearman's rho", 'p']
  rows = []
  for when, epoch in (('before training', 0), ('after e epochs', -1)):
    second = np.array([100 * record['fitness'][1] for record in found])
    loss = second - _column(found, 'stitched', epoch)
    for name, values in _predictors(found):
      rho, p = stats.spearmanr(loss, values)
      low, high = rho_interval(loss, values, _seeds(found))
      text = f'{rho:+.2f} ({low:+.2f} to {high:+.2f})'
      rows.append([when, name, str(len(loss)), text, p_value(p)])
  return tables.markdown(header, rows)


def _predictors(found: Records) -> Iterator[tuple[str, np.ndarray]]:
  yield 'R²', np.array([record['arms']['stitched']['r2'] for record in found])
  distances = [record['distance'] for record in found]
  yield 'evaluations since the common ancestor', np.array(distances)


def completions(found: Records) -> str:
  """Accuracies after completion from inherited and from fresh weights."""
  found = [record for record in found if 'completions' in record]
  header = ['Weights, percent', 'n', 'Training', 'Validation', 'Test']
  header += ['Test less fresh', 'Higher, equal, lower', 'p']
  rows = []
  values = {
    (name, split): np.array([record['completions'][name][split] for record in found])
    for name in crossover_births.COMPLETED
    for split in ('train', 'validation', 'test')
  }
  for name in crossover_births.COMPLETED:
    row = [name.replace('_', ' '), str(len(found))]
    row += [mean_std(list(values[name, s])) for s in ('train', 'validation', 'test')]
    if name == 'fresh':
      rows.append([*row, '', '', ''])
      continue
    less = np.round(100 * (values[name, 'test'] - values['fresh', 'test']), 9)
    low, high = mean_interval(less, _seeds(found))
    counts = [np.sum(less > 0), np.sum(less == 0), np.sum(less < 0)]
    row.append(f'{less.mean():+.2f} ({low:+.2f} to {high:+.2f})')
    rows.append([*row, ', '.join(map(str, counts)), p_value(wilcoxon(less))])
  return tables.markdown(header, rows)


# ------------------------------------------------------------------------------
# Searches
# ------------------------------------------------------------------------------


def searches() -> str:
  """The searches at equal epochs: the first setting against each other one."""
  found = study(SEARCHES)
  if found is None:
    return _NO_RUNS
  last = found.budget_epochs
  header = [
    'Setting, percent',
    'n',
    'Crossovers per run',
    f'Best validation accuracy @{last}',
  ]
  header += ['Stitched less it, points', 'p', 'p Holm']
  header += [f'Test accuracy @{last}', 'Stitched less it, points', 'p', 'p Holm']
  cells = {}
  for measure in ('validation', 'test'):
    samples = {
      setting.name: np.array(
        setting.best_fitnesses(np.inf)
        if measure == 'validation'
        else setting.test_accuracies(last)
      )
      for setting in found.settings
    }
    first, *others = samples
    p_values = search_p_values(samples)
    corrected = dict(zip(others, analysis.holm([p_values[o] for o in others])))
    for name, sample in samples.items():
      cells[name, measure] = [mean_std(list(sample)), '', '', '']
      if name != first:
        difference = _difference(samples[first], sample)
        p = p_value(p_values[name]), p_value(corrected[name])
        cells[name, measure][1:] = [difference, *p]
  rows = [
    [
      setting.name.replace('_', ' '),
      str(len(setting.runs)),
      _crossovers(setting),
      *cells[setting.name, 'validation'],
      *cells[setting.name, 'test'],
    ]
    for setting in found.settings
  ]
  return tables.markdown(header, rows)


def _crossovers(setting: Setting) -> str:
  """Returns the median number of children of two parents."""
  counts = []
  for run in setting.runs:
    path = RESULTS / SEARCHES / setting.name / f'seed{run.seed}' / 'events.jsonl'
    events = map(json.loads, path.read_text().splitlines())
    counts.append(sum(len(event.get('parents', [])) == 2 for event in events))
  return f'{np.median(counts):g}'


def search_p_values(samples: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Returns p of the first sample against each other, by the other's name."""
  (_, first), *others = samples.items()
  return {
    name: float(stats.mannwhitneyu(first, sample).pvalue) for name, sample in others
  }


def _difference(x: np.ndarray, y: np.ndarray) -> str:
  """Returns the difference of means in points, with its bootstrap interval."""
  rng = np.random.default_rng(0)
  means = (
    rng.choice(sample, (_NUM_RESAMPLES, len(sample))).mean(axis=1) for sample in (x, y)
  )
  resampled = np.subtract(*means)
  low, high = 100 * np.quantile(resampled, (0.025, 0.975))
  return f'{100 * (x.mean() - y.mean()):+.1f} ({low:+.1f} to {high:+.1f})'


def _of_births(table: Callable[[Records], str]) -> Callable[[], str]:
  return functools.cache(lambda: table(records()) if records() else _NO_RUNS)


TABLES: dict[str, Callable[[], str]] = {
  'crossover_arms': _of_births(arms),
  'crossover_differences': _of_births(all_differences),
  'crossover_correlations': _of_births(correlations),
  'crossover_completions': _of_births(completions),
  'crossover_searches': functools.cache(searches),
}
