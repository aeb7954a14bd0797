"""What the tests of a run directory record."""

import pathlib

import chex
import jax
import numpy as np
import pytest

from lamarck_jax import config as config_lib
from lamarck_jax import model
from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import lock, records

EVENTS = [
  {
    'evaluation': number,
    'genotype': [[16, 3, 1]] * (number + 1),
    'lineages': list(range(number + 1)),
    'next_lineage': number + 1,
    'fitness': 0.1 + 0.2 * number,
    'epochs_used': number + 1,
    'niche': None,
    'accepted': number != 1,
    'mutation': ['add_block'],
  }
  for number in range(3)
]


def make_config(**fields: object) -> dict:
  """Returns a configuration; fields have `__` for the dot."""
  config = config_lib.get_config()
  config.dataset.name = 'digits'
  for field, value in fields.items():
    *path, last = field.split('__')
    section = config
    for part in path:
      section = section[part]
    section[last] = value
  return config.to_dict()


@pytest.fixture(name='directory')
def _directory(tmp_path: pathlib.Path) -> records.RunDirectory:
  return records.RunDirectory(tmp_path / 'run', make_config())


def make_variables(seed: int = 0) -> dict:
  genotype = Genotype.parse('4c3 8c1s2')
  return model.init_variables(jax.random.key(seed), genotype, 3, 10)


def assert_same_bits(tree: dict, other: dict) -> None:
  chex.assert_trees_all_equal_structs(tree, other)
  for leaf, other_leaf in zip(jax.tree.leaves(tree), jax.tree.leaves(other)):
    leaf, other_leaf = np.asarray(leaf), np.asarray(other_leaf)
    assert leaf.dtype == other_leaf.dtype
    assert leaf.shape == other_leaf.shape
    assert leaf.tobytes() == other_leaf.tobytes()


def record_all(path: pathlib.Path) -> None:
  """Records a search of three evaluations, from wherever it was left."""
  with lock.locked(path):
    directory = records.RunDirectory(path, make_config())
    done = len(directory.read_events())
    if done:
      directory.read_weights(done - 1)
    directory.keep_weights({done - 1})
    for number in range(done, len(EVENTS)):
      directory.write_weights(number, make_variables(number))
      directory.append_event(EVENTS[number])
      directory.keep_weights({number})
    directory.write_completing(2, make_variables(8))
    directory.write_completed(2, {'test_accuracy': 0.5}, make_variables(9))
    directory.write_result({'best': 2})
