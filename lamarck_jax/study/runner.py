"""The study: a search for every setting and seed, side by side (Section 4.1).

  python -m lamarck_jax.study --config=configs/cifar10.py --workdir=DIR --num_seeds=20
  python -m lamarck_jax.study --config=configs/cifar10.py --workdir=DIR --engine=ray

Every run is an ordinary run directory, DIR/<setting>/seed<k>, and resumes itself. The
same command goes on with a study that was stopped, skips what is finished, and with
more seeds or settings adds to it. A worker that dies is started again; a run that
fails is named at the end and the others go on. At the end stand DIR/results.json
(every number that tables and figures need), DIR/table.{txt,csv,tex} and the figures.
"""

from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import os
import pathlib
import sys
from typing import Any

from absl import flags, logging
from ml_collections import config_dict, config_flags
from tqdm import tqdm

from lamarck_jax import config as config_lib
from lamarck_jax.errors import UserError
from lamarck_jax.run_directory import lock, records
from lamarck_jax.runtime import command_line, signals
from lamarck_jax.study import results
from lamarck_jax.study.executors import LocalEngine, Outcome, RayEngine, Task

# A run whose worker died this often in a row without a new event is given up.
MAX_FRUITLESS_DEATHS = 3

Engine = LocalEngine | RayEngine


def run(
  tasks: Sequence[Task],
  engine: Engine,
  on_end: Callable[[Task, str | None], None] | None = None,
  on_wait: Callable[[], None] | None = None,
) -> dict[Task, str]:
  """Runs what is not finished yet.

  Args:
    tasks: The runs.
    engine: What runs them.
    on_end: Called when a run ends, with the reason if it failed.
    on_wait: Called about once a second.

  Returns:
    Why runs failed, for those that did.
  """
  waiting = [task for task in tasks if not task.finished]
  running: dict[Outcome, Task] = {}
  failures: dict[Task, str] = {}
  deaths: dict[Task, tuple[int, int]] = {}  # Epochs used by then, deaths since.
  while waiting or running:
    while waiting and len(running) < engine.num_workers:
      task = waiting.pop(0)
      task.workdir.parent.mkdir(parents=True, exist_ok=True)
      running[engine.submit(task)] = task
    done, _ = concurrent.futures.wait(
      running, timeout=1, return_when=concurrent.futures.FIRST_COMPLETED
    )
    for future in done:
      task = running.pop(future)
      death = future.exception()  # `perform` raises nothing: the process has died.
      if death is None:
        reason = future.result()
      else:
        epochs, count = task.epochs_used(), 1
        if task in deaths and deaths[task][0] == epochs:
          count = deaths[task][1] + 1
        deaths[task] = epochs, count
        if count < MAX_FRUITLESS_DEATHS:
          logging.warning('the worker of %s died; it goes on', task.name)
          lock.break_lock(task.workdir)  # It may have been on another machine.
          waiting.insert(0, task)
          continue
        reason = ' '.join(
          f'its worker died {count} times without progress, see {task.log}:'
          f' {death}'.split()
        )
      if reason is not None:
        failures[task] = reason
      if on_end:
        on_end(task, reason)
    if on_wait:
      on_wait()
  return failures


def make_tasks(
  config_file: str,
  overrides: Mapping[str, Any],
  settings: Sequence[str],
  num_seeds: int,
  workdir: str | os.PathLike[str],
  xla_cache_dir: str | None = None,
) -> list[Task]:
  """Returns the runs of a study, those of one seed together.

  Args:
    config_file: Configuration file, without a setting.
    overrides: Values of fields, by dotted name, for all settings.
    settings: Names of settings.
    num_seeds: Number of seeds; they start from `seed` of the configuration.
    workdir: Directory of the study.
    xla_cache_dir: Folder of compiled programs.

  Raises:
    UserError: If a configuration is impossible, or a directory holds another run.
  """
  if not settings:
    raise UserError('settings: got none, want names such as lamarckian,baseline_1')
  # A worker on another node has another current directory.
  root = pathlib.Path(workdir).absolute()
  configs = {name: _load_config(config_file, name) for name in settings}
  tasks = []
  for index in range(num_seeds):
    for setting, config in configs.items():
      config = config.copy_and_resolve_references()
      config.update_from_flattened_dict(dict(overrides))
      config.seed += index
      config_lib.validate(config)
      path = root / setting / f'seed{config.seed}'
      log = root / 'logs' / f'{setting}-seed{config.seed}.log'
      tasks.append(Task(setting, config.seed, config, path, log, xla_cache_dir))
  for task in tasks:
    records.check(task.workdir, task.config.to_dict())
  return tasks


def _load_config(config_file: str, setting: str) -> config_dict.ConfigDict:
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values)
  values(['study', f'--config={config_file}:{setting}'])
  config = values.config
  if config.setting != setting:
    raise UserError(f'settings: got {setting!r}, which {config_file} does not know')
  return config


class _Progress:
  """One line for all runs on a terminal, and a line per ended run elsewhere."""

  def __init__(self, tasks: Sequence[Task]):
    self._tasks = tasks
    self._failed = 0
    self._bar = tqdm(
      total=sum(task.config.budget_epochs for task in tasks),
      initial=self._epochs_used(),
      disable=not sys.stderr.isatty(),
      bar_format='{n_fmt}/{total_fmt} epochs {bar:10} {remaining} left  {desc}',
      dynamic_ncols=True,
    )
    self.update()

  def update(self) -> None:
    done = sum(task.finished for task in self._tasks)
    text = f'{done}/{len(self._tasks)} runs finished'
    if self._failed:
      text += f', {self._failed} failed'
    self._bar.set_description_str(text, refresh=False)
    self._bar.update(self._epochs_used() - self._bar.n)
    self._bar.refresh()

  def ended(self, task: Task, reason: str | None) -> None:
    self._failed += reason is not None
    done = sum(task.finished for task in self._tasks)
    how = f'failed: {reason}' if reason else 'finished'
    self._bar.write(f'{task.name} {how}  ({done}/{len(self._tasks)})', file=sys.stderr)

  def close(self) -> None:
    self._bar.close()

  def _epochs_used(self) -> int:
    # The last evaluation may exceed the budget.
    return sum(
      min(task.epochs_used(), task.config.budget_epochs) for task in self._tasks
    )


# ------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------


def _define_flags() -> None:
  config_flags.DEFINE_config_file('config', None, 'Configuration file, no setting.')
  flags.DEFINE_string('workdir', None, 'Directory of the study.')
  flags.DEFINE_string('xla_cache_dir', None, command_line.XLA_CACHE_DIR_HELP)
  flags.DEFINE_list(
    'settings',
    list(config_lib.PAPER_SETTINGS),
    'Settings; the first is compared with each.',
  )
  flags.DEFINE_integer(
    'num_seeds',
    20,
    'Runs of each setting; seeds count up from config.seed.',
    lower_bound=1,
  )
  flags.DEFINE_enum(
    'engine', 'local', ['local', 'ray'], 'Processes of this machine, or a Ray cluster.'
  )
  flags.DEFINE_integer(
    'num_workers',
    None,
    'Most runs at a time; by default one per GPU, or else per core, and with Ray as'
    ' many as it has room for.',
    lower_bound=1,
  )
  flags.DEFINE_string(
    'ray_address', None, 'Ray cluster to join; one is started here by default.'
  )
  flags.DEFINE_float('cpus_per_run', 1, 'Ray: CPUs that a run needs.', lower_bound=1)
  flags.DEFINE_float('gpus_per_run', 0, 'Ray: GPUs that a run needs.', lower_bound=0)


def _engine(values: flags.FlagValues) -> Engine:
  if values.engine == 'local':
    return LocalEngine(values.num_workers)
  return RayEngine(
    values.ray_address,
    cpus_per_run=values.cpus_per_run,
    gpus_per_run=values.gpus_per_run,
    num_workers=values.num_workers,
  )


def main(argv: list[str]) -> None:
  """Runs the study of the flags, and says how it ended."""
  values = flags.FLAGS
  if len(argv) > 1:
    raise UserError(f'arguments: got {argv[1]!r}, want flags alone')
  if not values.workdir:
    raise UserError('workdir: missing, want the directory of the study')
  tasks = make_tasks(
    config_flags.get_config_filename(values['config']),
    config_flags.get_override_values(values['config']),
    values.settings,
    values.num_seeds,
    values.workdir,
    values.xla_cache_dir,
  )
  root = pathlib.Path(values.workdir)
  runs = [(task.setting, task.seed) for task in tasks]
  try:
    (root / 'logs').mkdir(parents=True, exist_ok=True)
    results.write_plan(root, runs)
  except OSError as error:
    raise UserError(f'workdir: {root}: {error.strerror}') from error

  signals.install()
  engine = _engine(values)
  progress = _Progress(tasks)
  try:
    failures = run(tasks, engine, progress.ended, progress.update)
  except signals.Stopped as stopped:
    signals.say_stopped(f'stopped; the same command again goes on in {root}')
    sys.exit(stopped.status)
  finally:
    progress.close()
    engine.close()

  from lamarck_jax.report import html_page
  from lamarck_jax.study import analysis, figures

  results.write_plan(root, runs, {task.name: why for task, why in failures.items()})
  study = results.collect(root)
  results.write(study, root / 'results.json')
  analysis.write_tables(study, root)
  figures.write_figures(study, root)
  html_page.write_if_possible(root)
  print(analysis.report(study))
  print(f'everything is in {root}')
  for task, reason in failures.items():
    print(f'failed: {task.name}: {reason}', file=sys.stderr)
  if failures:
    sys.exit(1)


def cli() -> None:
  """The program `lamarck-study`."""
  _define_flags()
  command_line.run(main)
