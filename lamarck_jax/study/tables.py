"""Table 1 and the tests of a study, as text, Markdown, CSV and LaTeX.

  python -m lamarck_jax.study.tables DIR

DIR is a study's directory, or one with its results.json. The tables are written into it
and printed.
"""

from collections.abc import Sequence
import csv
import io
import math
import pathlib

import numpy as np

from lamarck_jax.errors import UserError
from lamarck_jax.run_directory import durable
from lamarck_jax.runtime import command_line
from lamarck_jax.study import analysis, results
from lamarck_jax.study.analysis import Comparison, DataEfficiency
from lamarck_jax.study.results import Study


def table(study: Study) -> list[dict[str, str]]:
  """Returns Table 1 of a study: a row per setting, test accuracies in percent.

  Returns:
    The cells of each row, by the name of the column.
  """
  rows = []
  for setting in study.settings:
    row = {
      'data': setting.dataset or study.dataset,
      'setting': setting.name,
      'inheritance': setting.inheritance,
      'e': str(setting.epochs_per_evaluation),
    }
    for epochs in study.checkpoint_epochs:
      summary = analysis.summarise(setting.test_accuracies(epochs))
      for name in ('min', 'mean', 'std', 'max'):
        row[f'{name}@{epochs}'] = _percent(getattr(summary, name))
      row[f'n@{epochs}'] = str(summary.n)
      if _has_training_accuracies(study):
        summary = analysis.summarise(setting.training_accuracies(epochs))
        row[f'training mean@{epochs}'] = _percent(summary.mean)
        row[f'training std@{epochs}'] = _percent(summary.std)
    flops = [run.flops for run in setting.runs]
    row['mean FLOPs'] = f'{np.mean(flops):.2e}' if flops else '-'
    row['missing runs'] = str(len(setting.missing))
    rows.append(row)
  return rows


def _has_training_accuracies(study: Study) -> bool:
  return any(run.training_accuracy for s in study.settings for run in s.runs)


def _percent(value: float) -> str:
  return '-' if math.isnan(value) else f'{100 * value:.1f}'


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table."""
  cells = [[cell.replace('|', r'\|') for cell in row] for row in (header, *rows)]
  widths = [max(map(len, column)) for column in zip(*cells)]
  lines = ['| ' + ' | '.join(map(str.ljust, row, widths)) + ' |' for row in cells]
  lines.insert(1, '|' + '|'.join('-' * (width + 2) for width in widths) + '|')
  return '\n'.join(lines)


def report(study: Study) -> str:
  """Returns Table 1, the tests and the data efficiency as Markdown."""
  parts = ['Test accuracy after completion, percent:', _accuracy_table(study)]
  total = sum(run.flops for setting in study.settings for run in setting.runs)
  num_runs = sum(len(setting.runs) for setting in study.settings)
  parts.append(f'FLOPs of all {num_runs} searches: {total:.2e}')
  if comparisons := analysis.compare(study):
    parts += [
      'One-sided Mann-Whitney U tests (difference: of the means, in points; effect:'
      ' chance that a run of the first is better; p Holm: corrected over the tests of a'
      ' measure; in brackets 95% bootstrap intervals):',
      _comparison_table(comparisons),
    ]
    parts += [
      _early_sentence(comparison)
      for comparison in comparisons
      if comparison.measure == 'test accuracy'
      and comparison.greater_epochs < comparison.other_epochs
    ]
  if study.settings:
    faster, *others = study.settings
    found = [analysis.data_efficiency(study, faster, other) for other in others]
    parts += [
      _efficiency_sentence(efficiency, study.selected_name)
      for efficiency in found
      if efficiency
    ]
  for setting in study.settings:
    if setting.missing:
      named = ', '.join(
        f'seed {seed} ({reason})' for seed, reason in setting.missing.items()
      )
      parts.append(f'Missing of {setting.name}: {len(setting.missing)}: {named}')
  return '\n\n'.join(parts)


def _accuracy_table(study: Study) -> str:
  header = ['data', 'setting', 'inheritance', 'e']
  for epochs in study.checkpoint_epochs:
    header += [f'{name} @{epochs} epochs' for name in ('min', 'mean', 'max', 'n')]
    if _has_training_accuracies(study):
      header.append(f'training mean @{epochs} epochs')
  header += ['FLOPs per run']
  rows = []
  for row in table(study):
    cells = [row['data'], row['setting'], row['inheritance'], row['e']]
    for n in study.checkpoint_epochs:
      mean = f'{row[f"mean@{n}"]}±{row[f"std@{n}"]}'
      cells += [row[f'min@{n}'], mean, row[f'max@{n}'], row[f'n@{n}']]
      if f'training mean@{n}' in row:
        cells.append(f'{row[f"training mean@{n}"]}±{row[f"training std@{n}"]}')
    rows.append([*cells, row['mean FLOPs']])
  return markdown(header, rows)


def _comparison_table(comparisons: Sequence[Comparison]) -> str:
  header = ['measure', 'greater', 'than', 'n', 'difference', 'effect']
  header += ['U', 'p', 'p Holm']
  rows = [
    [
      c.measure,
      f'{c.greater} @{c.greater_epochs}',
      f'{c.other} @{c.other_epochs}',
      f'{c.n[0]}, {c.n[1]}',
      points(c),
      f'{c.effect:.2f} ({c.effect_interval.low:.2f} to {c.effect_interval.high:.2f})',
      f'{c.u:g}',
      f'{c.p:.2g}',
      f'{c.p_holm:.2g}',
    ]
    for c in comparisons
  ]
  return markdown(header, rows)


def points(comparison: Comparison) -> str:
  """Returns the difference of the means in points, with its interval."""
  values = (comparison.difference, *comparison.difference_interval)
  mean, low, high = (round(100 * value, 1) + 0.0 for value in values)  # Not -0.0.
  return f'{mean:+.1f} ({low:+.1f} to {high:+.1f})'


def _early_sentence(c: Comparison) -> str:
  return (
    f'Data efficiency in test accuracy: {c.greater} at {c.greater_epochs} epochs less'
    f' {c.other} at {c.other_epochs}: {points(c)} points, p = {c.p:.2g}.'
  )


def _efficiency_sentence(efficiency: DataEfficiency, measure: str) -> str:
  def text(share: float) -> str:
    return 'more than 100%' if math.isinf(share) else f'{share:.0%}'

  return (
    f'{efficiency.faster} reaches the final mean {measure} of'
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
  for setting, row in zip(study.settings, table(study)):
    cells = [_escaped(row['data']), _escaped(setting.short_name), row['e']]
    for n in budgets:
      mean = rf'${row[f"mean@{n}"]} \pm {row[f"std@{n}"]}$'
      cells += [row[f'min@{n}'], mean, row[f'max@{n}']]
    mantissa, _, exponent = row['mean FLOPs'].partition('e')
    cells.append(rf'${mantissa} \cdot 10^{{{int(exponent)}}}$' if exponent else '-')
    lines.append(' & '.join(cells) + r' \\')
  return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}', ''])


_LATEX = str.maketrans(
  {
    **{character: rf'\{character}' for character in '_{}$&#%'},
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
  }
)


def _escaped(text: str) -> str:
  """Returns text as LaTeX, to which a file's text is no command."""
  return text.translate(_LATEX)


def write_tables(study: Study, directory: str | pathlib.Path) -> None:
  """Writes table.txt (the whole of `report`), table.csv and table.tex.

  Raises:
    StorageError: If they cannot be written.
  """
  directory = pathlib.Path(directory)
  for name, text in (
    ('table.txt', report(study) + '\n'),
    ('table.csv', to_csv(study)),
    ('table.tex', to_latex(study)),
  ):
    durable.write(directory / name, text.encode())


def main(argv: list[str]) -> None:
  """Writes the tables of a study into its directory, and prints them."""
  if len(argv) != 2:
    raise UserError(
      f'arguments: got {len(argv) - 1}, want one, the directory of a study'
    )
  study = results.load(argv[1])
  write_tables(study, argv[1])
  print(report(study))


if __name__ == '__main__':
  command_line.run(main)
