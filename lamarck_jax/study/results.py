"""The numbers of a study: what tables, tests and figures are made from.

They are collected from the run directories into one small file, results.json, from
which all of these can be made again.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

from lamarck_jax.errors import UserError
from lamarck_jax.run_directory import records

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Run:
  """One finished search.

  Attributes:
    seed: Its seed.
    epochs: Epochs used after each evaluation, ascending.
    fitness: Validation accuracy of each evaluation, in [0, 1].
    best_fitness: Best validation accuracy so far.
    best_num_blocks: Number of blocks of the best network so far.
    flops: Operations of one example times the examples seen, over the search.
    seconds: Duration of the search, without completion.
    best: Blocks of the best network, [filters, kernel size, stride] each.
    test_accuracy: Test accuracy after completion, by the checkpoint's epochs.
  """

  seed: int
  epochs: tuple[int, ...]
  fitness: tuple[float, ...]
  best_fitness: tuple[float, ...]
  best_num_blocks: tuple[int, ...]
  flops: int
  seconds: float
  best: tuple[tuple[int, int, int], ...]
  test_accuracy: Mapping[int, float]

  def best_fitness_at(self, epochs: float) -> float:
    """Returns the best validation accuracy after so many epochs, or NaN before any."""
    return self._at(self.best_fitness, epochs)

  def best_num_blocks_at(self, epochs: int) -> float:
    """Returns the best network's number of blocks after so many epochs, likewise."""
    return self._at(self.best_num_blocks, epochs)

  def _at(self, values: tuple[float, ...], epochs: float) -> float:
    known = [value for used, value in zip(self.epochs, values) if used <= epochs]
    return known[-1] if known else float('nan')


@dataclasses.dataclass(frozen=True)
class Setting:
  """The runs of one setting.

  Attributes:
    name: Its name.
    inheritance: Its mode of inheritance.
    epochs_per_evaluation: e.
    runs: The finished runs, by seed.
    missing: Why a run is not among them, by seed.
  """

  name: str
  inheritance: str
  epochs_per_evaluation: int
  runs: tuple[Run, ...]
  missing: Mapping[int, str]

  def test_accuracies(self, epochs: int) -> list[float]:
    """Returns the runs' test accuracies at a checkpoint, of those that have one."""
    found = [run.test_accuracy.get(epochs) for run in self.runs]
    return [accuracy for accuracy in found if accuracy is not None]

  def best_fitnesses(self, epochs: float) -> list[float]:
    """Returns the runs' best validation accuracies after so many epochs."""
    return [run.best_fitness_at(epochs) for run in self.runs]


@dataclasses.dataclass(frozen=True)
class Study:
  """The results of a study.

  Attributes:
    dataset: Name of the data set.
    budget_epochs: n.
    checkpoint_epochs: Budgets at which there are test accuracies, ascending.
    settings: The settings, in the order asked for.
  """

  dataset: str
  budget_epochs: int
  checkpoint_epochs: tuple[int, ...]
  settings: tuple[Setting, ...]


def write_plan(
  root: pathlib.Path,
  runs: Iterable[tuple[str, int]],
  failures: Mapping[str, str] | None = None,
) -> None:
  """Notes which runs belong to a study, besides those noted before.

  Args:
    root: Directory of the study.
    runs: Setting and seed of each.
    failures: Why runs failed, by `<setting>/seed<k>`; replaces what was noted.
  """
  path = root / 'study.json'
  known = json.loads(path.read_text())['runs'] if path.exists() else []
  known += [list(run) for run in runs if list(run) not in known]
  content = {'format_version': FORMAT_VERSION, 'runs': known}
  _write(path, json.dumps({**content, 'failures': dict(failures or {})}, indent=1))


def collect(root: pathlib.Path) -> Study:
  """Reads the run directories of a study.

  Args:
    root: Directory of the study; it has a plan.

  Raises:
    UserError: If no run has been started.
  """
  plan = json.loads((root / 'study.json').read_text())
  settings: dict[str, tuple[list[Run], dict[int, str]]] = {}
  configs: dict[str, Any] = {}
  for name, seed in plan['runs']:
    runs, missing = settings.setdefault(name, ([], {}))
    path = root / name / f'seed{seed}'
    if (path / 'config.json').exists():
      configs[name] = records.read_config(path)
    if (path / 'result.json').exists():
      runs.append(_read_run(path, seed))
    else:
      missing[seed] = plan['failures'].get(f'{name}/seed{seed}', 'not finished')
  if not configs:
    raise UserError(f'study: {root} has no run yet')
  checkpoints = {
    epochs
    for runs, _ in settings.values()
    for run in runs
    for epochs in run.test_accuracy
  }
  config = next(iter(configs.values()))
  return Study(
    config['dataset']['name'],
    config['budget_epochs'],
    tuple(sorted(checkpoints)),
    tuple(
      Setting(
        name,
        configs[name]['inheritance'],
        configs[name]['epochs_per_evaluation'],
        tuple(sorted(runs, key=lambda run: run.seed)),
        missing,
      )
      for name, (runs, missing) in settings.items()
      if name in configs
    ),
  )


def _read_run(path: pathlib.Path, seed: int) -> Run:
  events = records.read_events(path)
  result = records.read_result(path)
  assert result is not None
  best_num_blocks: list[int] = []
  best = -1.0
  for event in events:
    if event['best_fitness'] > best:
      best = event['best_fitness']
      best_num_blocks.append(len(event['genotype']))
    else:
      best_num_blocks.append(best_num_blocks[-1])
  return Run(
    seed,
    tuple(event['epochs_used'] for event in events),
    tuple(event['fitness'] for event in events),
    tuple(event['best_fitness'] for event in events),
    tuple(best_num_blocks),
    result['flops'],
    result['seconds'],
    tuple(tuple(block) for block in result['best']['genotype']),
    {entry['epochs']: entry['test_accuracy'] for entry in result['checkpoints']},
  )


def write(study: Study, path: str | os.PathLike[str]) -> None:
  """Writes results.json, a line per run."""
  content = {'format_version': FORMAT_VERSION, **dataclasses.asdict(study)}
  text = json.dumps(content).replace('{"seed"', '\n{"seed"')
  _write(pathlib.Path(path), text)


def load(path: str | os.PathLike[str]) -> Study:
  """Reads a study.

  Args:
    path: A study's directory, or a results.json, or a directory with one.

  Raises:
    UserError: If there is none, or it is of another format.
  """
  path = pathlib.Path(path)
  if (path / 'study.json').exists():
    return collect(path)
  if path.is_dir():
    path = path / 'results.json'
  try:
    content = json.loads(path.read_bytes())
    if content.pop('format_version') != FORMAT_VERSION:
      raise UserError(f'results: {path} is not of format version {FORMAT_VERSION}')
    return _study_from_json(content)
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f'results: got {path}, want a study or its results.json: {error}'
    ) from error


def _study_from_json(content: dict[str, Any]) -> Study:
  settings = []
  for setting in content.pop('settings'):
    runs = []
    for run in setting.pop('runs'):
      accuracies = {int(key): value for key, value in run.pop('test_accuracy').items()}
      best = tuple(tuple(block) for block in run.pop('best'))
      fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in run.items()
      }
      runs.append(Run(**fields, best=best, test_accuracy=accuracies))
    missing = {int(seed): reason for seed, reason in setting.pop('missing').items()}
    settings.append(Setting(**setting, runs=tuple(runs), missing=missing))
  checkpoints = tuple(content.pop('checkpoint_epochs'))
  return Study(**content, checkpoint_epochs=checkpoints, settings=tuple(settings))


def _write(path: pathlib.Path, text: str) -> None:
  temporary = path.with_name(f'.{path.name}.tmp')
  temporary.write_text(text + '\n')
  temporary.replace(path)
