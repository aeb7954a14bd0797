"""The published tables and the numbers in their text agree with the committed runs."""

import json
import re
import shutil

import numpy as np
import pytest
import scipy.stats

from benchmarks import arms, crossover_tables, results_cells, results_table
from lamarck_jax.run_directory import records
from lamarck_jax.study import plots, results

_PAGES = [page for page in results_table.pages() if '<!-- table: ' in page.read_text()]
_STUDIES = [path.parent for path in sorted(results_cells.RESULTS.rglob('study.json'))]
_SCALED = [root for root in _STUDIES if root.name in results_table.STUDIES]
# Pages whose text quotes numbers of studies.
_PROSE = [
  page
  for page in results_table.pages()
  if page.parent.name not in ('h200', 'h200_2', 'h200_3', 'peers', 'cifar10_quarter')
]

each_page = pytest.mark.parametrize(
  'page',
  _PAGES,
  ids=lambda page: str(page.relative_to(results_cells.RESULTS.parents[1])),
)


@each_page
def test_every_table_is_what_the_committed_runs_give(page):
  text = page.read_text()
  assert results_table.update(text) == text


def test_there_is_a_table_on_every_page_that_needs_one():
  names = {page.parent.name for page in _PAGES}
  assert names >= {'docs', *results_table.STUDIES}
  assert any(page.name == 'README.md' and page.parent.name != 'docs' for page in _PAGES)


def _accuracies(study, setting):
  """Best validation and final test accuracies in percent, by reading JSON alone."""
  validation, test = [], []
  for path in sorted((results_cells.RESULTS / study / setting).glob('seed*')):
    events = (path / 'events.jsonl').read_text().splitlines()
    validation.append(100 * max(json.loads(event)['fitness'] for event in events))
    checkpoints = json.loads((path / 'result.json').read_text())['checkpoints']
    test.append(100 * checkpoints[-1]['test_accuracy'])
  return validation, test


def test_the_three_rows_of_the_readme_follow_from_the_runs_files_alone():
  readme = results_table.pages()[0].read_text()
  block = readme.split('<!-- table: readme -->')[1].split('<!-- end -->')[0]
  rows = [line.strip('| ').split('|') for line in block.splitlines() if '±' in line]
  assert len(rows) == 3
  for row, setting in zip(rows, ('lamarckian', 'baseline_1', 'baseline_2')):
    columns = iter(row[2:])
    for study in ('cifar10_small', 'cifar10_8px'):
      first = _accuracies(study, 'lamarckian')
      for ahead, values in zip(first, _accuracies(study, setting)):
        cell = next(columns)
        mean, std, *p = map(float, re.findall(r'[\d.]+', cell))
        assert mean == pytest.approx(np.mean(values), abs=0.051)
        assert std == pytest.approx(np.std(values, ddof=1), abs=0.051)
        assert bool(p) == (setting != 'lamarckian')
        if p:
          want = scipy.stats.mannwhitneyu(ahead, values, alternative='greater').pvalue
          assert p[0] == pytest.approx(want, rel=0.34, abs=0.005 if p[0] > 0.01 else 0)


def _names(page):
  """The studies that a page tells of: those in its folder, or all."""
  roots = [root for root in _STUDIES if page.parent in (root, *root.parents)]
  return [str(root.relative_to(results_cells.RESULTS)) for root in roots or _STUDIES]


def _p_values(names):
  tests = [test for name in names for test in results_cells.comparisons(name)]
  found = {p for test in tests for p in (test.p, test.p_holm)}
  for name in names:
    # The networks of inheritance and baseline I, completed from either weights.
    for weights in ('searched', 'fresh'):
      test = {}
      for run in _fresh_completions(name):
        test.setdefault(run['setting'], []).append(run[weights]['test'])
      if {'lamarckian', 'baseline_1'} <= test.keys():
        pair = test['lamarckian'], test['baseline_1']
        found.add(scipy.stats.mannwhitneyu(*pair).pvalue)
  if 'inheritance_modes' in names:
    found |= _remedies()
  # As the tables have them, which follow from the files.
  for table in _crossover_tables(names):
    found |= {
      float(p) for p in re.findall(r'(?<=\| )(?:[01]\.\d+|\de-\d+)(?= *\|)', table)
    }
  for name in set(names) & set(results_cells.PLANNED):
    for other in results_cells.BASELINES:
      found.add(results_cells.comparison(name, results_cells.TEST, other).p_holm)
  return found


def _fresh_completions(name):
  path = results_cells.RESULTS / name / 'fresh_completion.json'
  return json.loads(path.read_text())['runs'] if path.exists() else []


def _crossover_tables(names):
  is_there = crossover_tables.SEARCHES in names
  return [table() for table in crossover_tables.TABLES.values()] if is_there else []


def _remedies():
  """p values of remedies against the modes without them, which other studies have."""
  names = [
    'inheritance_modes',
    *(f'inheritance_modes/{n}' for n in ('cosine', 'noise')),
  ]
  finals = {
    setting.name: setting.best_fitnesses(np.inf)
    for name in names
    for setting in results_cells.study(name).settings
  }
  return {
    scipy.stats.mannwhitneyu(x, y, alternative='greater').pvalue
    for x in finals.values()
    for y in finals.values()
  }


def _means(names):
  """Means and standard deviations of the samples that a page may quote, in percent."""
  samples = []
  for study in map(results_cells.study, names):
    budgets = [study.budget_epochs * quarter // 4 for quarter in (1, 2, 3, 4)]
    for setting in study.settings:
      samples += [setting.best_fitnesses(epochs) for epochs in (*budgets, np.inf)]
      for epochs in study.checkpoint_epochs:
        samples += [
          setting.test_accuracies(epochs),
          setting.training_accuracies(epochs),
        ]
  for name in names:
    runs = _fresh_completions(name)
    for setting in {run['setting'] for run in runs}:
      group = [run for run in runs if run['setting'] == setting]
      for weights in ('searched', 'fresh'):
        for split in group[0][weights]:
          samples.append([run[weights][split] for run in group])
  found = [(np.mean(s), np.std(s, ddof=1)) for s in samples if len(s) > 1]
  paper = [(row['mean'], row['std']) for row in plots.paper_table_1()]
  crossover = [
    (float(mean), float(std))
    for table in _crossover_tables(names)
    for mean, std in re.findall(r'([\d.]+)±([\d.]+)', table)
  ]
  return [(100 * mean, 100 * std) for mean, std in found] + paper + crossover


def _quoted_p_values(text):
  for match in re.findall(r'\bp = ([\d.e-]*\d(?: and [\d.e-]*\d)?)', text):
    yield from match.split(' and ')
  for match in re.findall(
    r'Holm (?:over [^:)]*: )?(\d[\d.e-]*\d(?: and [\d.e-]*\d)?)', text
  ):
    yield from match.split(' and ')


def _is_rounded(quoted, value):
  """Whether a number is what a value gives when rounded to as many digits."""
  mantissa, _, exponent = quoted.partition('e')
  unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition('.')[2]))
  return abs(float(quoted) - value) <= 0.501 * unit


@pytest.mark.parametrize('page', _PROSE, ids=lambda page: page.parent.name)
def test_every_p_value_and_mean_in_the_text_is_one_of_the_runs(page):
  text, names = page.read_text(), _names(page)
  p_values, means = _p_values(names), _means(names)
  of_arms = arms.numbers(text)
  p_values, means = p_values | of_arms[0], means + of_arms[1]
  for quoted in _quoted_p_values(text):
    assert any(_is_rounded(quoted, p) for p in p_values), f'p = {quoted}'
  for mean, std in re.findall(r'(\d+\.\d)±(\d+\.\d)', text):
    assert any(_is_rounded(mean, x) and _is_rounded(std, y) for x, y in means), (
      f'{mean}±{std}'
    )


@pytest.mark.parametrize(
  ('quoted', 'study', 'greater', 'epochs', 'other'),
  [
    ('0.41', '', 'net2net', 96, 'lamarckian'),
    ('0.89', '', 'net2net', 72, 'lamarckian'),
    ('0.0014', '', 'net2net', 96, 'baseline_1'),
    ('0.014', 'cosine', 'net2net_cosine', 96, 'lamarckian'),
    ('0.29', 'cosine', 'net2net_cosine', 72, 'lamarckian'),
    ('0.081', 'cosine', 'net2net_cosine', 96, 'lamarckian_cosine'),
    ('0.35', 'epochs_2', 'net2net', 96, 'lamarckian'),
    ('0.048', 'epochs_1', 'net2net', 96, 'lamarckian'),
  ],
)
def test_what_the_text_says_of_net2net_is_what_the_runs_give(
  quoted, study, greater, epochs, other
):
  pages = [results_cells.RESULTS / 'inheritance_modes' / 'README.md']
  pages.append(results_cells.RESULTS.parent / 'results.md')
  tables = [page.read_text() for page in pages]
  assert any(f'p = {quoted}' in t or f'| {quoted} |' in t for t in tables)
  found = results_cells.study(f'inheritance_modes/{study}'.rstrip('/'))
  by_name = {setting.name: setting for setting in found.settings}
  x = by_name[greater].best_fitnesses(np.inf if epochs == 96 else epochs)
  y = by_name[other].best_fitnesses(np.inf)
  p = scipy.stats.mannwhitneyu(x, y, alternative='greater').pvalue
  assert _is_rounded(quoted, p)


def test_a_number_that_no_run_gives_is_found():
  assert list(_quoted_p_values('p = 0.048 and 0.075 (Holm 0.57)')) == [
    '0.048',
    '0.075',
    '0.57',
  ]
  assert _is_rounded('0.048', 0.0476)
  assert not _is_rounded('0.048', 0.0466)


@pytest.mark.parametrize('root', _SCALED, ids=lambda root: root.name)
def test_what_the_tables_say_of_the_scale_is_what_the_runs_were_configured_with(root):
  want = results_table.common.load_config(root.name).to_dict()
  for path in root.glob('lamarckian/seed*'):
    config = records.read_config(path)
    for field in ('batch_size', 'budget_epochs', 'epochs_per_evaluation'):
      assert config[field] == want[field]
    for field in ('num_train', 'num_validation', 'image_size', 'name'):
      assert config['dataset'][field] == want['dataset'][field]
    assert tuple(config['checkpoint_epochs']) == want['checkpoint_epochs']
    assert tuple(config['completion']['epochs']) == want['completion']['epochs']
    assert tuple(config['search_space']['filters']) == want['search_space']['filters']
    augmentation = config.get('augmentation', {'flip': False, 'shift': 0})
    assert augmentation == want['augmentation']


def test_a_table_of_arms_has_what_the_runs_files_give():
  table = arms.arms(
    'fashion_mnist_small', 'baseline_1', 'validation@64', 'test@16', 'test@64'
  )
  (row,) = (line for line in table.splitlines() if line.startswith('| lamarckian'))
  cells = [cell.strip() for cell in row.strip('|').split('|')]
  x, y = (_accuracies('fashion_mnist_small', s) for s in ('lamarckian', 'baseline_1'))
  for (mean, difference, p), ahead, behind in zip((cells[2:5], cells[8:]), x, y):
    assert float(mean.split('±')[0]) == pytest.approx(np.mean(ahead), abs=0.051)
    want = np.mean(ahead) - np.mean(behind)
    assert float(difference) == pytest.approx(want, abs=0.051)
    want = scipy.stats.mannwhitneyu(ahead, behind, alternative='greater').pvalue
    assert _is_rounded(p, want)
  assert arms.arms('nowhere', 'lamarckian', 'test@64') == 'No runs yet.'
  p_values, means = arms.numbers('<!-- table: arms digits baseline_1 validation@64 -->')
  assert any(_is_rounded('0.0001', p) for p in p_values)
  assert any(_is_rounded('99.0', mean) for mean, _ in means)


def test_a_page_is_updated_between_its_marks_alone(tmp_path):
  text = 'a\n<!-- table: settings nowhere -->\nold\n<!-- end -->\nb\n'
  want = 'a\n<!-- table: settings nowhere -->\n\nNo runs yet.\n\n<!-- end -->\nb\n'
  assert results_table.update(text) == want
  assert results_table.update(want) == want


def test_only_finished_runs_of_a_study_are_added_and_none_is_lost(tmp_path):
  source, root = tmp_path / 'source', tmp_path / 'published'
  published = results_cells.RESULTS / 'fashion_mnist_small'
  for seed in (1, 2, 3):
    shutil.copytree(published / 'lamarckian' / f'seed{seed}', source / f'a/seed{seed}')
  (source / 'a/seed3/result.json').unlink()
  (source / 'a/seed1/weights').mkdir()
  results.write_plan(source, [('a', 1), ('a', 3)])
  results_table.add_runs(source, root)
  results.write_plan(source, [('a', 2)])
  results_table.add_runs(source, root)
  (setting,) = results.collect(root).settings
  assert [run.seed for run in setting.runs] == [1, 2]
  assert not setting.missing
  assert not (root / 'a/seed1/weights').exists()
