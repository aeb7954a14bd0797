"""The tables and figures in docs/results agree with the runs beside them."""

import json
import pathlib

from matplotlib.testing import compare
import pytest
import scipy.stats

from lamarck_jax.study import analysis, figures, results, tables

_ROOT = pathlib.Path(__file__).parents[2] / 'docs' / 'results'
# Their many settings take half of the time.
_LARGE = ('ablation', 'inheritance_modes', 'epochs_1')
_STUDIES = [
  pytest.param(path.parent, marks=[pytest.mark.slow] * (path.parent.name in _LARGE))
  for path in sorted(_ROOT.rglob('study.json'))
]

pytestmark = pytest.mark.parametrize(
  'root', _STUDIES, ids=lambda root: str(root.relative_to(_ROOT))
)


def _final_accuracies(root, setting):
  """Test accuracies and best validation accuracies, by reading JSON alone."""
  test, validation = [], []
  for path in root.glob(f'{setting}/seed*'):
    checkpoints = json.loads((path / 'result.json').read_text())['checkpoints']
    test += [checkpoint['test_accuracy'] for checkpoint in checkpoints[-1:]]
    lines = (path / 'events.jsonl').read_text().splitlines()
    validation.append(max(json.loads(line)['fitness'] for line in lines))
  return {'test accuracy': test, 'best validation accuracy': validation}


def test_no_planned_run_is_missing(root):
  for setting in results.collect(root).settings:
    assert not setting.missing


def test_the_results_agree_with_the_runs(root):
  assert results.collect(root) == results.load(root / 'results.json')


def test_the_p_values_agree_with_scipy(root):
  study = results.collect(root)
  final = study.budget_epochs
  tests = [
    test
    for test in analysis.compare(study)
    if test.greater_epochs == test.other_epochs == final
  ]
  lines = (root / 'table.txt').read_text().splitlines()
  rows = [[cell.strip() for cell in line.split('|')] for line in lines]
  header = next(row for row in rows if row[1:2] == ['measure'])
  columns = [header.index(name) for name in ('measure', 'greater', 'than', 'p')]
  printed = [[row[i] for i in columns] for row in rows if len(row) == len(header)]
  assert tests
  for test in tests:
    first = _final_accuracies(root, test.greater)[test.measure]
    second = _final_accuracies(root, test.other)[test.measure]
    u, p = scipy.stats.mannwhitneyu(first, second, alternative='greater')
    assert (test.u, test.p) == (u, pytest.approx(p, rel=1e-12))
    row = [test.measure, f'{test.greater} @{final}', f'{test.other} @{final}']
    assert [*row, f'{p:.2g}'] in printed


def test_the_tables_agree_with_the_results(root, tmp_path):
  tables.write_tables(results.load(root / 'results.json'), tmp_path)
  written = {path.name: path.read_text() for path in tmp_path.iterdir()}
  assert written
  assert written == {name: (root / name).read_text() for name in written}


def test_the_figures_agree_with_the_results(root, tmp_path):
  figures.write_figures(results.load(root / 'results.json'), tmp_path)
  drawn = sorted(tmp_path.glob('*.png'))
  assert drawn
  for path in drawn:
    difference = compare.compare_images(str(root / path.name), str(path), tol=2)
    assert difference is None, difference
