"""The numbers of a study, from which tables, tests and figures are computed.

They are collected from the run directories into one small file, results.json, which
alone suffices to compute all of these again.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

from absl import logging

from lamarck_jax import config as config_lib
from lamarck_jax import metrics
from lamarck_jax.errors import DamagedError, UserError
from lamarck_jax.run_directory import digests, durable, set_aside
from lamarck_jax.study import checked_files
from lamarck_jax.study.consistency import Consistency, StartedRun

# Of study.json and results.json; since 2 they have a digest.
FORMAT_VERSION = 2
_NOT_FINISHED = 'not finished'


@dataclasses.dataclass(frozen=True)
class Run:
  """One finished search.

  Attributes:
    seed: Its seed.
    epochs: Epochs used after each evaluation, ascending.
    fitness: Validation accuracy of each evaluation, in [0, 1].
    best_fitness: Best validation accuracy up to and including each evaluation.
    best_num_blocks: Number of blocks of the network that had it.
    flops: FLOPs of one forward pass per example seen, summed over the search.
    seconds: Duration of the search, without completion.
    best: Blocks of the best network, (filters, kernel size, stride) each.
    test_accuracy: Test accuracy after completion, by the checkpoint's epochs.
    training_accuracy: The same on the training images; empty for runs that predate it.
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
  training_accuracy: Mapping[int, float] = dataclasses.field(default_factory=dict)

  def best_fitness_at(self, epochs: float) -> float:
    """Returns the best validation accuracy within `epochs`; NaN if there is none."""
    return self._at(self.best_fitness, epochs)

  def best_num_blocks_at(self, epochs: int) -> float:
    """Returns the best network's number of blocks within `epochs`; NaN if none."""
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
    epochs_per_evaluation: Training epochs of each child, the paper's e.
    runs: The finished runs, ordered by seed.
    missing: Why a run has no result, by seed.
    fitness: What its runs select for, as in the configuration.
    parsimony: As in the configuration; above 0 `best_fitness` is that of the network
      that is selected, which may be less fit than others.
    dataset: Its data set where that is not the study's.
    budget_epochs: Its budget where that is not the study's.
  """

  name: str
  inheritance: str
  epochs_per_evaluation: int
  runs: tuple[Run, ...]
  missing: Mapping[int, str]
  fitness: str = 'accuracy'
  parsimony: float = 0.0
  dataset: str | None = None
  budget_epochs: int | None = None

  @property
  def short_name(self) -> str:
    """Its mode of inheritance, or its name where settings differ in something else."""
    by_mode = self.name in config_lib.SETTINGS and self.name != 'random_search'
    return self.inheritance if by_mode else self.name

  def test_accuracies(self, epochs: int) -> list[float]:
    """Returns the test accuracies at a checkpoint, of the runs that have it."""
    return [r.test_accuracy[epochs] for r in self.runs if epochs in r.test_accuracy]

  def training_accuracies(self, epochs: int) -> list[float]:
    """Returns the training accuracies at a checkpoint, of the runs that have it."""
    runs = [run for run in self.runs if epochs in run.training_accuracy]
    return [run.training_accuracy[epochs] for run in runs]

  def best_fitnesses(self, epochs: float) -> list[float]:
    """Returns the best validation accuracy of each run within `epochs`."""
    return [run.best_fitness_at(epochs) for run in self.runs]


@dataclasses.dataclass(frozen=True)
class Study:
  """The results of a study.

  Attributes:
    dataset: Name of the data set; a setting may have another.
    budget_epochs: Training epochs of each search, the paper's n, likewise.
    checkpoint_epochs: Budgets with test accuracies, in epochs, ascending.
    settings: The settings, in the order of the command.
  """

  dataset: str
  budget_epochs: int
  checkpoint_epochs: tuple[int, ...]
  settings: tuple[Setting, ...]

  def budget_of(self, setting: Setting) -> int:
    """Returns the budget of one of its settings, in epochs."""
    return setting.budget_epochs or self.budget_epochs

  @property
  def max_budget_epochs(self) -> int:
    """The largest budget of a setting."""
    return max(map(self.budget_of, self.settings), default=self.budget_epochs)

  @property
  def selected_name(self) -> str:
    """What `best_fitness` is, in words; settings may differ in it."""
    fitnesses = {setting.fitness for setting in self.settings}
    return metrics.selected_name(
      fitnesses.pop() if len(fitnesses) == 1 else '',
      max((setting.parsimony for setting in self.settings), default=0),
    )


def write_plan(
  root: pathlib.Path,
  runs: Iterable[tuple[str, int]],
  failures: Mapping[str, str] | None = None,
) -> None:
  """Adds runs to the plan of a study, study.json.

  Args:
    root: Directory of the study.
    runs: Setting and seed of each run.
    failures: Why runs failed, by `<setting>/seed<k>`; replaces the failures before.

  Raises:
    UserError: If the plan so far is damaged.
    StorageError: If the plan cannot be written.
  """
  path = root / 'study.json'
  known = planned_runs(root)
  known += [run for run in runs if run not in known]
  _write(path, {'runs': known, 'failures': dict(failures or {})}, indent=1)


def planned_runs(root: pathlib.Path) -> list[tuple[str, int]]:
  """Returns setting and seed of each run in the plan of a study, if it has one.

  Raises:
    UserError: If the plan is damaged.
  """
  path = root / 'study.json'
  if not path.exists():
    return []
  plan = checked_files.read_plan(path, FORMAT_VERSION)
  return [(name, seed) for name, seed in plan['runs']]


def check_run(root: pathlib.Path, setting: str, seed: int) -> None:
  """Checks a run that has been started against those before it in the plan.

  Raises:
    UserError: If they cannot be compared, or the plan is damaged.
  """
  consistency = Consistency()
  for name, number in planned_runs(root):
    is_this = (name, number) == (setting, seed)
    try:
      consistency.check(name, StartedRun.read(root / name / f'seed{number}'))
    except UserError:
      if is_this:
        raise
    if is_this:
      return


def collect(root: pathlib.Path) -> Study:
  """Reads the run directories of a study.

  A run that cannot be read, or compared with those before it, is missing, with the
  reason.

  Args:
    root: Directory of the study; it has a plan.

  Raises:
    UserError: If the plan is damaged, or no run that can be read has been started.
  """
  plan = checked_files.read_plan(root / 'study.json', FORMAT_VERSION)
  runs: dict[str, list[Run]] = {}
  missing: dict[str, dict[int, str]] = {}
  configs: dict[str, Mapping[str, Any]] = {}
  consistency = Consistency()
  for name, seed in plan['runs']:
    runs.setdefault(name, [])
    missing.setdefault(name, {})
    path = root / name / f'seed{seed}'
    why = plan['failures'].get(f'{name}/seed{seed}', _NOT_FINISHED)
    run = None
    try:
      if (path / 'config.json').exists():
        started = _read_start(path, seed)
        configs.setdefault(name, started.config)
        consistency.check(name, started)
        run = _read_run(path, seed)
    except UserError as error:
      why = str(error)
    if run:
      runs[name].append(run)
    else:
      missing[name][seed] = checked_files.printable(why)
  for name in runs:
    if name not in configs:
      _warn_of_unreadable(name, missing[name])
  if not configs:
    raise UserError(
      f'study: got {root}, want a study with a run that has started and can be read'
    )
  return _study(runs, missing, configs)


def _warn_of_unreadable(name: str, missing: Mapping[int, str]) -> None:
  """Names the runs of a setting of which none has a configuration."""
  for seed, why in missing.items():
    if why != _NOT_FINISHED:
      logging.warning('%s/seed%d is missing: %s', name, seed, why)


def _study(
  runs: Mapping[str, list[Run]],
  missing: Mapping[str, Mapping[int, str]],
  configs: Mapping[str, Mapping[str, Any]],
) -> Study:
  """Returns the study of runs by the name of their setting."""
  first = next(iter(configs.values()))
  dataset, budget = first['dataset']['name'], first['budget_epochs']
  settings = []
  for name in runs:
    if (config := configs.get(name)) is None:
      continue
    own_dataset, own_budget = config['dataset']['name'], config['budget_epochs']
    setting = Setting(
      name,
      config['inheritance'],
      config['epochs_per_evaluation'],
      tuple(sorted(runs[name], key=lambda run: run.seed)),
      missing[name],
      config['fitness'],
      config['parsimony'],
      None if own_dataset == dataset else checked_files.printable(own_dataset),
      None if own_budget == budget else own_budget,
    )
    settings.append(setting)
  checkpoints = {
    epochs
    for setting in settings
    for run in setting.runs
    for epochs in run.test_accuracy
  }
  return Study(
    checked_files.printable(dataset),
    budget,
    tuple(sorted(checkpoints)),
    tuple(settings),
  )


def _read_start(path: pathlib.Path, seed: int) -> StartedRun:
  """Returns what a run was started with.

  Raises:
    UserError: If it is damaged, or has another seed.
  """
  started = StartedRun.read(path)
  if (found := started.config['seed']) != seed:
    raise DamagedError(f'seed: got {found} in {path / "config.json"}, want {seed}')
  return started


def _read_run(path: pathlib.Path, seed: int) -> Run | None:
  """Returns a finished run, or None if it has no result.

  Raises:
    UserError: If it cannot be read.
  """
  result = checked_files.read_result(path)
  if result is None:
    return None
  events = checked_files.read_events(path)
  if not events:
    raise DamagedError(f'events: got none in {path}, want those of its result.json')
  best_num_blocks: list[int] = []
  best = -1.0
  for event in events:
    if event.get('best') is not None:  # With parsimony it may be less fit than others.
      best_num_blocks.append(len(events[event['best']]['genotype']))
    elif event['best_fitness'] > best:
      best = event['best_fitness']
      best_num_blocks.append(len(event['genotype']))
    else:
      best_num_blocks.append(best_num_blocks[-1])
  checkpoints = result['checkpoints']
  return Run(
    seed,
    tuple(event['epochs_used'] for event in events),
    tuple(event['fitness'] for event in events),
    tuple(event['best_fitness'] for event in events),
    tuple(best_num_blocks),
    result['flops'],
    result['seconds'],
    tuple(tuple(block) for block in result['best']['genotype']),
    {entry['epochs']: entry['test_accuracy'] for entry in checkpoints},
    {
      entry['epochs']: entry['training_accuracy']
      for entry in checkpoints
      if entry.get('training_accuracy') is not None
    },
  )


def write(study: Study, path: str | os.PathLike[str]) -> None:
  """Writes results.json, with a line per run so that versions can be compared.

  One with runs that the study has no more, whose directories are gone, is renamed.
  """
  path = pathlib.Path(path)
  if path.exists() and _has_other_runs(path, study):
    set_aside.file(durable.Folder.open(path.parent), path.name)
  content = dataclasses.asdict(study)
  for setting in content['settings']:
    # Files of studies stay as they were before settings could differ in these.
    usual = {
      'fitness': 'accuracy',
      'parsimony': 0,
      'dataset': None,
      'budget_epochs': None,
    }
    for name, value in usual.items():
      if setting[name] == value:
        del setting[name]
  _write(path, content)


def _has_other_runs(path: pathlib.Path, study: Study) -> bool:
  try:
    before = load(path)
  except UserError:
    return True  # It cannot be read, so nothing says what is in it.
  known, found = (
    {(setting.name, run.seed) for setting in part.settings for run in setting.runs}
    for part in (study, before)
  )
  return not found <= known


def load(path: str | os.PathLike[str]) -> Study:
  """Reads a study.

  Args:
    path: A study's directory, or a results.json, or a directory with one.

  Raises:
    UserError: If there is none, or it is damaged or of another format version.
  """
  path = pathlib.Path(path)
  if (path / 'study.json').exists():
    return collect(path)
  if path.is_dir():
    path = path / 'results.json'
  try:
    return _study_from_json(checked_files.read_results(path, FORMAT_VERSION))
  except (ValueError, TypeError) as error:
    raise UserError(
      f'results: got {path}, want a study or its results.json: {error}'
    ) from error


def _study_from_json(content: dict[str, Any]) -> Study:
  """Returns a study; raises ValueError or TypeError."""
  settings = []
  for setting in content.pop('settings'):
    runs = []
    for run in setting.pop('runs'):
      for name in ('test_accuracy', 'training_accuracy'):
        run[name] = {int(key): value for key, value in run.get(name, {}).items()}
      best = tuple(tuple(block) for block in run.pop('best'))
      fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in run.items()
      }
      runs.append(Run(**fields, best=best))
    missing = {
      int(seed): checked_files.printable(reason)
      for seed, reason in setting.pop('missing').items()
    }
    if 'dataset' in setting:
      setting['dataset'] = checked_files.printable(setting['dataset'])
    settings.append(Setting(**setting, runs=tuple(runs), missing=missing))
  checkpoints = tuple(content.pop('checkpoint_epochs'))
  content['dataset'] = checked_files.printable(content['dataset'])
  return Study(**content, checkpoint_epochs=checkpoints, settings=tuple(settings))


def _write(
  path: pathlib.Path, content: dict[str, Any], indent: int | None = None
) -> None:
  sealed = digests.sealed({'format_version': FORMAT_VERSION, **content}, {})
  text = json.dumps(sealed, indent=indent).replace('{"seed"', '\n{"seed"')
  durable.write(path, (text + '\n').encode())
