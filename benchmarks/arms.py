"""Tables of studies whose settings are compared with one of them, the reference.

The accuracies are read from the committed runs alone. A measure is `MEASURE@EPOCHS`:
`validation` is the best of the search within the epochs, `test` and `balanced` are the
accuracy and the balanced accuracy on the test set after completion of the checkpoint.
"""

import re

import numpy as np
from scipy import stats

from benchmarks import results_cells
from lamarck_jax.run_directory import records
from lamarck_jax.study import tables

_TITLES = {
  'validation': 'Best validation accuracy',
  'test': 'Test accuracy',
  'balanced': 'Balanced test accuracy',
}
_FIELDS = {'test': 'test_accuracy', 'balanced': 'test_balanced_accuracy'}
_DIRECTIVE = re.compile(r'<!-- table: arms (.+?) -->')


def sample(name: str, setting: str, measure: str) -> list[float]:
  """Returns the accuracy of every finished run of a setting, from 0 to 1."""
  kind, _, epochs = measure.partition('@')
  found = []
  for path in sorted((results_cells.RESULTS / name / setting).glob('seed*')):
    if kind == 'validation':
      events = records.read_events(path)
      found.append(
        max(event['fitness'] for event in events if event['epochs_used'] <= int(epochs))
      )
    else:
      checkpoints = (records.read_result(path) or {'checkpoints': []})['checkpoints']
      found += [
        entry[_FIELDS[kind]] for entry in checkpoints if entry['epochs'] == int(epochs)
      ]
  return found


def p_value(x: list[float], y: list[float]) -> float:
  """Returns the p value of the one-sided Mann-Whitney test of whether x is greater."""
  return float(stats.mannwhitneyu(x, y, alternative='greater').pvalue)


def arms(name: str, reference: str, *measures: str) -> str:
  """The settings of a study, each compared with the reference.

  Args:
    name: The study.
    reference: One of its settings.
    measures: What is compared.
  """
  found = results_cells.study(name)
  if found is None:
    return 'No runs yet.'
  header = ['Setting, percent', 'n']
  for measure in measures:
    kind, _, epochs = measure.partition('@')
    header += [f'{_TITLES[kind]} @{epochs}', 'Difference', 'p']
  rows = []
  for setting in found.settings:
    row = [setting.name, str(len(setting.runs))]
    for measure in measures:
      x, y = (sample(name, one, measure) for one in (setting.name, reference))
      row.append(results_cells.mean_std(x))
      if setting.name == reference or not (x and y):
        row += ['', '']
      else:
        difference = 100 * (np.mean(x) - np.mean(y))
        row += [f'{difference:+.1f}', results_cells.p_value(p_value(x, y))]
    rows.append(row)
  return tables.markdown(header, rows)


def numbers(text: str) -> tuple[set[float], list[tuple[float, float]]]:
  """Returns the p values that the tables of a page follow from, and means.

  Each mean comes with its standard deviation, both in percent.
  """
  p_values: set[float] = set()
  means = []
  for directive in _DIRECTIVE.findall(text):
    name, reference, *measures = directive.split()
    found = results_cells.study(name)
    for measure in measures if found else ():
      assert found
      y = sample(name, reference, measure)
      for setting in found.settings:
        x = sample(name, setting.name, measure)
        if x and y:
          p_values |= {p_value(x, y), p_value(y, x)}
        if len(x) > 1:
          means.append((100 * float(np.mean(x)), 100 * float(np.std(x, ddof=1))))
  return p_values, means
