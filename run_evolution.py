"""Evolves a convolutional network whose children inherit trained weights.

  python run_evolution.py
  python run_evolution.py --config=configs/cifar100.py
  python run_evolution.py --config=configs/cifar10.py:baseline_1 --config.seed=3

A population's children are trained side by side with --num_workers=N:

  python run_evolution.py --config.algorithm=population --num_workers=2 --workdir=DIR

Run the same command again to resume a search that was stopped. Every field of the
configuration can be set by a flag, --config.FIELD=VALUE.
"""

import contextlib
import math
import os
import pathlib
import sys
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import config_dict, config_flags

from lamarck_jax import config as config_lib
from lamarck_jax.errors import UserError
from lamarck_jax.runtime import command_line, signals
from lamarck_jax.workers import fork_server

if TYPE_CHECKING:
  from lamarck_jax.workers.pool import Workers

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Configuration file, configs/digits.py by default, and after a colon the setting,'
  f' one of {", ".join(config_lib.SETTINGS)}; the first by default.',
)
_WORKDIR = command_line.define_path(
  'workdir',
  None,
  'Run directory; runs/<config or own data>-<setting>-seed<seed> by default.',
)
_TENSORBOARD_DIR = command_line.define_path(
  'tensorboard_dir', None, 'Directory of TensorBoard scalars; none by default.'
)
_XLA_CACHE_DIR = command_line.define_path(
  'xla_cache_dir', None, command_line.XLA_CACHE_DIR_HELP
)
_NUM_WORKERS = flags.DEFINE_integer(
  'num_workers',
  None,
  "Number of processes that train a population's children side by side; by default"
  ' this process trains one after another.',
)
_ENGINE = flags.DEFINE_string(
  'engine', 'local', 'Workers: local, processes of this machine, or ray, of a cluster.'
)
_RAY_ADDRESS = flags.DEFINE_string(
  'ray_address', None, 'Ray cluster to join; one is started here by default.'
)
_CPUS_PER_WORKER = flags.DEFINE_float(
  'cpus_per_worker', 1, 'Ray: CPUs that a worker needs.'
)
_GPUS_PER_WORKER = flags.DEFINE_float(
  'gpus_per_worker', 0, 'Ray: GPUs that a worker needs; 0.25 for four on one.'
)


# Functions import what imports JAX or NumPy, so that --help and bad flags answer fast.
def _default_workdir() -> str:
  from lamarck_jax.data import own_images

  config = _CONFIG.value
  name = config_flags.get_config_filename(flags.FLAGS['config'])
  if config.dataset.name.startswith(own_images.PREFIXES):
    name = os.path.abspath(config.dataset.name.partition(':')[2])
  name = pathlib.Path(name).stem
  return os.path.join('runs', f'{name}-{config.setting}-seed{config.seed}')


def _check_workers(config: config_dict.ConfigDict) -> None:
  """Raises UserError if the flags of workers are unfit, or have no effect."""
  number, engine = _NUM_WORKERS.value, _ENGINE.value
  if engine not in ('local', 'ray'):
    raise UserError(f'engine: got {engine!r}, want one of local, ray')
  for flag, wanted in (
    (_ENGINE, '--num_workers' if number is None else None),
    (_RAY_ADDRESS, '--engine=ray' if engine != 'ray' else None),
    (_CPUS_PER_WORKER, '--engine=ray' if engine != 'ray' else None),
    (_GPUS_PER_WORKER, '--engine=ray' if engine != 'ray' else None),
  ):
    if flag.present and wanted:
      raise UserError(
        f'{flag.name}: got {flag.value!r}, which has no effect here, want {wanted}'
      )
  if number is None:
    return
  is_population = config.algorithm == 'population'
  children = config.population.children if is_population else 1
  if children == 1:
    raise UserError(
      f'num_workers: got {number}, which has no effect where one child is trained at a'
      " time, want config.algorithm 'population' with several children"
    )
  if not 1 <= number <= children:
    raise UserError(
      f'num_workers: got {number}, want at least 1 and at most'
      f' config.population.children, {children}'
    )
  for flag, least in ((_CPUS_PER_WORKER, 1), (_GPUS_PER_WORKER, 0)):
    if not least <= flag.value < math.inf:
      raise UserError(f'{flag.name}: got {flag.value}, want a number from {least} on')


def _make_workers() -> 'Workers | None':
  """Returns the workers that the flags ask for, if any."""
  if _NUM_WORKERS.value is None:
    return None
  from lamarck_jax.runtime import gpu_sharing
  from lamarck_jax.workers import local, pool, ray_actors

  gpu_sharing.take_as_needed()
  number, cache = _NUM_WORKERS.value, _XLA_CACHE_DIR.value
  if _ENGINE.value == 'local':
    return pool.Workers(local.LocalEngine(number, cache))
  return pool.Workers(
    ray_actors.RayEngine(
      number,
      cache,
      address=_RAY_ADDRESS.value,
      cpus_per_worker=_CPUS_PER_WORKER.value,
      gpus_per_worker=_GPUS_PER_WORKER.value,
    )
  )


def main(argv: list[str]) -> None:
  """Runs the search that the flags describe, and prints its result."""
  if len(argv) > 1:
    raise UserError(f'arguments: got {argv[1]!r}, want flags alone')
  if _WORKDIR.value == '':
    raise UserError('workdir: got an empty path, want a directory')
  config, workdir = _CONFIG.value, _WORKDIR.value or _default_workdir()
  config_lib.validate(config)
  typed = config_flags.get_override_values(flags.FLAGS['config'])
  config_lib.check_typed([config], typed)
  _check_workers(config)
  if _NUM_WORKERS.value is not None and _ENGINE.value == 'local':
    fork_server.start()  # So that it imports JAX while this process does.
  from lamarck_jax import search
  from lamarck_jax.report import html_page, tensorboard
  from lamarck_jax.run_directory import progress
  from lamarck_jax.runtime import process

  workers = _make_workers()
  try:
    signals.install()
    process.configure(config, _XLA_CACHE_DIR.value)
    directory = _TENSORBOARD_DIR.value
    scalars = tensorboard.Scalars(directory) if directory else contextlib.nullcontext()
    with scalars as on_event:
      result = search.run(config, workdir, on_event, workers)
  except signals.Stopped as stopped:
    how = 'resume' if os.path.isdir(workdir) else 'start anew; there is no'
    signals.say_stopped(f'stopped; run the same command again to {how} {workdir}')
    sys.exit(stopped.status)
  lines = progress.result_lines(result, config.fitness, bool(config.parsimony))
  lines.append(('run directory', workdir))
  if path := html_page.write_if_possible(workdir):
    lines.append(('report', str(path)))
  width = max(len(name) for name, _ in lines)
  print(*('', *(f'{name:{width}} {value}' for name, value in lines)), sep='\n')


if __name__ == '__main__':
  configs = pathlib.Path(__file__).parent / 'configs'
  command_line.run(main, default_config=str(configs / 'digits.py'))
