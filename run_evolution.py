"""Evolves a convolutional network whose children inherit trained weights.

  python run_evolution.py
  python run_evolution.py --config=configs/cifar100.py
  python run_evolution.py --config=configs/cifar10.py:baseline_1 --config.seed=3

Run the same command again to resume a search that was stopped. Every field of the
configuration can be set by a flag, --config.FIELD=VALUE.
"""

import contextlib
import os
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from lamarck_jax import config as config_lib
from lamarck_jax.errors import UserError
from lamarck_jax.runtime import command_line, signals

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


# Functions import what imports JAX or NumPy, so that --help and bad flags answer fast.
def _default_workdir() -> str:
  from lamarck_jax.data import own_images

  config = _CONFIG.value
  name = config_flags.get_config_filename(flags.FLAGS['config'])
  if config.dataset.name.startswith(own_images.PREFIXES):
    name = os.path.abspath(config.dataset.name.partition(':')[2])
  name = pathlib.Path(name).stem
  return os.path.join('runs', f'{name}-{config.setting}-seed{config.seed}')


def _print_result(result: dict, workdir: str) -> None:
  """Prints the outcome of a search."""
  from lamarck_jax.genotype import Genotype

  best = result['best']
  print(f'\nbest network        {Genotype.from_json(best)}')
  print(
    f'validation accuracy {best["fitness"]:.4f}'
    f'  (evaluation {best["evaluation"]} of {result["num_evaluations"]})'
  )
  for checkpoint in result['checkpoints']:
    print(
      f'test accuracy       {checkpoint["test_accuracy"]:.4f}'
      f'  after {checkpoint["epochs"]} epochs and completion:'
      f' {Genotype.from_json(checkpoint)}'
    )
  print(f'run directory       {workdir}')


def main(argv: list[str]) -> None:
  """Runs the search that the flags describe, and prints its result."""
  if len(argv) > 1:
    raise UserError(f'arguments: got {argv[1]!r}, want flags alone')
  config, workdir = _CONFIG.value, _WORKDIR.value or _default_workdir()
  config_lib.validate(config)
  typed = config_flags.get_override_values(flags.FLAGS['config'])
  config_lib.check_typed([config], typed)
  from lamarck_jax import search
  from lamarck_jax.report import html_page, tensorboard
  from lamarck_jax.runtime import process

  try:
    signals.install()
    process.configure(config, _XLA_CACHE_DIR.value)
    directory = _TENSORBOARD_DIR.value
    scalars = tensorboard.Scalars(directory) if directory else contextlib.nullcontext()
    with scalars as on_event:
      result = search.run(config, workdir, on_event)
  except signals.Stopped as stopped:
    how = 'resume' if os.path.isdir(workdir) else 'start anew; there is no'
    signals.say_stopped(f'stopped; run the same command again to {how} {workdir}')
    sys.exit(stopped.status)
  _print_result(result, workdir)
  if path := html_page.write_if_possible(workdir):
    print(f'report              {path}')


if __name__ == '__main__':
  configs = pathlib.Path(__file__).parent / 'configs'
  command_line.run(main, default_config=str(configs / 'digits.py'))
