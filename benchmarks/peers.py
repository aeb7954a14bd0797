"""Our search compared with what a user would pick instead, at equal seconds.

  python -m benchmarks.peers --out=DIR [--seconds=300] [--seeds=1,2,3,4,5] [--cores=0]
  python -m benchmarks.peers --out=DIR --report

On `configs/cifar10_small.py`, each method gets one core and the same seconds, counted
from the start of its process, so imports and compilation are in them, and so is all
training of the network that it ends with:

- `lamarckian`, `random_search`: settings of this package. The search ends while there
  is time left to complete its best network on the configuration's schedule.
- `optuna`: TPE and median pruning over the same search space, with fresh weights and
  the same trainer; up to 16 epochs per network, pruned by validation accuracy after
  every epoch. Its best network is completed in the same way, from its weights.
- `autokeras`: its image classifier with its defaults, selecting by validation accuracy.
  Its best network at its best epoch is taken as it is, which is what AutoKeras does if
  it is given validation data; training on would be ours, and it stops by itself.
- `autokeras_conv`: AutoKeras confined to its plain convolutional block. By default
  AutoKeras enlarges images to 224x224 for its second network, too much for a core.

Compilation caches are empty at first. A search sees the training and validation images;
its last network is evaluated on the test set once. A result is a file in DIR for each
method and seed; the same command runs what is missing and makes the table and figure
again, and `--report` makes these alone. A process that has not ended an hour after its
seconds has failed. `--tiny` rehearses all of it in a minute.

Beside this package's requirements, this interpreter or the one that `--python` names
needs `pip install autokeras==3.0.0 keras==3.12.4 keras-tuner==1.4.8 optuna==5.0.0
tensorflow-cpu==2.21.0 tensorboard==2.21.0`, with which all was rehearsed, and with
jax 0.10.2, Flax 0.12.8 and Python 3.11.7. AutoKeras 3.0.0 fails with Keras 3.15.1, and
KerasTuner needs TensorBoard.
"""

import argparse
from collections.abc import Iterator
import concurrent.futures
import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import time
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from ml_collections import config_dict
import numpy as np

from benchmarks import common
from benchmarks.results_cells import mean_std
from lamarck_jax.data import datasets
from lamarck_jax.errors import UserError
from lamarck_jax.run_directory import durable
from lamarck_jax.runtime import environment
from lamarck_jax.study import analysis, figures, plots, results, tables

METHODS = ('lamarckian', 'random_search', 'optuna', 'autokeras', 'autokeras_conv')
_ROOT = pathlib.Path(__file__).parent.parent
_MODULES = {
  name: 'peers_autokeras' if name.startswith('autokeras') else 'peers_jax'
  for name in METHODS
}
# The budget of a search that ends by the clock.
_UNLIMITED = 10**6
_TINY = {
  'dataset.num_train': 96,
  'dataset.num_validation': 50,
  'epochs_per_evaluation': 1,
  'search_space.filters': (4, 8),
  'search_space.kernel_sizes': (1, 3),
  'random_search.max_blocks': 2,
  'completion.epochs': (1,),
  'completion.learning_rates': (1e-3,),
}

# How long a process may take beyond its seconds: what it ends with is not cut short.
_GRACE_SECONDS = 3600
# What a table and a figure need of a result.
_FIELDS = {
  'method',
  'seed',
  'budget_seconds',
  'tiny',
  'evaluations',
  'curve',
  'seconds',
  'test_accuracy',
}


def make_config(
  method: str, seed: int, tiny: bool, data_dir: str | None
) -> config_dict.ConfigDict:
  """Returns the configuration of a method; other tools take data and space from it."""
  name = 'digits' if tiny else 'cifar10_small'
  is_ours = method in ('lamarckian', 'random_search')
  config = common.load_config(name, method if is_ours else 'lamarckian')
  config.update_from_flattened_dict(_TINY if tiny else {})
  config.seed = seed
  config.dataset.data_dir = data_dir
  config.budget_epochs = _UNLIMITED
  config.checkpoint_epochs = (_UNLIMITED,)
  config.completion.enabled = False  # The benchmark completes one network.
  return config


def _write_data(args: argparse.Namespace, path: pathlib.Path) -> None:
  """Writes the arrays of the configuration for a process without this package."""
  config = make_config('lamarckian', 0, args.tiny, args.data_dir)
  dataset = datasets.load(**config.dataset)
  arrays = {}
  for name in ('train', 'validation', 'test'):
    split = getattr(dataset, name)
    arrays[f'{name}_images'], arrays[f'{name}_labels'] = split.images, split.labels
  np.savez(path, **arrays)


def _path(out: pathlib.Path, method: str, seed: int) -> pathlib.Path:
  return out / f'{method}_seed{seed}.json'


def _run(
  args: argparse.Namespace, data: pathlib.Path, method: str, seed: int, core: int
) -> str | None:
  """Runs a method with a seed and writes its file; returns why it failed, or None."""
  with tempfile.TemporaryDirectory(prefix='peers_') as scratch:
    task_path, out = pathlib.Path(scratch, 'task'), pathlib.Path(scratch, 'outcome')
    config = make_config(method, seed, args.tiny, args.data_dir).to_dict()
    task = {
      'method': method,
      'seed': seed,
      'seconds': args.seconds,
      'core': core,
      'start': time.time(),
      'config': config,
      'data': str(data),
      'scratch': scratch,
      'out': str(out),
    }
    task_path.write_text(json.dumps(task))
    load = os.getloadavg()[0]
    limit = args.seconds + _GRACE_SECONDS
    try:
      process = subprocess.run(
        [args.python, '-m', f'benchmarks.{_MODULES[method]}', str(task_path)],
        cwd=_ROOT,
        env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '2', 'CUDA_VISIBLE_DEVICES': ''},
        capture_output=True,
        text=True,
        timeout=limit,
      )
    except subprocess.TimeoutExpired:
      return f'no outcome after {limit:.0f} s'
    if process.returncode or not out.exists():
      lines = process.stderr.strip().splitlines() or [f'exit {process.returncode}']
      return lines[-1]
    content = {
      'method': method,
      'seed': seed,
      'budget_seconds': args.seconds,
      'tiny': args.tiny,
      **json.loads(out.read_text()),
      'load': [round(load, 2), round(os.getloadavg()[0], 2)],
      'machine': {**environment.machine(), 'cores': 1},
    }
  text = json.dumps(content, indent=1)
  durable.write(_path(args.out, method, seed), (text + '\n').encode())
  return None


def _run_missing(args: argparse.Namespace) -> list[str]:
  """Runs what has no file yet, a process per core; returns the failures."""
  missing = [
    (method, seed)
    for seed in args.seeds  # Complete seeds first, if it is stopped.
    for method in args.methods
    if not _path(args.out, method, seed).exists()
  ]
  if not missing:
    return []
  cores: queue.SimpleQueue[int] = queue.SimpleQueue()
  for core in args.cores:
    cores.put(core)
  failures: list[str] = []

  def run(job: tuple[str, int]) -> None:
    method, seed = job
    core = cores.get()
    try:
      reason = _run(args, data, method, seed, core)
    finally:
      cores.put(core)
    print(f'{method}, seed {seed}: {reason or "done"}', flush=True)
    if reason:
      failures.append(f'{method}, seed {seed}')

  with tempfile.TemporaryDirectory(prefix='peers_data_') as folder:
    data = pathlib.Path(folder, 'data.npz')
    _write_data(args, data)
    with concurrent.futures.ThreadPoolExecutor(len(args.cores)) as pool:
      list(pool.map(run, missing))
  return failures


# ------------------------------------------------------------------------------
# Table and figure
# ------------------------------------------------------------------------------


def read(out: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
  """Returns the results by method, in the order of `METHODS`, by seed.

  Raises:
    UserError: If one is damaged, or they were not all made with the same seconds and
      data.
  """
  found: dict[str, list[dict[str, Any]]] = {}
  for method in METHODS:
    paths = out.glob(f'{method}_seed*.json')
    runs = [_read_result(path) for path in paths]
    if runs:
      found[method] = sorted(runs, key=lambda run: run['seed'])
  kinds = {(r['budget_seconds'], r['tiny']) for runs in found.values() for r in runs}
  if len(kinds) > 1:
    raise UserError(f'out: got results of {sorted(kinds)} (seconds, tiny), want one')
  return found


def _read_result(path: pathlib.Path) -> dict[str, Any]:
  try:
    content: dict[str, Any] = json.loads(path.read_text())
    missing = _FIELDS - content.keys()
  except (OSError, ValueError, AttributeError) as error:
    raise UserError(f'out: got {path} ({error}), want a result') from error
  if missing:
    raise UserError(f'out: got {path} without {", ".join(sorted(missing))}')
  return content


def report(found: dict[str, list[dict[str, Any]]]) -> str:
  """Returns the table, with the tests of the first method against the others."""
  comparisons = {test.other: test for test in _comparisons(found)}
  header = ['method', 'n', 'networks', 'seconds', 'CPU share', 'parameters']
  header += ['best validation', 'test: mean', 'min', 'max']
  header += [f'{next(iter(found))} less it', 'effect', 'p', 'p Holm']
  rows = []
  for method, runs in found.items():
    validation, test = (
      [run[name] for run in runs]
      for name in ('best_validation_accuracy', 'test_accuracy')
    )
    means = {
      name: np.mean([run[name] for run in runs])
      for name in ('evaluations', 'seconds', 'cpu_seconds', 'parameters')
    }
    row = [method, str(len(runs)), f'{means["evaluations"]:.1f}']
    row += [f'{means["seconds"]:.0f}', f'{means["cpu_seconds"] / means["seconds"]:.0%}']
    row += [f'{means["parameters"]:.0f}', mean_std(validation), mean_std(test)]
    row += [f'{100 * min(test):.1f}', f'{100 * max(test):.1f}']
    row += _test_cells(comparisons.get(method))
    rows.append(row)
  return tables.markdown(header, rows)


def _test_cells(test: analysis.Comparison | None) -> list[str]:
  if test is None:
    return ['', '', '', '']
  difference = tables.points(test)
  return [difference, f'{test.effect:.2f}', f'{test.p:.2g}', f'{test.p_holm:.2g}']


def _comparisons(
  found: dict[str, list[dict[str, Any]]],
) -> Iterator[analysis.Comparison]:
  """Yields the one-sided tests of test accuracy, first method against each other."""
  # The tests of a study, with the seconds in place of the budget in epochs.
  settings = tuple(
    results.Setting(method, method, 0, tuple(map(_to_run, runs)), {})
    for method, runs in found.items()
  )
  budgets = {run['budget_seconds'] for runs in found.values() for run in runs}
  if not budgets:
    return
  (budget,) = budgets
  study = results.Study('', budget, (budget,), settings)
  for test in analysis.compare(study):
    if test.measure == 'test accuracy':
      yield test


def _to_run(run: dict[str, Any]) -> results.Run:
  seconds, accuracies = zip(*run['curve'])
  return results.Run(
    run['seed'],
    tuple(seconds),
    tuple(accuracies),
    tuple(accuracies),
    (0,) * len(seconds),
    0,
    run['seconds'],
    (),
    {run['budget_seconds']: run['test_accuracy']},
  )


def draw(found: dict[str, list[dict[str, Any]]]) -> Figure:
  """Returns the figure: accuracy against seconds, as Figure 2 has it against epochs."""
  figure = Figure(figsize=(6.4, 4), layout='constrained')
  axes = figure.subplots()
  for index, (method, runs) in enumerate(found.items()):
    style = plots.STYLES[index % len(plots.STYLES)]
    curves = [_to_run(run) for run in runs]
    budget = runs[0]['budget_seconds']
    first = max(curve.epochs[0] for curve in curves)
    grid = np.linspace(first, max(first, budget), 200)
    means = [np.mean([curve.best_fitness_at(t) for curve in curves]) for t in grid]
    axes.plot(
      grid,
      means,
      linestyle=style.linestyle,
      linewidth=2,
      marker=style.marker,
      markevery=25,
      color=style.color,
      label=f'{method.replace("_", " ")} (n = {len(runs)})',
    )
    axes.plot(
      [run['seconds'] + (index - 2) * 0.012 * budget for run in runs],
      [run['test_accuracy'] for run in runs],
      linestyle='none',
      marker=style.marker,
      markerfacecolor='white',
      color=style.color,
    )
  axes.plot([], [], 'o', color='black', markerfacecolor='white', label='test accuracy')
  axes.set_xlabel('seconds on one core')
  axes.set_ylabel('best validation accuracy, mean; test accuracy')
  axes.yaxis.set_major_formatter(PercentFormatter(1))
  axes.grid(alpha=0.25)
  axes.legend(
    loc='lower center',
    bbox_to_anchor=(0.5, 1),
    ncols=2,
    frameon=False,
    fontsize='small',
  )
  return figure


def write_report(out: pathlib.Path) -> str:
  """Writes table.txt and accuracy.png from the results; returns the table."""
  found = read(out)
  if not found:
    return 'no results yet'
  text = report(found)
  durable.write(out / 'table.txt', (text + '\n').encode())
  durable.write(out / 'accuracy.png', figures.to_bytes(draw(found), 'png'))
  return text


def _integers(text: str) -> list[int]:
  return [int(part) for part in text.split(',')]


def main() -> None:
  """Runs what is missing, and makes the table and the figure."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
  parser.add_argument('--out', required=True, type=pathlib.Path)
  parser.add_argument('--seconds', type=float, default=300)
  parser.add_argument('--seeds', type=_integers, default=[1, 2, 3, 4, 5])
  parser.add_argument('--methods', type=lambda text: text.split(','), default=METHODS)
  parser.add_argument('--cores', type=_integers, default=[0], help='One run on each.')
  parser.add_argument('--python', default=sys.executable, help='Has the other tools.')
  parser.add_argument('--data_dir', help='TFDS data folder.')
  parser.add_argument('--report', action='store_true', help='Run nothing.')
  parser.add_argument('--tiny', action='store_true', help='A rehearsal.')
  args = parser.parse_args()
  if unknown := set(args.methods) - set(METHODS):
    parser.error(
      f'methods: got {", ".join(sorted(unknown))}, want {", ".join(METHODS)}'
    )
  try:
    failures = _run_and_report(args)
  except (OSError, UserError) as error:
    parser.error(str(error))
  if failures:
    sys.exit(f'failed: {"; ".join(failures)}; the same command tries them again')


def _run_and_report(args: argparse.Namespace) -> list[str]:
  """Runs what is missing and prints the table; returns the failures.

  Raises:
    UserError: If there are other results in the folder, or damaged ones.
  """
  args.out.mkdir(parents=True, exist_ok=True)
  earlier = {
    (r['budget_seconds'], r['tiny']) for rs in read(args.out).values() for r in rs
  }
  if not args.report and earlier - {(args.seconds, args.tiny)}:
    raise UserError(
      f'out: got results of other seconds or data in {args.out}, want none'
    )
  failures = [] if args.report else _run_missing(args)
  print(write_report(args.out))
  return failures


if __name__ == '__main__':
  main()
