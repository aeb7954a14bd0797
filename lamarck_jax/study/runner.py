"""The loop over the searches of a study, and how far they are."""

from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import sys
from typing import Any

from absl import flags, logging
from ml_collections import config_dict, config_flags
from tqdm import tqdm

from lamarck_jax import config as config_lib
from lamarck_jax import warm_start
from lamarck_jax.errors import UserError
from lamarck_jax.run_directory import dataset_record, lock, records
from lamarck_jax.study import checked_files, consistency, results
from lamarck_jax.study.consistency import StartedRun
from lamarck_jax.study.executors import Executor, Outcome, Task

# A run whose worker died this often in a row without a new event has failed.
MAX_FRUITLESS_DEATHS = 3


def run(
  tasks: Sequence[Task],
  executor: Executor,
  on_end: Callable[[Task, str | None], None] | None = None,
  on_wait: Callable[[], None] | None = None,
) -> dict[Task, str]:
  """Runs the searches that have no result yet.

  Args:
    tasks: The runs.
    executor: Where they run.
    on_end: Called when a run ends, with the reason if it failed.
    on_wait: Called about once a second.

  Returns:
    Why runs failed, for those that did.
  """
  # A search that has finished with data of another path compares them with these.
  waiting = [
    task
    for task in tasks
    if not task.finished
    or dataset_record.needs_check(task.config.dataset, task.workdir)
  ]
  running: dict[Outcome, Task] = {}
  failures: dict[Task, str] = {}
  deaths: dict[Task, tuple[int, int]] = {}  # Epochs used by then, deaths since.
  while waiting or running:
    while waiting and len(running) < executor.num_workers:
      task = waiting.pop(0)
      task.workdir.parent.mkdir(parents=True, exist_ok=True)
      running[executor.submit(task)] = task
    done, _ = concurrent.futures.wait(
      running, timeout=1, return_when=concurrent.futures.FIRST_COMPLETED
    )
    for future in done:
      task = running.pop(future)
      # `perform` returns every error as text, so an exception means a dead process.
      death = future.exception()
      count = _count_death(deaths, task) if death else 0
      if death and count < MAX_FRUITLESS_DEATHS:
        logging.warning('the worker of %s died; the run is resumed', task.name)
        # A worker that was given up may live: without its lock it cannot write.
        lock.revoke(task.workdir)
        waiting.insert(0, task)
        continue
      reason = _died(task, count, death) if death else future.result()
      if reason is not None:
        failures[task] = reason
      if on_end:
        on_end(task, reason)
    if on_wait:
      on_wait()
  return failures


def _count_death(deaths: dict[Task, tuple[int, int]], task: Task) -> int:
  """Returns how often a task's worker has died since its last new event."""
  epochs = task.epochs_used()
  epochs_before, count = deaths.get(task, (epochs, 0))
  count = count + 1 if epochs == epochs_before else 1
  deaths[task] = epochs, count
  return count


def _died(task: Task, count: int, death: BaseException) -> str:
  reason = f'its worker died {count} times without progress, see {task.log}: {death}'
  return ' '.join(reason.split())


def make_tasks(
  config_file: str,
  overrides: Mapping[str, Any],
  settings: Sequence[str],
  num_seeds: int,
  workdir: str | os.PathLike[str],
  xla_cache_dir: str | None = None,
) -> list[Task]:
  """Returns the runs of a study, ordered by seed and then by setting.

  In this order a study that is stopped early has complete seeds to compare.

  Args:
    config_file: Configuration file, without a setting.
    overrides: Values of fields, by dotted name, for all settings.
    settings: Names of settings, or variants, see `Variant.parse`.
    num_seeds: Number of seeds; they count up from `seed` of the configuration.
    workdir: Directory of the study.
    xla_cache_dir: Folder of compiled programs.

  Raises:
    UserError: If a configuration is invalid, a directory holds another run, or the
      study has runs that these cannot be compared with.
  """
  if 'setting' in overrides:
    raise UserError(
      f'config.setting: got {overrides["setting"]!r}, which has no effect here, want'
      ' --settings'
    )
  if not settings:
    raise UserError('settings: got none, want names such as lamarckian,baseline_1')
  root = pathlib.Path(workdir).absolute()
  configs: dict[str, config_dict.ConfigDict] = {}
  for variant in map(Variant.parse, settings):
    if variant.name in configs:
      raise UserError(f'settings: got {variant.name!r} twice, want different names')
    configs[variant.name] = _configure(config_file, overrides, variant)
  _check_different(configs)
  tasks: list[Task] = []
  for index in range(num_seeds):
    for setting, config in configs.items():
      config = config.copy_and_resolve_references()
      config.seed += index
      config_lib.validate(config)
      path = root / setting / f'seed{config.seed}'
      log = root / 'logs' / f'{setting}-seed{config.seed}.log'
      tasks.append(Task(setting, config.seed, config, path, log, xla_cache_dir))
  config_lib.check_typed(list(configs.values()), overrides)
  _check_extension(root, config_file, overrides, configs)
  for task in tasks:
    if not (task.workdir / 'config.json').exists():
      warm_start.check(task.config, task.workdir)
    if not _is_damaged(task.workdir):
      records.check(task.workdir, task.config.to_dict())
  return tasks


def _configure(
  config_file: str, overrides: Mapping[str, Any], variant: 'Variant'
) -> config_dict.ConfigDict:
  """Returns the configuration of a variant's runs, but for their seeds.

  Raises:
    UserError: If it is invalid.
  """
  loaded, own_overrides = _load_config(config_file, variant)
  config = loaded.copy_and_resolve_references()
  # What a variant sets is what it is about, so it takes precedence.
  config.update_from_flattened_dict({**overrides, **own_overrides})
  config.setting = variant.name
  config_lib.validate(config)
  config_lib.check_typed([config], own_overrides)
  # A worker of another node has another current directory.
  config.dataset.update(dataset_record.with_absolute_paths(config.dataset))
  config.init_from = warm_start.with_absolute_path(config.init_from)
  return config


def _check_different(configs: Mapping[str, config_dict.ConfigDict]) -> None:
  """Checks that no two settings are the same search under two names.

  Raises:
    UserError: If two are.
  """
  known: dict[str, str] = {}
  for name, config in configs.items():
    content = json.dumps({**config.to_dict(), 'setting': ''}, sort_keys=True)
    if (other := known.setdefault(content, name)) != name:
      raise UserError(
        f'settings: got {other} and {name}, which are the same search with these flags,'
        ' want settings that differ'
      )


def _check_extension(
  root: pathlib.Path,
  config_file: str,
  overrides: Mapping[str, Any],
  configs: Mapping[str, config_dict.ConfigDict],
) -> None:
  """Checks that runs can be compared with those that the study has.

  Of settings that the command does not name the configuration file has the meaning,
  unless they are variants.

  Raises:
    UserError: If they cannot.
  """
  known = {name: config.to_dict() for name, config in configs.items()}
  started = []
  for name, seed in results.planned_runs(root):
    with contextlib.suppress(UserError):
      if name not in known and name in config_lib.SETTINGS:
        known[name] = _configure(config_file, overrides, Variant(name, name)).to_dict()
      started.append((name, StartedRun.read(root / name / f'seed{seed}')))
  consistency.check_extension(started, known)


def _is_damaged(path: pathlib.Path) -> bool:
  """Returns whether a run's configuration is there and cannot be read.

  Such a run fails with the reason when it is started, and the others go on.
  """
  if not (path / 'config.json').exists():
    return False
  try:
    checked_files.read_config(path)
  except UserError:
    return True
  return False


@dataclasses.dataclass(frozen=True)
class Variant:
  """A setting with other values of some fields.

  Attributes:
    name: Its name in the study, which its folder has too.
    setting: The setting of the configuration file.
    fields: `FIELD=VALUE` each.
  """

  name: str
  setting: str
  fields: tuple[str, ...] = ()

  @classmethod
  def parse(cls, text: str) -> 'Variant':
    """Returns the variant of a text, `SETTING` or `NAME=SETTING+FIELD=VALUE+...`.

    Raises:
      UserError: If it is neither, or the name or a field is unfit.
    """
    start, *fields = text.split('+')
    name, equals, setting = start.partition('=')
    is_plain = not equals and not fields
    is_named = re.fullmatch('[A-Za-z0-9_-]{1,100}', name)
    if not is_named or not (is_plain or (setting and fields)):
      raise UserError(
        f'settings: got {text!r}, want SETTING or NAME=SETTING+FIELD=VALUE+..., a name'
        ' of letters, digits, _ and -'
      )
    if is_plain:
      return cls(name, name)
    if name in config_lib.SETTINGS:
      raise UserError(f'settings: got {text!r}, want a name that is not a setting')
    for field in fields:
      if field.partition('=')[0] not in config_lib.FIELDS or '=' not in field:
        raise UserError(
          f'settings: got {field!r} in {text!r}, want FIELD=VALUE of a configuration'
        )
    return cls(name, setting, tuple(fields))


def _load_config(
  config_file: str, variant: Variant
) -> tuple[config_dict.ConfigDict, dict[str, Any]]:
  """Returns the configuration of a variant's setting, and the variant's own values."""
  argv = ['study', f'--config={config_file}:{variant.setting}']
  argv += [f'--config.{field}' for field in variant.fields]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  try:
    values(argv)
  except flags.Error as error:
    raise UserError(
      f'settings: got {variant.name!r} with a bad value: {error}'
    ) from error
  config = values.config
  if config.setting != variant.setting:
    raise UserError(
      f'settings: got {variant.setting!r}, want a setting of {config_file}'
    )
  return config, config_flags.get_override_values(values['config'])


class Progress:
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
    """Reads from disk how far the runs are, and shows it."""
    done = sum(task.finished for task in self._tasks)
    text = f'{done}/{len(self._tasks)} runs finished'
    if self._failed:
      text += f', {self._failed} failed'
    self._bar.set_description_str(text, refresh=False)
    self._bar.update(self._epochs_used() - self._bar.n)
    self._bar.refresh()

  def ended(self, task: Task, reason: str | None) -> None:
    """Prints that a run ended, with the reason if it failed."""
    self._failed += reason is not None
    done = sum(task.finished for task in self._tasks)
    how = f'failed: {reason}' if reason else 'finished'
    self._bar.write(f'{task.name} {how}  ({done}/{len(self._tasks)})', file=sys.stderr)

  def close(self) -> None:
    """Ends the line."""
    self._bar.close()

  def _epochs_used(self) -> int:
    # The last evaluation may exceed the budget.
    return sum(
      min(task.epochs_used(), task.config.budget_epochs) for task in self._tasks
    )
