"""Runs a study: a search for every setting and seed, side by side (Section 4.1).

  python -m lamarck_jax.study --config=configs/cifar10.py --workdir=DIR --num_seeds=20
  python -m lamarck_jax.study --config=configs/cifar10.py --workdir=DIR --engine=ray
  python -m lamarck_jax.study --config=configs/cifar10.py --workdir=DIR --engine=slurm

Every run is an ordinary run directory, DIR/<setting>/seed<k>, and resumes by itself.
The same command resumes a study that was stopped and skips finished runs; with more
seeds or settings it extends the study. A worker that dies is restarted; a run that
fails is named at the end and does not stop the others. The study ends with
DIR/results.json (every number that tables and figures need), DIR/table.{txt,csv,tex},
the figures and DIR/report.html.
"""

from collections.abc import Mapping
import pathlib
import re
import sys

from absl import flags
from ml_collections import config_flags

from lamarck_jax import config as config_lib
from lamarck_jax.errors import UserError
from lamarck_jax.runtime import command_line, process, signals
from lamarck_jax.study import results, runner
from lamarck_jax.study.executors import Executor, LocalExecutor, RayExecutor, Task
from lamarck_jax.study.slurm import SlurmExecutor

# What a study writes, and what makes a folder a run's.
_OUTPUTS = re.compile(
  r'results\.json|report\.html|table\.(txt|csv|tex)|config\.json'
  r'|(accuracy|num_blocks|architecture)\.(png|pdf)'
)

_ENGINES_OF_FLAGS = {
  'ray_address': ('ray',),
  'cpus_per_run': ('ray', 'slurm'),
  'gpus_per_run': ('ray', 'slurm'),
  'slurm_parameters': ('slurm',),
  'slurm_cluster': ('slurm',),
}


def _define_flags() -> None:
  config_flags.DEFINE_config_file('config', None, 'Configuration file, no setting.')
  command_line.define_path('workdir', None, 'Directory of the study.')
  command_line.define_path('xla_cache_dir', None, command_line.XLA_CACHE_DIR_HELP)
  flags.DEFINE_list(
    'settings',
    list(config_lib.PAPER_SETTINGS),
    'Settings; the first is compared with each of the others. A variant of one is'
    ' NAME=SETTING+FIELD=VALUE+..., such as slow=lamarckian+learning_rate=3e-4.',
  )
  flags.DEFINE_integer(
    'num_seeds',
    20,
    'Runs of each setting; seeds count up from config.seed.',
    lower_bound=1,
  )
  flags.DEFINE_enum(
    'engine',
    'local',
    ['local', 'ray', 'slurm'],
    'Processes of this machine, a Ray cluster, or Slurm jobs.',
  )
  flags.DEFINE_integer(
    'num_workers',
    None,
    'Maximum number of concurrent runs; by default as many as fill the GPUs, or else'
    ' one per core, and with Ray and Slurm as many as the cluster has room for.',
    lower_bound=1,
  )
  flags.DEFINE_string(
    'ray_address', None, 'Ray cluster to join; one is started here by default.'
  )
  flags.DEFINE_float(
    'cpus_per_run', 1, 'Ray, Slurm: CPUs that a run needs.', lower_bound=1
  )
  flags.DEFINE_float(
    'gpus_per_run',
    0,
    'Ray, Slurm: GPUs that a run needs; with Ray 0.25 for four runs on one.',
    lower_bound=0,
  )
  flags.DEFINE_list(
    'slurm_parameters',
    [],
    'Slurm: options of sbatch, such as partition=gpu,time=240 (minutes).',
  )
  flags.DEFINE_enum(
    'slurm_cluster',
    'slurm',
    ['slurm', 'local'],
    "Slurm: 'local' runs the jobs as processes of this machine, to try it out.",
  )


def _make_executor(values: flags.FlagValues, tasks: list[Task]) -> Executor:
  if values.engine == 'local':
    sizes = [process.largest_activations(task.config) for task in tasks]
    known = [size for size in sizes if size is not None]
    largest = max(known) if len(known) == len(sizes) else None
    return LocalExecutor(values.num_workers, largest)
  if values.engine == 'slurm':
    return SlurmExecutor(
      pathlib.Path(values.workdir).absolute() / 'logs' / 'slurm',
      cpus_per_run=_whole('cpus_per_run', values.cpus_per_run),
      gpus_per_run=_whole('gpus_per_run', values.gpus_per_run),
      parameters=_parse_parameters(values.slurm_parameters),
      num_workers=values.num_workers,
      cluster=values.slurm_cluster,
    )
  return RayExecutor(
    values.ray_address,
    cpus_per_run=values.cpus_per_run,
    gpus_per_run=values.gpus_per_run,
    num_workers=values.num_workers,
  )


def _whole(name: str, value: float) -> int:
  if value != int(value):
    raise UserError(f'{name}: got {value}, want a whole number with Slurm')
  return int(value)


def _parse_parameters(texts: list[str]) -> dict[str, str]:
  parameters = {}
  for text in texts:
    name, equals, value = text.partition('=')
    if not (name.isidentifier() and equals and value):
      raise UserError(f'slurm_parameters: got {text!r}, want NAME=VALUE')
    parameters[name] = value
  return parameters


def _run(tasks: list[Task], values: flags.FlagValues) -> dict[Task, str]:
  """Runs the searches; a signal ends the program with the signal's exit status."""
  signals.install()
  executor = _make_executor(values, tasks)
  progress = runner.Progress(tasks)
  try:
    return runner.run(tasks, executor, progress.ended, progress.update)
  except signals.Stopped as stopped:
    signals.say_stopped(f'stopped; the same command resumes {values.workdir}')
    sys.exit(stopped.status)
  finally:
    progress.close()
    executor.close()


def _check_folder(root: pathlib.Path) -> None:
  """Raises UserError if a folder is a run's, or has files that would be replaced."""
  try:
    names = {path.name for path in root.iterdir()} if root.is_dir() else set()
  except OSError:
    return  # It cannot be written either, which is said then.
  if 'study.json' not in names and (
    others := sorted(filter(_OUTPUTS.fullmatch, names))
  ):
    raise UserError(
      f'workdir: got {root} with {others[0]} but no study.json, want the directory of a'
      ' study, or an empty or new one'
    )


def _write_outputs(root: pathlib.Path) -> results.Study:
  """Writes results, tables, figures and the report, and prints the tables."""
  # Matplotlib and SciPy, which --help and bad flags need not wait for.
  from lamarck_jax.report import html_page
  from lamarck_jax.study import figures, tables

  study = results.collect(root)
  results.write(study, root / 'results.json')
  tables.write_tables(study, root)
  figures.write_figures(study, root)
  html_page.write_if_possible(root)
  print(tables.report(study))
  print(f'everything is in {root}')
  return study


def _exit_if_failed(failures: Mapping[Task, str]) -> None:
  for task, reason in failures.items():
    print(f'failed: {task.name}: {reason}', file=sys.stderr)
  if failures:
    sys.exit(1)


def main(argv: list[str]) -> None:
  """Runs the study that the flags describe, and reports how it ended."""
  values = flags.FLAGS
  if len(argv) > 1:
    raise UserError(f'arguments: got {argv[1]!r}, want flags alone')
  for name, engines in _ENGINES_OF_FLAGS.items():
    if values[name].present and values.engine not in engines:
      raise UserError(
        f'{name}: got a value, which has no effect here, want'
        f' --engine={" or ".join(engines)}'
      )
  if not values.workdir:
    raise UserError('workdir: got none, want the directory of the study')
  config_file = config_flags.get_config_filename(values['config'])
  if re.search(r'\.py:\w+$', config_file):
    raise UserError(
      f'config: got {config_file}, want a file alone: --settings names the settings'
    )
  root = pathlib.Path(values.workdir)
  _check_folder(root)
  tasks = runner.make_tasks(
    config_file,
    config_flags.get_override_values(values['config']),
    values.settings,
    values.num_seeds,
    values.workdir,
    values.xla_cache_dir,
  )
  runs = [(task.setting, task.seed) for task in tasks]
  try:
    (root / 'logs').mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'workdir: got {root}, want a directory that can be written: {error.strerror}'
    ) from error
  results.write_plan(root, runs)
  failures = _run(tasks, values)
  results.write_plan(root, runs, {task.name: why for task, why in failures.items()})
  study = _write_outputs(root)
  missing = {
    f'{setting.name}/seed{seed}': why
    for setting in study.settings
    for seed, why in setting.missing.items()
  }
  failures |= {task: missing[task.name] for task in tasks if task.name in missing}
  _exit_if_failed(failures)


def cli() -> None:
  """Entry point of `python -m lamarck_jax.study` and of `lamarck-study`."""
  _define_flags()
  command_line.run(main)


if __name__ == '__main__':
  cli()
