"""How much accuracy children keep before training, in events of real searches."""

import shutil
import subprocess
import sys

import pytest

from lamarck_jax import search
from lamarck_jax.errors import UserError
from lamarck_jax.study import before_training
from tests import conftest


@pytest.fixture(scope='module')
def study(tmp_path_factory):
  """A directory with a search of each of two settings."""
  root = tmp_path_factory.mktemp('study')
  for setting, budget in (('net2net', 11), ('none', 8)):
    config = conftest.make_tiny_config()
    config.inheritance = setting
    config.inheritance_noise = 0.0
    config.dataset.num_train = 640
    config.learning_rate = 1e-2
    config.budget_epochs = budget
    config.checkpoint_epochs = ()
    config.completion.enabled = False
    search.run(config, root / setting / 'seed1')
  return root


def test_net2net_children_that_can_preserve_the_function_keep_the_accuracy(study):
  groups = before_training.collect(study)
  drops = [
    drop
    for group in groups
    if group.setting == 'net2net' and group.preservable
    for drop in group.drops
  ]
  assert len(drops) >= 3
  # One example of fifty may lie on a class boundary, where rounding decides.
  assert max(map(abs, drops)) <= 0.02 + 1e-9
  fresh = [drop for group in groups if group.setting == 'none' for drop in group.drops]
  assert max(fresh) > 0.1


def test_every_child_is_in_the_table(study):
  groups = before_training.collect(study)
  assert sum(len(group.drops) for group in groups) == 10 + 7
  lines = before_training.table(groups).splitlines()
  assert lines[0].split('|')[1:-1][2].strip() == 'net2net'
  counts = [
    int(part.split()[0]) for line in lines[-2:] for part in line.split('n =')[1:]
  ]
  assert sum(counts) == 10 + 7


def test_runs_that_predate_the_accuracy_before_training_have_no_drops(tmp_path):
  shutil.copytree(
    conftest.ROOT / 'tests' / 'testdata' / 'run_format_2', tmp_path / 'x' / 'seed1'
  )
  assert before_training.collect(tmp_path) == []


def test_a_directory_without_runs_is_refused(tmp_path):
  with pytest.raises(UserError, match='want a study with runs'):
    before_training.collect(tmp_path)
  result = subprocess.run(
    [sys.executable, '-m', 'lamarck_jax.study.before_training', tmp_path],
    capture_output=True,
    text=True,
  )
  assert result.returncode == 2
  assert len(result.stderr.splitlines()) == 1
