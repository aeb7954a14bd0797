"""What the programs write where nothing disturbs them: runs, a study and exports."""

import pathlib
import re
import shutil
from typing import Any, NamedTuple

from lamarck_jax.run_directory import lock
from tests.programs import ROOT, Programs

SEARCH, STUDY = 'run_evolution.py', 'lamarck_jax.study'
EXPORT, REPORT = 'lamarck_jax.export', 'lamarck_jax.report'
TABLES, FIGURES = 'lamarck_jax.study.tables', 'lamarck_jax.study.figures'
BEFORE_TRAINING = 'lamarck_jax.study.before_training'

# With it, and the next, the first evaluation is not the best.
SEED = 4
FLAGS = (
  '--config.dataset.num_train=96',
  '--config.dataset.num_validation=50',
  '--config.budget_epochs=4',
  '--config.epochs_per_evaluation=1',
  '--config.search_space.filters=(4,8)',
  '--config.search_space.kernel_sizes=(1,)',
  '--config.search_space.strides=(1,)',
  '--config.checkpoint_epochs=(1,4)',
  '--config.completion.epochs=(1,)',
  '--config.completion.learning_rates=(1e-3,)',
  '--config.learning_rate=0.01',
  f'--config.seed={SEED}',
)

# What `lamarck_jax.load` does, as a program.
LOAD = """
import sys
import numpy as np
import lamarck_jax
from lamarck_jax.runtime import command_line
def main(argv):
  network = lamarck_jax.load(argv[1])
  images = np.arange(2 * np.prod(network.image_shape)) % 251
  print(network, network(images.astype(np.uint8).reshape(2, *network.image_shape)))
if __name__ == '__main__':
  command_line.run(main)
"""


class Whole(NamedTuple):
  """What the undisturbed programs have written.

  Attributes:
    programs: The process in which programs run.
    root: `completing` and `other_completing` are searches that were stopped while they
      completed their last checkpoint, `study` is a study of two runs, `finished` its
      first and `other_finished` its second, `export` and `other_export` are their
      networks, `load.py` is a program.
    flags: The flags of the searches.
    loaded: What the program prints of the export.
  """

  programs: Programs
  root: pathlib.Path
  flags: tuple[str, ...]
  loaded: str


def make(programs: Programs, root: pathlib.Path, cache: pathlib.Path) -> Whole:
  """Runs the programs.

  Args:
    programs: Where they run.
    root: A new folder for what they write.
    cache: Folder of compiled programs.
  """
  flags = (*FLAGS, f'--xla_cache_dir={cache}')
  for name, seed in (('completing', SEED), ('other_completing', SEED + 1)):
    outcome = programs.run(
      SEARCH,
      *flags,
      f'--config.seed={seed}',
      f'--workdir={root / name}',
      stop='write_completed:2',
    )
    assert outcome.status == 1, outcome
    programs.run(REPORT, root / name)
    _leave_lock(root / name)
  return _make_finished(programs, root, flags)


def make_quick(programs: Programs, root: pathlib.Path, cache: pathlib.Path) -> Whole:
  """Runs less than `make`: no search that completes, and only one network is trained.

  Args:
    programs: Where they run.
    root: A new folder for what they write.
    cache: Folder of compiled programs.
  """
  flags = [
    flag
    for flag in FLAGS
    if not re.search('budget_epochs|checkpoint_epochs|filters', flag)
  ]
  flags += ['--config.budget_epochs=1', '--config.checkpoint_epochs=(1,)']
  flags += ['--config.search_space.filters=(4,)', f'--xla_cache_dir={cache}']
  return _make_finished(programs, root, tuple(flags))


def _make_finished(
  programs: Programs, root: pathlib.Path, flags: tuple[str, ...]
) -> Whole:
  def run(*argv: Any) -> str:
    outcome = programs.run(*argv)
    assert outcome.status == 0, outcome
    return outcome.stdout

  study = root / 'study'
  run(STUDY, *study_flags(study), *flags)
  for name, setting in (('finished', 'lamarckian'), ('other_finished', 'baseline_1')):
    _leave_lock(study / setting / f'seed{SEED}')
    (root / name).symlink_to(study / setting / f'seed{SEED}')
  for name in ('export', 'other_export'):
    run(EXPORT, root / name.replace('export', 'finished'), f'--out={root / name}')
  shutil.copytree(study, root / 'other_study', symlinks=True)
  results = root / 'other_study' / 'results.json'
  results.write_text(results.read_text().replace('"lamarckian"', '"ant"'))
  plan = root / 'other_study' / 'study.json'
  plan.write_text(plan.read_text().replace('"lamarckian"', '"ant"'))
  (root / 'load.py').write_text(LOAD)
  return Whole(programs, root, flags, run(root / 'load.py', root / 'export'))


def study_flags(path: pathlib.Path) -> tuple[str, ...]:
  """Returns the flags of the study but for those of its searches."""
  return (
    f'--config={ROOT / "configs" / "digits.py"}',
    '--settings=lamarckian,baseline_1',
    '--num_seeds=1',
    f'--workdir={path}',
  )


def _leave_lock(path: pathlib.Path) -> None:
  """Leaves the lock of a process that was killed."""
  with lock.locked(path):
    content = (path / lock.FILE_NAME).read_bytes()
  (path / lock.FILE_NAME).write_bytes(content)
