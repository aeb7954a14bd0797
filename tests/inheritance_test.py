"""Tests of `inheritance`.

Which leaves are new is written out for every operator, not computed.
"""

import functools
import math

import chex
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lamarck_jax import genotype as genotype_lib
from lamarck_jax import inheritance, model, mutation
from lamarck_jax.genotype import Genotype, SearchSpace

_BOUNDED = settings(max_examples=15, deadline=None, derandomize=True)
_SPACE = SearchSpace(filters=(4, 8, 12, 16))
_KEY = jax.random.key(7)

# Blocks 0, 1 and 2. No two have the same filter count.
_PARENT = Genotype.parse('4c3 8c5s2 12c1')

# ------------------------------------------------------------------------------
# Helpers
# ------------------------------------------------------------------------------


def _trained(genotype: Genotype, channels: int = 3, num_classes: int = 10) -> dict:
  """Returns variables of which none has its initial value."""
  rng = np.random.default_rng(5)
  variables: dict = {'params': {}, 'batch_stats': {}}

  def random(*shape: int) -> np.ndarray:
    return rng.normal(3, 1, shape).astype(np.float32)

  for block in genotype.blocks:
    name, size = f'block_{block.lineage}', block.kernel_size
    filters = block.filters
    variables['params'][name] = {
      'conv': {
        'kernel': random(size, size, channels, filters),
        'bias': random(filters),
      },
      'norm': {'scale': random(filters), 'bias': random(filters)},
    }
    variables['batch_stats'][name] = {
      'norm': {'mean': random(filters), 'var': random(filters)}
    }
    channels = filters
  variables['params']['classifier'] = {
    'dense': {'kernel': random(channels, num_classes), 'bias': random(num_classes)}
  }
  return variables


def _child(operator: mutation.Operator, text: str) -> Genotype:
  """Returns the child of `_PARENT` that an operator makes and that reads so."""
  for seed in range(1000):
    try:
      child = operator(jax.random.key(seed), _PARENT, _SPACE)
    except mutation.NotApplicable:
      continue
    if str(child) == text:
      return child
  raise AssertionError(f'{operator.__name__} does not make {text}')


def _flat(variables: dict) -> dict[str, np.ndarray]:
  return traverse_util.flatten_dict(variables, sep='/')


def _bits(leaf: np.ndarray) -> bytes:
  return np.asarray(leaf).tobytes()


def _init_shapes(genotype: Genotype, channels: int, num_classes: int) -> dict:
  """Returns the shapes that Flax itself gives a network's variables."""
  return jax.eval_shape(
    model.ConvNet(genotype, num_classes).init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32),
  )


def _assert_fresh(path: str, leaf: np.ndarray) -> None:
  """Checks that a leaf has an initial value."""
  if path.endswith('/kernel'):
    fan_in, fan_out = math.prod(leaf.shape[:-1]), leaf.shape[-1]
    fan_out *= math.prod(leaf.shape[:-2])
    limit = math.sqrt(6 / (fan_in + fan_out))
    assert np.abs(leaf).max() <= limit * 1.000001
    assert np.std(leaf) > 0
  else:
    value = 1 if path.split('/')[-1] in ('scale', 'var') else 0
    assert np.all(leaf == value)
  assert leaf.dtype == np.float32


def _whole_block(number: int) -> set[str]:
  return {
    f'params/block_{number}/conv/kernel',
    f'params/block_{number}/conv/bias',
    f'params/block_{number}/norm/scale',
    f'params/block_{number}/norm/bias',
    f'batch_stats/block_{number}/norm/mean',
    f'batch_stats/block_{number}/norm/var',
  }


# ------------------------------------------------------------------------------
# The leaf rule, operator by operator
# ------------------------------------------------------------------------------

_CLASSIFIER_KERNEL = 'params/classifier/dense/kernel'


def _kernel(number: int) -> str:
  return f'params/block_{number}/conv/kernel'


# Operator, child, the leaves that are new. A new block is number 3.
_CASES = [
  # A changed filter count renews all of its block, and the kernel after it.
  (mutation.add_filters, '8c3 8c5s2 12c1', _whole_block(0) | {_kernel(1)}),
  (mutation.add_filters, '4c3 12c5s2 12c1', _whole_block(1) | {_kernel(2)}),
  (mutation.add_filters, '4c3 8c5s2 16c1', _whole_block(2) | {_CLASSIFIER_KERNEL}),
  (mutation.remove_filters, '4c3 4c5s2 12c1', _whole_block(1) | {_kernel(2)}),
  (mutation.remove_filters, '4c3 8c5s2 8c1', _whole_block(2) | {_CLASSIFIER_KERNEL}),
  # A changed kernel size renews the kernel alone.
  (mutation.change_kernel_size, '4c1 8c5s2 12c1', {_kernel(0)}),
  (mutation.change_kernel_size, '4c3 8c3s2 12c1', {_kernel(1)}),
  (mutation.change_kernel_size, '4c3 8c5s2 12c5', {_kernel(2)}),
  # A changed stride renews nothing, nor does a mutation without effect.
  (mutation.change_stride, '4c3s2 8c5s2 12c1', set()),
  (mutation.change_stride, '4c3 8c5 12c1', set()),
  (mutation.change_stride, '4c3 8c5s2 12c1', set()),
  (mutation.change_kernel_size, '4c3 8c5s2 12c1', set()),
  # A new block is new, and the kernel after it where its channels changed.
  (mutation.add_block, '8c1 4c3 8c5s2 12c1', _whole_block(3) | {_kernel(0)}),
  (mutation.add_block, '4c3 12c3 8c5s2 12c1', _whole_block(3) | {_kernel(1)}),
  (mutation.add_block, '4c3 4c3 8c5s2 12c1', None),  # Before or after block 0.
  (mutation.add_block, '4c3 8c5s2 8c5 12c1', _whole_block(3)),
  (mutation.add_block, '4c3 8c5s2 16c1 12c1', _whole_block(3) | {_kernel(2)}),
  (mutation.add_block, '4c3 8c5s2 12c1 12c3', _whole_block(3)),
  (
    mutation.add_block,
    '4c3 8c5s2 12c1 16c3',
    _whole_block(3) | {_CLASSIFIER_KERNEL},
  ),
  # Where a block is missing, the kernel after it sees other channels.
  (mutation.remove_block, '8c5s2 12c1', {_kernel(1)}),
  (mutation.remove_block, '4c3 12c1', {_kernel(2)}),
  (mutation.remove_block, '4c3 8c5s2', {_CLASSIFIER_KERNEL}),
]


@pytest.mark.parametrize(
  ('operator', 'text', 'new'),
  _CASES,
  ids=[f'{operator.__name__}-{text}' for operator, text, _ in _CASES],
)
def test_a_child_inherits_every_leaf_but_those_its_mutation_changes(
  operator, text, new
):
  child = _child(operator, text)
  if new is None:  # Two equal blocks in a row: the lineages say which is new.
    new = _whole_block(3)
    if child.blocks[0].lineage == 3:
      new |= {_kernel(0)}
  parent_variables = _trained(_PARENT)
  parent_leaves = _flat(parent_variables)
  leaves = _flat(inheritance.inherit(_KEY, _PARENT, parent_variables, child))

  numbers = [block.lineage for block in child.blocks]
  assert set(leaves) == set().union(*map(_whole_block, numbers)) | {
    'params/classifier/dense/kernel',
    'params/classifier/dense/bias',
  }
  assert new <= set(leaves)
  for path, leaf in leaves.items():
    if path in new:
      assert path not in parent_leaves or _bits(leaf) != _bits(parent_leaves[path])
      _assert_fresh(path, leaf)
    else:
      assert leaf.shape == parent_leaves[path].shape
      assert leaf.dtype == parent_leaves[path].dtype
      assert _bits(leaf) == _bits(parent_leaves[path])


def test_removing_a_block_between_equal_filter_counts_renews_nothing():
  parent = Genotype.parse('8c3 8c1 8c5')
  variables = _trained(parent)
  before = _flat(variables)
  for position, kernel_size in ((1, 1), (2, 5)):
    child = next(
      child
      for child in (
        mutation.remove_block(jax.random.key(seed), parent, _SPACE)
        for seed in range(100)
      )
      if kernel_size not in [block.kernel_size for block in child.blocks]
    )
    leaves = _flat(inheritance.inherit(_KEY, parent, variables, child))
    assert set(leaves) == set(before) - _whole_block(position)
    assert all(_bits(leaf) == _bits(before[path]) for path, leaf in leaves.items())


def test_a_block_in_front_with_as_many_filters_as_the_image_has_channels_keeps_it():
  space = SearchSpace(filters=(3, 4))
  parent = Genotype.parse('4c3')
  child = next(
    child
    for child in (
      mutation.add_block(jax.random.key(seed), parent, space) for seed in range(100)
    )
    if str(child) == '3c1 4c3'
  )
  variables = _trained(parent)
  leaves = _flat(inheritance.inherit(_KEY, parent, variables, child))
  for path, leaf in _flat(variables).items():
    assert _bits(leaves[path]) == _bits(leaf)


@_BOUNDED
@given(st.integers(0, 2**31 - 1), st.integers(1, 3), st.integers(1, 5))
def test_the_leaf_rule_holds_along_random_lines_of_descent(
  seed, channels, num_mutations
):
  key = jax.random.key(seed)
  parent = genotype_lib.random_genotype(key, _SPACE)
  for step in range(4):
    parent = mutation.mutate(jax.random.fold_in(key, step), parent, _SPACE)
  child = parent
  for step in range(num_mutations):
    child = mutation.mutate(jax.random.fold_in(key, 10 + step), child, _SPACE)
  variables = _trained(parent, channels, num_classes=7)
  result = inheritance.inherit(key, parent, variables, child)
  wanted = _init_shapes(child, channels, 7)
  chex.assert_trees_all_equal_structs(result, wanted)
  old = _flat(variables)
  for path, shape in _flat(wanted).items():
    leaf = _flat(result)[path]
    assert leaf.shape == shape.shape
    assert leaf.dtype == shape.dtype
    if path in old and old[path].shape == shape.shape:
      assert _bits(leaf) == _bits(old[path])
    else:
      _assert_fresh(path, leaf)


def test_special_values_are_inherited_bit_for_bit():
  variables = _trained(_PARENT)
  bias = variables['params']['block_1']['conv']['bias']
  bias[:4] = [np.nan, -0.0, np.inf, 1e-45]
  bias.view(np.uint32)[4] = 0x7FC12345  # A NaN with a payload.
  child = _child(mutation.change_stride, '4c3s2 8c5s2 12c1')
  result = inheritance.inherit(_KEY, _PARENT, variables, child)
  assert _bits(result['params']['block_1']['conv']['bias']) == _bits(bias)


def test_a_block_that_replaces_a_removed_one_does_not_inherit_from_it():
  # The architecture is the parent's again, but its last block is another one.
  shorter = _child(mutation.remove_block, '4c3 8c5s2')
  child = next(
    child
    for child in (
      mutation.add_block(jax.random.key(seed), shorter, _SPACE) for seed in range(1000)
    )
    if str(child) == '4c3 8c5s2 12c1'
  )
  assert child == _PARENT
  variables = _trained(_PARENT)
  before = _flat(variables)
  leaves = _flat(inheritance.inherit(_KEY, _PARENT, variables, child))
  new = _whole_block(child.blocks[2].lineage)
  assert not new & set(before)
  assert set(leaves) == set(before) - _whole_block(2) | new
  for path in new:
    _assert_fresh(path, leaves[path])
  for path in set(leaves) - new:
    assert _bits(leaves[path]) == _bits(before[path])


def test_a_leaf_of_as_many_values_in_another_shape_is_not_inherited():
  # Piled-up mutations exchange the filter counts: 5x5x4x8 becomes 5x5x8x4.
  parent = Genotype.parse('4c3 8c5')
  key = jax.random.key(0)
  children = (
    mutation.remove_filters(
      jax.random.fold_in(key, 1 + seed),
      mutation.add_filters(jax.random.fold_in(key, seed), parent, _SPACE),
      _SPACE,
    )
    for seed in range(100)
  )
  child = next(child for child in children if str(child) == '8c3 4c5')
  variables = _trained(parent)
  leaves = _flat(inheritance.inherit(_KEY, parent, variables, child))
  assert leaves[_kernel(1)].shape == (5, 5, 8, 4)
  for path in leaves.keys() - {'params/classifier/dense/bias'}:
    _assert_fresh(path, leaves[path])


# ------------------------------------------------------------------------------
# Modes
# ------------------------------------------------------------------------------


@pytest.mark.parametrize('text', ['4c3s2 8c5s2 12c1', '4c3 8c5 12c1'])
def test_without_inheritance_every_leaf_is_fresh(text):
  child = _child(mutation.change_stride, text)
  leaves = _flat(inheritance.inherit(_KEY, _PARENT, _trained(_PARENT), child, 'none'))
  for path, leaf in leaves.items():
    _assert_fresh(path, leaf)
  wanted = _flat(_init_shapes(child, 3, 10))
  assert {p: leaf.shape for p, leaf in leaves.items()} == {
    path: shape.shape for path, shape in wanted.items()
  }


# ------------------------------------------------------------------------------
# Fresh leaves
# ------------------------------------------------------------------------------


def test_the_fresh_leaves_depend_on_the_key_alone():
  child = _child(mutation.add_block, '4c3 8c5s2 12c1 16c3')
  inherit = functools.partial(
    inheritance.inherit,
    parent=_PARENT,
    parent_variables=_trained(_PARENT),
    child=child,
  )
  one, again = _flat(inherit(_KEY)), _flat(inherit(_KEY))
  other = _flat(inherit(jax.random.key(8)))
  fresh_kernels = {_kernel(3), _CLASSIFIER_KERNEL}
  for path in one:
    assert _bits(one[path]) == _bits(again[path])
    # The other fresh leaves are constants.
    assert (_bits(one[path]) == _bits(other[path])) == (path not in fresh_kernels)


def test_fresh_kernels_of_one_shape_differ_from_block_to_block():
  parent = Genotype.parse('8c3 8c3 8c3')
  leaves = _flat(inheritance.inherit(_KEY, parent, _trained(parent), parent, 'none'))
  one, other = leaves[_kernel(1)], leaves[_kernel(2)]
  assert not np.any(one == other)
  assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.15


@pytest.mark.parametrize(
  ('path', 'shape', 'fan_in', 'fan_out'),
  [
    (('params', 'block_0', 'conv', 'kernel'), (5, 5, 32, 64), 800, 1600),
    (('params', 'block_9', 'conv', 'kernel'), (1, 1, 128, 256), 128, 256),
    (('params', 'classifier', 'dense', 'kernel'), (256, 100), 256, 100),
  ],
)
def test_fresh_kernels_are_glorot_uniform(path, shape, fan_in, fan_out):
  leaf = model.fresh_leaf(_KEY, path, shape)
  assert leaf.shape == shape
  assert leaf.dtype == np.float32
  limit = math.sqrt(6 / (fan_in + fan_out))
  assert np.abs(leaf).max() <= limit * 1.000001
  assert np.var(leaf) == pytest.approx(2 / (fan_in + fan_out), rel=0.03)
  assert stats.kstest(leaf.ravel(), 'uniform', (-limit, 2 * limit)).pvalue > 0.001


def test_fresh_leaves_have_the_distribution_of_flaxs_own_initialisation():
  genotype = Genotype.parse('32c5')
  init = jax.jit(functools.partial(model.ConvNet(genotype, 10).init, train=False))
  flax_leaves = _flat(init(jax.random.key(1), jnp.zeros((1, 4, 4, 3))))
  leaves = _flat(
    inheritance.inherit(_KEY, genotype, _trained(genotype), genotype, 'none')
  )
  assert set(leaves) == set(flax_leaves)
  for path, leaf in leaves.items():
    if path.endswith('kernel'):
      assert stats.ks_2samp(leaf.ravel(), flax_leaves[path].ravel()).pvalue > 0.001
    else:
      np.testing.assert_array_equal(leaf, flax_leaves[path])
