"""Brings the tables and figures of the README and of docs/results up to date.

  python -m benchmarks.results_table [--figures] [--add=STUDY --to=NAME]

With `--add`, it first copies the finished runs of a study's directory, without their
weights, to docs/results/NAME. Then it reads the run directories below docs/results and
nothing else, writes every study's results.json and tables, and its figures if results
have changed or with `--figures`, and at last the parts of the pages between
`<!-- table: NAME -->` and `<!-- end -->`.
"""

import argparse
from collections.abc import Callable, Iterator
import json
import pathlib
import re
import shutil

import numpy as np

from benchmarks import arms, common, crossover_tables
from benchmarks import peers as peers_lib
from benchmarks.results_cells import (
  BASELINES,
  LABELS,
  PAPER_N,
  PAPER_SETTINGS,
  RESULTS,
  TEST,
  VALIDATION,
  comparison,
  label,
  link,
  mean_std,
  number_range,
  p_value,
  paper_cell,
  paper_difference,
  papers,
  share,
  state,
  study,
  test_cells,
  with_range,
)
from lamarck_jax.run_directory import durable
from lamarck_jax.study import figures, results, tables
from lamarck_jax.study.results import Study

_ROOT = pathlib.Path(__file__).parent.parent
# The studies of the paper's settings, the nearest to the paper's scale first.
STUDIES = (
  'cifar10_quarter',
  'cifar10_8px',
  'cifar10_small',
  'fashion_mnist_small',
  'digits',
)
# Training, validation and test examples of data sets that are used whole.
_NUM_EXAMPLES = {
  'cifar10': (45_000, 5_000, 10_000),
  'fashion_mnist': (55_000, 5_000, 10_000),
  'digits': (1_137, 300, 360),
}
_MARKED = re.compile(r'(<!-- table: (.+?) -->\n).*?(<!-- end -->)', re.DOTALL)


# ------------------------------------------------------------------------------
# Tables
# ------------------------------------------------------------------------------


def test_accuracy() -> str:
  """Table 1: test accuracy after completion, the paper's beside ours."""
  header = ['Study', 'Setting', 'n', 'First checkpoint', 'Full budget']
  header += ['Inheritance less it', 'Effect', 'p', 'p Holm']
  rows = []
  for name in PAPER_SETTINGS:
    cells = [paper_cell(name, epochs) for epochs in (128, 512)]
    row = ['the paper, CIFAR-10', name, str(PAPER_N), *cells]
    if name != 'inheritance':
      row += [paper_difference(name, 512, 512), '']
      row += ['< 0.01' if name == 'baseline II' else 'not given', '']
    rows.append(row + [''] * (len(header) - len(row)))
  for name in STUDIES:
    found = study(name)
    if found is None:
      rows.append([link(name), 'no runs yet', *[''] * (len(header) - 2)])
      continue
    for setting in found.settings:
      samples = [
        setting.test_accuracies(epochs)
        for epochs in (found.checkpoint_epochs[0], found.budget_epochs)
      ]
      row = [link(name), label(setting), str(len(samples[1]))]
      row += map(with_range, samples)
      rows.append([*row, *test_cells(comparison(name, TEST, setting.name))])
  return tables.markdown(header, rows)


def validation_accuracy() -> str:
  """Best validation accuracy of the search at the full budget."""
  header = ['Study', 'Setting', 'n', 'Full budget']
  header += ['Inheritance less it', 'Effect', 'p', 'p Holm']
  rows = [
    [
      link(name),
      label(setting),
      str(len(setting.runs)),
      with_range(setting.best_fitnesses(np.inf)),
      *test_cells(comparison(name, VALIDATION, setting.name)),
    ]
    for name, found in _with_runs()
    for setting in found.settings
  ]
  return tables.markdown(header, rows)


def _with_runs() -> Iterator[tuple[str, Study]]:
  for name in STUDIES:
    if found := study(name):
      yield name, found


def efficiency() -> str:
  """Data efficiency: inheritance at the first checkpoint, baseline I at the end."""
  header = ['Study', 'Share of the budget', 'Inheritance then', 'Baseline I at the end']
  header += [
    'Difference',
    'p',
    "Share that reaches I's validation accuracy",
    "... II's",
  ]
  row = ['the paper, CIFAR-10', '25%']
  row += [paper_cell('inheritance', 128), paper_cell('baseline I', 512)]
  rows = [[*row, paper_difference('baseline I', 128, 512), '< 0.01', '', '']]
  for name, found in _with_runs():
    first, budget = found.checkpoint_epochs[0], found.budget_epochs
    settings = {setting.name: setting for setting in found.settings}
    row = [link(name), f'{first / budget:.0%}']
    row.append(with_range(settings['lamarckian'].test_accuracies(first)))
    row.append(with_range(settings['baseline_1'].test_accuracies(budget)))
    difference, _, p, _ = test_cells(comparison(name, TEST, 'baseline_1', early=True))
    row += [difference, p]
    rows.append([*row, *(share(name, baseline) for baseline in BASELINES)])
  return tables.markdown(header, rows)


def scale() -> str:
  """What is scaled down, from the configurations."""
  columns = {'the paper': _scale_column('cifar10')}
  columns |= {link(name): _scale_column(name) for name in STUDIES}
  header = ['', *columns]
  rows = [
    [field, *(column[field] for column in columns.values())]
    for field in columns['the paper']
  ]
  return tables.markdown(header, rows)


def _scale_column(name: str) -> dict[str, str]:
  config = common.load_config(name)
  second = common.load_config(name, 'baseline_2')
  dataset = config.dataset
  train, validation, test = _NUM_EXAMPLES[dataset.name]
  images = (dataset.num_train or train, dataset.num_validation or validation, test)
  size = dataset.image_size or {'digits': 8, 'fashion_mnist': 28}.get(dataset.name, 32)
  flip, shift = config.augmentation.flip, config.augmentation.shift
  found, filters = study(name), config.search_space.filters
  n = [len(setting.runs) for setting in papers(found)] if found else [0]
  if name == 'cifar10':
    n = [PAPER_N]
  epochs = np.diff((0, *config.completion.epochs))
  return {
    'Data set': dataset.name,
    'Training, validation, test images': ' / '.join(f'{part:,}' for part in images),
    'Pixels': f'{size}x{size}',
    'Filters': f'{min(filters)} to {max(filters)}',
    'Batch': str(config.batch_size),
    'Budget, epochs': str(config.budget_epochs),
    'Checkpoints, epochs': ', '.join(map(str, config.checkpoint_epochs)),
    'Epochs per evaluation, baseline II': (
      f'{config.epochs_per_evaluation}, {second.epochs_per_evaluation}'
    ),
    'Completion, epochs at each rate': ' + '.join(map(str, epochs)),
    'Augmentation': f'flips, shifts of {shift}' if flip or shift else 'none',
    'Runs per setting': number_range(n),
  }


def readme() -> str:
  """The README's three rows: the paper and the two studies on CIFAR-10."""
  names = ('cifar10_small', 'cifar10_8px')
  header = ['Setting', f'Paper: test (n = {PAPER_N})']
  rows = [
    ['inheritance', _paper_mean('inheritance')],
    ['baseline I: fresh weights, 4 epochs per evaluation', _paper_mean('baseline I')],
    [
      'baseline II: fresh weights, 16 epochs per evaluation',
      _paper_mean('baseline II'),
    ],
  ]
  for name in names:
    found = study(name)
    assert found
    n = number_range([len(setting.runs) for setting in papers(found)])
    title = f'`{name}`{state(name)}'
    header += [f'{title}: validation (n = {n})', f'{title}: test']
    for row, setting in zip(rows, papers(found)):
      for measure, sample in (
        (VALIDATION, setting.best_fitnesses(np.inf)),
        (TEST, setting.test_accuracies(found.budget_epochs)),
      ):
        test = comparison(name, measure, setting.name)
        p = f' (p = {p_value(test.p)})' if test else ''
        row.append(mean_std(sample) + p)
  return tables.markdown(header, rows)


def _paper_mean(label: str) -> str:
  return paper_cell(label, 512).split(' ')[0]


def settings(name: str) -> str:
  """The settings of a study: validation, test and training accuracy."""
  found = study(name)
  if found is None:
    return 'No runs yet.'
  last = found.budget_epochs
  header = ['Setting, percent', 'n', f'Best validation accuracy @{last}']
  header += [f'Test accuracy @{epochs}' for epochs in found.checkpoint_epochs]
  header.append(f'Training accuracy @{last}')
  rows = [
    [
      setting.name,
      str(len(setting.runs)),
      mean_std(setting.best_fitnesses(np.inf)),
      *(mean_std(setting.test_accuracies(n)) for n in found.checkpoint_epochs),
      mean_std(setting.training_accuracies(last)),
    ]
    for setting in found.settings
  ]
  if all(row[-1] == '-' for row in rows):
    header, rows = header[:-1], [row[:-1] for row in rows]
  return tables.markdown(header, rows)


def primary(name: str) -> str:
  """The tests that a study's plan names, and its figure of data efficiency."""
  found = study(name)
  if found is None:
    return 'No runs yet.'
  header = ['', 'Inheritance', 'Compared with', 'n', 'Difference', 'Effect']
  header += ['p', 'p Holm', 'Confirmed']
  tests = [('H1', 'baseline_1', False), ('H2', 'baseline_2', False)]
  rows = []
  for title, other, early in [*tests, ('Data efficiency', 'baseline_1', True)]:
    test = comparison(name, TEST, other, early=early)
    if test is None:
      continue
    decides = test.p if early else test.p_holm
    difference, effect, p, p_holm = test_cells(test)
    low, high = test.effect_interval
    rows.append(
      [
        title,
        f'@{test.greater_epochs}',
        f'{LABELS[other]} @{test.other_epochs}',
        f'{test.n[0]}, {test.n[1]}',
        difference,
        f'{effect} ({low:.2f} to {high:.2f})',
        p,
        '' if early else p_holm,
        'undecided yet' if state(name) else 'yes' if decides < 0.01 else 'no',
      ]
    )
  return tables.markdown(header, rows)


def completions(name: str) -> str:
  """Accuracies after completion from the weights of the search and from fresh ones."""
  path = RESULTS / name / 'fresh_completion.json'
  if not path.exists():
    return 'No runs yet.'
  runs = json.loads(path.read_text())['runs']
  header = ['Setting, percent', 'n', 'Training images', 'Test images']
  header += ['Fresh weights: training', 'Fresh weights: test']
  found = study(name)
  assert found
  rows = []
  for setting in found.settings:
    group = [run for run in runs if run['setting'] == setting.name]
    if not group:
      continue
    cells = [
      mean_std([run[weights][split] for run in group])
      for weights in ('searched', 'fresh')
      for split in ('train', 'test')
    ]
    rows.append([setting.name, str(len(group)), *cells])
  return tables.markdown(header, rows)


def peers() -> str:
  """The comparison with other tools at equal seconds."""
  found = peers_lib.read(RESULTS / 'peers')
  return peers_lib.report(found) if found else 'No runs yet.'


TABLES: dict[str, Callable[..., str]] = {
  function.__name__: function
  for function in (
    test_accuracy,
    validation_accuracy,
    efficiency,
    scale,
    readme,
    settings,
    primary,
    completions,
    peers,
    arms.arms,
  )
} | crossover_tables.TABLES


# ------------------------------------------------------------------------------
# Pages and studies
# ------------------------------------------------------------------------------


def pages() -> list[pathlib.Path]:
  """Returns the pages that have tables."""
  found = [_ROOT / 'README.md', _ROOT / 'docs' / 'results.md']
  return found + sorted(RESULTS.rglob('README.md'))


def update(text: str) -> str:
  """Returns a page with its tables made anew."""

  def replacement(match: re.Match[str]) -> str:
    name, *arguments = match[2].split()
    return f'{match[1]}\n{TABLES[name](*arguments)}\n\n{match[3]}'

  return _MARKED.sub(replacement, text)


def add_runs(source: pathlib.Path, root: pathlib.Path) -> None:
  """Copies the finished runs of a study, and adds them to the plan of the copy."""
  finished = sorted(path.parent for path in source.glob('*/seed*/result.json'))
  for run in finished:
    to = root / run.relative_to(source)
    to.mkdir(parents=True, exist_ok=True)
    for name in ('config.json', 'events.jsonl', 'result.json'):
      shutil.copy(run / name, to / name)
  plan = json.loads((source / 'study.json').read_text())['runs']
  runs = [
    (name, seed) for name, seed in plan if source / name / f'seed{seed}' in finished
  ]
  results.write_plan(root, runs)
  print(f'{root}: {len(runs)} finished runs of {len(plan)}')


def write_study(root: pathlib.Path, draw: bool) -> None:
  """Writes results, tables and, if asked or needed, figures of a study."""
  found, path = results.collect(root), root / 'results.json'
  changed = not path.exists() or results.load(path) != found
  if changed:
    results.write(found, path)
  tables.write_tables(found, root)
  if draw or changed:
    figures.write_figures(found, root)
    print(f'{root.relative_to(_ROOT)}: figures drawn')


def main() -> None:
  """Updates all studies and pages; names what has changed."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
  parser.add_argument('--figures', action='store_true', help='Draw all figures.')
  parser.add_argument('--add', type=pathlib.Path, help='Directory of a study.')
  parser.add_argument('--to', help='Its name below docs/results.')
  args = parser.parse_args()
  if (args.add is None) != (args.to is None):
    parser.error('add: got one of --add and --to, want both')
  if args.add:
    add_runs(args.add, RESULTS / args.to)
  for plan in sorted(RESULTS.rglob('study.json')):
    write_study(plan.parent, args.figures)
  peers_lib.write_report(RESULTS / 'peers')
  for page in pages():
    before = page.read_text()
    after = update(before)
    if after != before:
      durable.write(page, after.encode())
      print(f'{page.relative_to(_ROOT)}: tables changed')


if __name__ == '__main__':
  main()
