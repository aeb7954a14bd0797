"""Tests of the table of modes of `inheritance`."""

import functools

import chex
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from lamarck_jax import config, inheritance, model, mutation
from lamarck_jax.genotype import Block, Genotype
from lamarck_jax.moments import Moments
from lamarck_jax.run_directory import weights
from tests.networks import (
  NUM_CLASSES,
  SPACE,
  images,
  measured_moments,
  random_parent,
  trained_variables,
)

_PROPERTY = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**20)


_KEY = jax.random.key(7)
_PARENT = Genotype.parse('4c3 8c5s2 12c1')
_VARIABLES = trained_variables(0, _PARENT)
_CHILD = Genotype((Block(8, 1), *_PARENT.blocks))


def test_lamarckian_is_the_default():
  default = inheritance.inherit(_KEY, _PARENT, _VARIABLES, _CHILD)
  explicit = inheritance.inherit(_KEY, _PARENT, _VARIABLES, _CHILD, 'lamarckian')
  jax.tree.map(np.testing.assert_array_equal, default, explicit)


def test_an_unknown_mode_is_refused():
  with pytest.raises(ValueError, match='darwinian') as error:
    inheritance.inherit(_KEY, _PARENT, _VARIABLES, _CHILD, mode='darwinian')
  assert 'lamarckian' in str(error.value)
  assert 'none' in str(error.value)


def test_the_configuration_offers_exactly_these_modes():
  assert tuple(inheritance.MODES) == config.INHERITANCE_MODES


@pytest.mark.parametrize('mode', inheritance.MODES)
def test_moments_are_measured_only_for_the_mode_that_needs_them(mode):
  x = images(8, 8)
  moments = measured_moments(_PARENT, _VARIABLES, x)
  num_measured = 0

  def measure() -> list[Moments]:
    nonlocal num_measured
    num_measured += 1
    return moments

  inherit = functools.partial(
    inheritance.inherit, _KEY, _PARENT, _VARIABLES, _CHILD, mode
  )
  lazy, eager = inherit(parent_moments=measure), inherit(parent_moments=moments)
  assert num_measured == (1 if mode == 'net2net' else 0)
  jax.tree.map(np.testing.assert_array_equal, lazy, eager)


@_PROPERTY
@given(seeds, seeds, st.sampled_from(list(inheritance.MODES)))
def test_every_mode_gives_every_child_variables_of_its_shapes(parent_seed, seed, mode):
  parent = random_parent(parent_seed)
  child = mutation.mutate(jax.random.key(seed), parent, SPACE)
  parent_variables = trained_variables(parent_seed, parent)
  before = jax.tree.map(np.array, parent_variables)
  variables = inheritance.inherit(
    jax.random.key(seed),
    parent,
    parent_variables,
    child,
    mode,
    image_shape=(8, 8),
    noise=0.1,
  )
  weights.check(variables, model.variable_shapes(child, 3, NUM_CLASSES))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
  jax.tree.map(np.testing.assert_array_equal, parent_variables, before)


def test_overlap_keeps_what_both_shapes_have_in_common():
  parent = Genotype.parse('8c3 8c3')
  variables = trained_variables(0, parent)
  first, second = parent.blocks
  child = Genotype((Block(6, 5, 1, first.lineage), second), 2)
  child_variables = inheritance.inherit(
    jax.random.key(0), parent, variables, child, 'overlap'
  )
  old, new = variables['params'], child_variables['params']
  np.testing.assert_array_equal(
    new['block_0']['conv']['kernel'][1:4, 1:4],
    old['block_0']['conv']['kernel'][..., :6],
  )
  np.testing.assert_array_equal(
    new['block_0']['norm']['scale'], old['block_0']['norm']['scale'][:6]
  )
  np.testing.assert_array_equal(
    new['block_1']['conv']['kernel'], old['block_1']['conv']['kernel'][:, :, :6]
  )
  fresh = new['block_0']['conv']['kernel'][0]
  assert np.unique(fresh).size == fresh.size


@pytest.mark.parametrize('mode', inheritance.MODES)
def test_the_parents_variables_are_left_as_they_are(mode):
  variables, untouched = (trained_variables(0, _PARENT) for _ in range(2))
  for leaf in jax.tree.leaves(variables):
    leaf.setflags(write=False)
  result = inheritance.inherit(_KEY, _PARENT, variables, _CHILD, mode)
  result['params']['new'] = result['batch_stats'].pop('block_1')
  result['params']['block_0']['conv'].clear()
  chex.assert_trees_all_equal_structs(variables, untouched)
  jax.tree.map(np.testing.assert_array_equal, variables, untouched)


# ------------------------------------------------------------------------------
# Shrink and perturb
# ------------------------------------------------------------------------------


def test_shrink_and_perturb_combines_each_leaf_with_its_initial_value():
  variables = traverse_util.flatten_dict(_VARIABLES)
  result = traverse_util.flatten_dict(
    inheritance.shrink_and_perturb(_KEY, _VARIABLES, 0.6)
  )
  fresh = traverse_util.flatten_dict(
    model.init_variables(_KEY, _PARENT, 3, NUM_CLASSES)
  )
  assert result.keys() == variables.keys()
  initial = {'scale': 1, 'var': 1, 'bias': 0, 'mean': 0}
  for path, leaf in variables.items():
    expected = 0.6 * leaf + 0.4 * initial.get(path[-1], fresh[path])
    np.testing.assert_allclose(result[path], expected, rtol=1e-5, atol=1e-6)
    assert result[path].dtype == np.float32
    assert np.any(result[path] != leaf)


def test_without_shrinking_the_very_same_arrays_are_returned():
  assert inheritance.shrink_and_perturb(_KEY, _VARIABLES, 1.0) is _VARIABLES
  child = inheritance.inherit(_KEY, _PARENT, _VARIABLES, _CHILD, shrink=1.0)
  kernel = child['params']['block_2']['conv']['kernel']
  assert kernel is _VARIABLES['params']['block_2']['conv']['kernel']


@pytest.mark.parametrize('mode', inheritance.MODES)
def test_every_mode_shrinks_what_it_inherits_and_leaves_fresh_numbers_alone(mode):
  inherit = functools.partial(
    inheritance.inherit, _KEY, _PARENT, _VARIABLES, _CHILD, mode, image_shape=(8, 8)
  )
  plain = traverse_util.flatten_dict(inherit())
  shrunk = traverse_util.flatten_dict(inherit(shrink=0.25))
  fresh = traverse_util.flatten_dict(model.init_variables(_KEY, _CHILD, 3, NUM_CLASSES))
  num_inherited = 0
  for path, leaf in plain.items():
    same = leaf == fresh[path]
    np.testing.assert_array_equal(shrunk[path][same], leaf[same])
    np.testing.assert_allclose(
      shrunk[path], 0.25 * leaf + 0.75 * fresh[path], rtol=1e-4, atol=1e-5
    )
    num_inherited += np.sum(~same)
  assert (num_inherited > 0) == (mode != 'none')


@pytest.mark.parametrize('shrink', [0.6, 1.0])
def test_shrinking_leaves_the_parents_variables_as_they_are(shrink):
  variables, untouched = (trained_variables(0, _PARENT) for _ in range(2))
  for leaf in jax.tree.leaves(variables):
    leaf.setflags(write=False)
  inheritance.inherit(_KEY, _PARENT, variables, _CHILD, shrink=shrink)
  jax.tree.map(np.testing.assert_array_equal, variables, untouched)
