"""Tests and tables of a study (Sections 4.1 and 4.3, Table 1).

  python -m lamarck_jax.study.analysis DIR

DIR is a study's directory, or one with its results.json.
"""

from collections.abc import Callable, Sequence
import csv
import dataclasses
import io
import math
import pathlib

import numpy as np
import scipy.stats

from lamarck_jax.errors import UserError
from lamarck_jax.runtime import command_line
from lamarck_jax.study import results
from lamarck_jax.study.results import Setting, Study

_NUM_RESAMPLES = 9999
_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Summary:
  """A sample in the terms of Table 1.

  Attributes:
    n: Size of the sample.
    min: Least value; NaN, as the others, where the sample is empty.
    mean: Mean.
    std: Standard deviation with n - 1 in its denominator; NaN below two values.
    max: Greatest value.
  """

  n: int
  min: float
  mean: float
  std: float
  max: float


def summarise(sample: Sequence[float]) -> Summary:
  """Returns the figures of Table 1 for a sample."""
  values = np.asarray(sample, float)
  n = len(values)
  if not n:
    return Summary(0, math.nan, math.nan, math.nan, math.nan)
  std = float(values.std(ddof=1)) if n > 1 else math.nan
  return Summary(n, float(values.min()), float(values.mean()), std, float(values.max()))


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A one-sided Mann-Whitney U test of whether the first setting's values are greater.

  Attributes:
    measure: What is compared.
    greater: The setting that is greater by the alternative hypothesis.
    greater_epochs: The budget at which it is measured.
    other: The setting it is compared with.
    other_epochs: The budget of that one.
    n: Size of both samples.
    u: The statistic of the first sample.
    p: p value, not corrected.
    p_holm: p value with Holm's correction over the tests of one measure.
    effect: U / (n1 n2): the chance that a value of the first sample is greater than
      one of the second, ties counted half. One half is no difference.
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


def compare(study: Study) -> list[Comparison]:
  """Tests the first setting against each of the others.

  On test accuracy at each checkpoint's budget, and on best validation accuracy at these
  and at each quarter of the budget; and at the earlier ones against the others' last
  (the paper's claim of data efficiency). Samples below two values are left out.

  Args:
    study: The study.

  Returns:
    The comparisons, Holm-corrected within each measure.
  """
  if not study.settings:
    return []
  checkpoints = study.checkpoint_epochs
  quarters = [study.budget_epochs * quarter // 4 for quarter in range(1, 5)]
  measures: dict[str, tuple[Callable[[Setting, int], list[float]], Sequence[int]]] = {
    'test accuracy': (Setting.test_accuracies, checkpoints),
    'best validation accuracy': (
      # At the end all of a run counts, an evaluation that exceeds the budget too.
      lambda setting, epochs: setting.best_fitnesses(
        epochs if epochs < study.budget_epochs else math.inf
      ),
      sorted({*checkpoints, *quarters}),
    ),
  }
  first, *others = study.settings
  comparisons = []
  for measure, (sample, budgets) in measures.items():
    pairs = [(epochs, epochs) for epochs in budgets]
    pairs += [(epochs, budgets[-1]) for epochs in budgets[:-1]]
    family = []
    for other in others:
      for epochs, other_epochs in pairs:
        x, y = sample(first, epochs), sample(other, other_epochs)
        x, y = _known(x), _known(y)
        if min(len(x), len(y)) < 2:
          continue
        u, p = scipy.stats.mannwhitneyu(x, y, alternative='greater')
        family.append(
          Comparison(
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
          )
        )
    corrected = holm([comparison.p for comparison in family])
    comparisons += [
      dataclasses.replace(comparison, p_holm=p)
      for comparison, p in zip(family, corrected)
    ]
  return comparisons


def holm(p_values: Sequence[float]) -> list[float]:
  """Returns p values with Holm's correction for testing all of them (Holm 1979)."""
  corrected = [0.0] * len(p_values)
  greatest = 0.0
  for rank, index in enumerate(np.argsort(p_values, kind='stable')):
    greatest = max(greatest, (len(p_values) - rank) * p_values[index])
    corrected[index] = min(1.0, greatest)
  return corrected


@dataclasses.dataclass(frozen=True)
class DataEfficiency:
  """How soon one setting reaches what another reaches with all of its budget.

  Attributes:
    faster: The setting that is to be faster.
    other: The other one.
    target: The other one's mean best validation accuracy at the end.
    share: Share of the budget after which the faster one's mean reaches the target;
      infinite if it does not. The paper's "75 % less" is a share of 0.25.
    low: Lower end of the share's 95% bootstrap interval.
    high: Upper end; infinite where it is not reached.
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
  """Returns the data efficiency of a setting against another.

  The interval is the percentile bootstrap's over the runs of both settings.

  Args:
    study: The study.
    faster: The setting that is to be faster.
    other: The other one.
    seed: Seed of the resampling.

  Returns:
    It, or None where a setting has fewer than two runs.
  """
  grid = sorted({epochs for run in faster.runs for epochs in run.epochs})
  curves = np.array([[run.best_fitness_at(n) for n in grid] for run in faster.runs])
  finals = np.array(other.best_fitnesses(math.inf))
  if min(len(curves), len(finals)) < 2:
    return None

  def share(rows: np.ndarray, other_rows: np.ndarray) -> float:
    reached = curves[rows].mean(axis=0) >= finals[other_rows].mean()
    return (
      grid[int(reached.argmax())] / study.budget_epochs if reached.any() else np.inf
    )

  samples = np.arange(len(curves)), np.arange(len(finals))
  rng = np.random.default_rng(seed)
  resampled = [
    share(*(rng.choice(sample, len(sample)) for sample in samples))
    for _ in range(_NUM_RESAMPLES)
  ]
  tail = (1 - _CONFIDENCE) / 2
  # An interpolation between infinities would be no number.
  low, high = np.quantile(resampled, (tail, 1 - tail), method='inverted_cdf')
  return DataEfficiency(
    faster.name, other.name, float(finals.mean()), share(*samples), low, high
  )


def _known(sample: Sequence[float]) -> list[float]:
  return [value for value in sample if not math.isnan(value)]


# ------------------------------------------------------------------------------
# Tables
# ------------------------------------------------------------------------------


def table(study: Study) -> list[dict[str, str]]:
  """Returns Table 1 of a study: a row per setting, test accuracies in percent.

  Returns:
    The cells, by the name of the column.
  """
  rows = []
  for setting in study.settings:
    row = {
      'data': study.dataset,
      'setting': setting.name,
      'inheritance': setting.inheritance,
      'e': str(setting.epochs_per_evaluation),
    }
    for epochs in study.checkpoint_epochs:
      summary = summarise(setting.test_accuracies(epochs))
      for name in ('min', 'mean', 'std', 'max'):
        row[f'{name}@{epochs}'] = _percent(getattr(summary, name))
      row[f'n@{epochs}'] = str(summary.n)
    flops = [run.flops for run in setting.runs]
    row['mean FLOPs'] = f'{np.mean(flops):.2e}' if flops else '-'
    row['missing runs'] = str(len(setting.missing))
    rows.append(row)
  return rows


def _percent(value: float) -> str:
  return '-' if math.isnan(value) else f'{100 * value:.1f}'


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table."""
  cells = [list(header), *map(list, rows)]
  widths = [max(map(len, column)) for column in zip(*cells)]
  lines = ['| ' + ' | '.join(map(str.ljust, row, widths)) + ' |' for row in cells]
  lines.insert(1, '|' + '|'.join('-' * (width + 2) for width in widths) + '|')
  return '\n'.join(lines)


def report(study: Study) -> str:
  """Returns Table 1, the tests and the data efficiency as text (Markdown)."""
  header = ['data', 'inheritance', 'e']
  for epochs in study.checkpoint_epochs:
    header += [f'{name} @{epochs} epochs' for name in ('min', 'mean', 'max', 'n')]
  header += ['FLOPs per run']
  rows = []
  for row in table(study):
    cells = [row['data'], row['inheritance'], row['e']]
    for n in study.checkpoint_epochs:
      mean = f'{row[f"mean@{n}"]}±{row[f"std@{n}"]}'
      cells += [row[f'min@{n}'], mean, row[f'max@{n}'], row[f'n@{n}']]
    rows.append([*cells, row['mean FLOPs']])
  parts = ['Test accuracy after completion, percent:', markdown_table(header, rows)]

  total = sum(run.flops for setting in study.settings for run in setting.runs)
  num_runs = sum(len(setting.runs) for setting in study.settings)
  parts.append(f'FLOPs of all {num_runs} searches: {total:.2e}')

  comparisons = compare(study)
  if comparisons:
    parts += [
      'One-sided Mann-Whitney U tests (effect: chance that a run of the first is'
      ' better; p Holm: corrected over the tests of a measure):',
      markdown_table(
        ['measure', 'greater', 'than', 'n', 'U', 'effect', 'p', 'p Holm'],
        [
          [
            c.measure,
            f'{c.greater} @{c.greater_epochs}',
            f'{c.other} @{c.other_epochs}',
            f'{c.n[0]}, {c.n[1]}',
            f'{c.u:g}',
            f'{c.effect:.2f}',
            f'{c.p:.2g}',
            f'{c.p_holm:.2g}',
          ]
          for c in comparisons
        ],
      ),
    ]
  if study.settings:
    faster, *others = study.settings
    found = [data_efficiency(study, faster, other) for other in others]
    for efficiency in filter(None, found):
      parts.append(_efficiency_sentence(efficiency))

  for setting in study.settings:
    if setting.missing:
      named = ', '.join(
        f'seed {seed} ({reason})' for seed, reason in setting.missing.items()
      )
      parts.append(f'Missing of {setting.name}: {len(setting.missing)}: {named}')
  return '\n\n'.join(parts)


def _efficiency_sentence(efficiency: DataEfficiency) -> str:
  def text(share: float) -> str:
    return 'more than 100%' if math.isinf(share) else f'{share:.0%}'

  return (
    f'{efficiency.faster} reaches the final mean best validation accuracy of'
    f' {efficiency.other}, {efficiency.target:.3f}, after {text(efficiency.share)} of'
    f' the budget (95% interval {text(efficiency.low)} to {text(efficiency.high)}).'
  )


def to_csv(study: Study) -> str:
  """Returns Table 1 as CSV."""
  rows = table(study)
  file = io.StringIO()
  writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue()


def to_latex(study: Study) -> str:
  """Returns Table 1 as a LaTeX tabular in the paper's layout (needs booktabs)."""
  budgets = study.checkpoint_epochs
  groups = ' & '.join(
    rf'\multicolumn{{3}}{{c}}{{{epochs} total epochs}}' for epochs in budgets
  )
  lines = [
    rf'\begin{{tabular}}{{llr{"rrr" * len(budgets)}r}}',
    r'\toprule',
    rf'\multicolumn{{3}}{{c}}{{Settings}} & {groups} & \\',
    ' & '.join(['Data', 'Inheritance', '$e$'] + ['min', 'mean', 'max'] * len(budgets))
    + r' & FLOPs \\',
    r'\midrule',
  ]
  for row in table(study):
    cells = [_escaped(row['data']), _escaped(row['inheritance']), row['e']]
    for n in budgets:
      mean = rf'${row[f"mean@{n}"]} \pm {row[f"std@{n}"]}$'
      cells += [row[f'min@{n}'], mean, row[f'max@{n}']]
    mantissa, _, exponent = row['mean FLOPs'].partition('e')
    cells.append(rf'${mantissa} \cdot 10^{{{int(exponent)}}}$' if exponent else '-')
    lines.append(' & '.join(cells) + r' \\')
  return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}', ''])


def _escaped(text: str) -> str:
  return text.replace('_', r'\_')


def write_tables(study: Study, directory: str | pathlib.Path) -> None:
  """Writes table.txt (all of `report`), table.csv and table.tex."""
  directory = pathlib.Path(directory)
  (directory / 'table.txt').write_text(report(study) + '\n')
  (directory / 'table.csv').write_text(to_csv(study))
  (directory / 'table.tex').write_text(to_latex(study))


def main(argv: list[str]) -> None:
  """Writes the tables of a study beside it, and prints them."""
  if len(argv) != 2:
    raise UserError(
      f'arguments: got {len(argv) - 1}, want one, the directory of a study'
    )
  study = results.load(argv[1])
  write_tables(study, argv[1])
  print(report(study))


if __name__ == '__main__':
  command_line.run(main)
