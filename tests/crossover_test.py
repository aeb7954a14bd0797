"""Tests of `crossover`: genotypes, weights, and what both compute together."""

import copy

from flax import traverse_util
import hypothesis
from hypothesis import strategies
import jax
import numpy as np
import pytest

from lamarck_jax import (
  activations,
  crossover,
  inheritance,
  initialisation,
  model,
  moments,
  mutation,
)
from lamarck_jax.crossover import Cut, Parent
from lamarck_jax.data import datasets
from lamarck_jax.genotype import Block, Genotype, SearchSpace
from lamarck_jax.mutation import NotApplicable
from lamarck_jax.training import Trainer
from tests import networks

# Blocks 1 and 4 are common; the strides agree up to 1 and differ up to 4.
FIRST = Genotype((Block(6, 3, 1, 0), Block(8, 3, 2, 1), Block(8, 3, 1, 4)), 9)
SECOND = Genotype((Block(8, 1, 2, 1), Block(6, 3, 2, 3), Block(12, 1, 1, 4)), 7)


def relatives(seed: int) -> tuple[Genotype, Genotype]:
  """Two descendants of one network, with numbers that are unique among them."""
  ancestor = networks.random_parent(seed, 3)
  lines = []
  next_lineage = ancestor.next_lineage
  for line in range(2):
    genotype = Genotype(ancestor.blocks, next_lineage)
    for index in range(5):
      key = jax.random.fold_in(jax.random.key(seed), 10 * line + index)
      genotype = mutation.mutate(key, genotype, networks.SPACE)
    next_lineage = genotype.next_lineage
    lines.append(genotype)
  return lines[0], lines[1]


def trained(seed: int, genotype: Genotype) -> Parent:
  return Parent(genotype, networks.trained_variables(seed, genotype))


def flat(variables) -> dict:
  return traverse_util.flatten_dict(jax.tree.map(np.asarray, dict(variables)))


# ------------------------------------------------------------------------------
# Genotypes
# ------------------------------------------------------------------------------


def test_a_cut_is_behind_a_common_block_up_to_which_the_strides_agree():
  assert crossover.cuts(FIRST, SECOND) == [Cut(2, 1)]
  assert crossover.cuts(SECOND, FIRST) == [Cut(1, 2)]
  assert crossover.cuts(FIRST, FIRST) == [Cut(1, 1), Cut(2, 2), Cut(3, 3)]


def test_a_child_has_the_first_parents_blocks_and_then_the_seconds():
  child = crossover.child_at(FIRST, SECOND, Cut(2, 1))
  assert str(child) == '6c3 8c3s2 6c3s2 12c1'
  assert [block.lineage for block in child.blocks] == [0, 1, 3, 4]
  assert child.next_lineage == 9


@hypothesis.given(strategies.integers(0, 10_000))
@hypothesis.settings(deadline=None, max_examples=20)
def test_every_child_of_relatives_is_new_in_the_space_and_keeps_both_orders(seed):
  first, second = relatives(seed)
  history = {first, second}
  try:
    child, cut = crossover.crossover(
      jax.random.key(seed), first, second, networks.SPACE, history
    )
  except NotApplicable:
    for cut in crossover.cuts(first, second):
      child = crossover.child_at(first, second, cut)
      assert child in history or child not in networks.SPACE
    return
  assert child in networks.SPACE
  assert child not in history
  assert child.blocks == first.blocks[: cut.first] + second.blocks[cut.second :]
  lineages = [block.lineage for block in child.blocks]
  assert len(set(lineages)) == len(lineages)
  for parent in (first, second):
    own = [block.lineage for block in parent.blocks]
    common = [lineage for lineage in lineages if lineage in own]
    assert common == [lineage for lineage in own if lineage in common]


def test_cuts_are_drawn_uniformly_with_the_key_alone():
  first = Genotype.parse('6c3 6c3 6c3 6c3')
  second = Genotype(tuple(Block(8, 3, 1, block.lineage) for block in first.blocks), 4)
  args = first, second, networks.SPACE, {first, second}
  drawn = [crossover.crossover(jax.random.key(i), *args)[1] for i in range(300)]
  assert set(drawn) == {Cut(1, 1), Cut(2, 2), Cut(3, 3)}
  assert all(drawn.count(cut) > 65 for cut in set(drawn))
  assert drawn[7] == crossover.crossover(jax.random.key(7), *args)[1]


def test_children_outside_the_space_or_evaluated_before_are_no_cuts():
  key = jax.random.key(0)
  with pytest.raises(NotApplicable):
    crossover.crossover(key, FIRST, FIRST, networks.SPACE, {FIRST})
  one_stride = SearchSpace(filters=(6, 8, 12), max_downsampling=1)
  with pytest.raises(NotApplicable):
    crossover.crossover(key, FIRST, SECOND, one_stride)
  unrelated = Genotype((Block(6, 3, 1, 20),))
  with pytest.raises(NotApplicable):
    crossover.crossover(key, FIRST, unrelated, networks.SPACE)


# ------------------------------------------------------------------------------
# Weights
# ------------------------------------------------------------------------------


def outputs_at(parent: Parent, depth: int, x) -> np.ndarray:
  """The outputs of a parent's block on images."""
  prefix = model.ConvNet(parent.genotype, networks.NUM_CLASSES)
  name = model.block_name(parent.genotype.blocks[depth - 1])
  _, state = prefix.apply(
    parent.variables, x, capture_intermediates=True, mutable=['intermediates']
  )
  return np.asarray(state['intermediates'][name]['__call__'][0])


def batch_statistics(genotype: Genotype, variables, x) -> dict:
  """What `Trainer.batch_statistics` returns, by the plain modules."""
  zeros = {
    **variables,
    'batch_stats': jax.tree.map(np.zeros_like, variables['batch_stats']),
  }
  _, updated = model.ConvNet(genotype, networks.NUM_CLASSES).apply(
    zeros, x, train=True, mutable=['batch_stats']
  )
  return jax.tree.map(
    lambda leaf: np.asarray(leaf) / np.float32(0.1), updated['batch_stats']
  )


def stitched(first: Parent, second: Parent, cut: Cut, x) -> tuple[dict, float]:
  seam = outputs_at(first, cut.first, x), outputs_at(second, cut.second, x)
  to_second, r2 = crossover.fit(*moments.measure(seam))
  variables = crossover.stitch(first, second, cut, to_second)
  child = crossover.child_at(first.genotype, second.genotype, cut)
  statistics = (
    batch_statistics(child, variables, x),
    batch_statistics(*second, x),
  )
  return crossover.repair(variables, second, cut, *statistics), r2


@pytest.mark.parametrize('seed', [0, 1])
def test_a_network_crossed_with_itself_computes_the_same(seed):
  parent = trained(seed, networks.random_parent(seed))
  x = networks.images(8, 10)
  for cut in crossover.cuts(parent.genotype, parent.genotype):
    variables, r2 = stitched(parent, parent, cut, x)
    assert r2 == pytest.approx(1, abs=1e-4)
    networks.assert_same_function(*parent, parent.genotype, variables, x)


@pytest.mark.parametrize('cut', [Cut(1, 1), Cut(2, 2), Cut(3, 3)])
def test_all_but_the_seam_is_inherited_bit_for_bit(cut):
  first = trained(0, Genotype.parse('6c3 8c3 12c3s2'))
  second = trained(
    1, Genotype((Block(8, 1, 1, 0), Block(6, 3, 1, 1), Block(8, 3, 2, 2)), 3)
  )
  before = copy.deepcopy((flat(first.variables), flat(second.variables)))
  variables, r2 = stitched(first, second, cut, networks.images(8, 8))
  child = crossover.child_at(first.genotype, second.genotype, cut)
  shapes = flat_shapes(child)
  leaves, (of_first, of_second) = flat(variables), before
  assert {path: leaf.shape for path, leaf in leaves.items()} == shapes
  prefix = {model.block_name(block) for block in child.blocks[: cut.first]}
  reader = [*map(model.block_name, child.blocks), model.CLASSIFIER][cut.first]
  for path, leaf in leaves.items():
    collection, module, layer, _ = path
    if module in prefix:
      np.testing.assert_array_equal(leaf, of_first[path])
    elif collection == 'params' and (module, layer) not in {
      (reader, 'conv'),
      (reader, 'dense'),
    }:
      np.testing.assert_array_equal(leaf, of_second[path])
  assert r2 <= 1
  for parent, unchanged in zip((first, second), before, strict=True):
    for path, leaf in flat(parent.variables).items():
      np.testing.assert_array_equal(leaf, unchanged[path])


def flat_shapes(genotype: Genotype) -> dict:
  shapes = model.variable_shapes(genotype, 3, networks.NUM_CLASSES)
  return {p: leaf.shape for p, leaf in traverse_util.flatten_dict(shapes).items()}


def test_what_an_affine_map_relates_is_stitched_exactly():
  """The second parent's channels are mixtures of the first's, plus constants."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(8, 5, 5, 4)).astype(np.float32)
  weights = rng.normal(size=(4, 3)).astype(np.float32)
  to_second, r2 = crossover.fit(*moments.measure([x, x @ weights + 2]))
  np.testing.assert_allclose(to_second.weights, weights, atol=2e-3)
  np.testing.assert_allclose(to_second.offset, 2, atol=2e-3)
  assert r2 == pytest.approx(1, abs=1e-4)


def test_r2_is_the_share_of_the_variance_that_is_predicted():
  rng = np.random.default_rng(0)
  x, noise = rng.normal(size=(2, 50, 8, 8, 6)).astype(np.float32)
  _, r2 = crossover.fit(*moments.measure([x, np.sqrt(0.7) * x + np.sqrt(0.3) * noise]))
  assert r2 == pytest.approx(0.7, abs=0.02)
  _, r2 = crossover.fit(*moments.measure([x, np.full_like(x, 3)]))
  assert r2 == 1  # Constants are predicted.


def test_the_child_has_its_own_statistics_behind_the_seam():
  """In evaluation mode it normalises as in training mode on the same batch."""
  first = trained(0, Genotype.parse('6c3 8c3 12c3s2'))
  x = networks.images(8, 8, count=16)
  second = trained(1, Genotype.parse('6c3 8c3 12c3s2'))
  own = batch_statistics(*second, x)
  second = Parent(second.genotype, {**second.variables, 'batch_stats': own})
  variables, _ = stitched(first, second, Cut(1, 1), x)
  statistics = batch_statistics(first.genotype, variables, x)
  for name in ('block_1', 'block_2'):
    for leaf in ('mean', 'var'):
      np.testing.assert_allclose(
        variables['batch_stats'][name]['norm'][leaf],
        statistics[name]['norm'][leaf],
        rtol=1e-3,
        atol=1e-4,
      )


def test_without_a_fit_a_kernel_behind_other_filters_alone_is_fresh():
  first = trained(0, Genotype.parse('6c3 8c3'))
  for filters in (6, 12):
    second = trained(1, Genotype.parse(f'{filters}c3 8c1'))
    key = jax.random.key(2)
    leaves = flat(crossover.leaf_rule(key, first, second, Cut(1, 1)))
    path = ('params', 'block_1', 'conv', 'kernel')
    for name, leaf in flat(second.variables).items():
      source = flat(first.variables) if 'block_0' in name else {name: leaf}
      if filters == 6 or name != path:
        np.testing.assert_array_equal(leaves[name], source[name])
    if filters == 12:
      expected = model.fresh_leaf(key, path, (1, 1, 6, 8))
      np.testing.assert_array_equal(leaves[path], expected)


# ------------------------------------------------------------------------------
# Trained networks
# ------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def trainer():
  with_digits = Trainer(datasets.load('digits'), batch_size=32)
  yield with_digits
  with_digits.close()


@pytest.mark.slow
def test_the_trainer_measures_the_statistics_of_the_plain_modules(trainer):
  genotype = Genotype.parse('8c3 8c3s2')
  variables = model.init_variables(jax.random.key(0), genotype, 1, 10)
  images = next(activations.outputs(trainer, genotype, variables))
  found = activations.batch_statistics(trainer, genotype, variables, [0])
  zeros = {**variables, 'batch_stats': jax.tree.map(np.zeros_like, found)}
  _, expected = model.ConvNet(genotype, 10).apply(
    zeros, images, train=True, mutable=['batch_stats']
  )
  for path, leaf in flat(expected['batch_stats']).items():
    np.testing.assert_allclose(flat(found)[path], leaf / 0.1, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_outputs_and_statistics_over_several_batches_are_those_of_each(trainer):
  genotype = Genotype.parse('8c3 8c3s2')
  variables = model.init_variables(jax.random.key(0), genotype, 1, 10)
  network = trainer, genotype, variables
  for depth, whole in enumerate(activations.outputs(*network)):
    if depth:
      first, second = activations.block_outputs(*network, depth, [0, 1])
      np.testing.assert_array_equal(first, whole)
      assert np.abs(first - second).max() > 0.01
  both, *each = (
    flat(activations.batch_statistics(*network, steps)) for steps in ([0, 1], [0], [1])
  )
  for path, leaf in both.items():
    np.testing.assert_allclose(leaf, (each[0][path] + each[1][path]) / 2, rtol=1e-6)


@pytest.mark.slow
def test_crossing_relatives_one_mutation_apart_keeps_their_accuracy(trainer):
  space = SearchSpace(filters=(8, 16, 32))
  genotype = Genotype.parse('16c3 16c3s2 16c3')
  variables = model.init_variables(jax.random.key(0), genotype, 1, 10)
  variables = trainer.train(jax.random.key(1), genotype, variables, [1e-3] * 12)
  parent = Parent(genotype, variables)
  drops, drops_of_leaf_rule = [], []
  for index in range(8):
    key = jax.random.fold_in(jax.random.key(5), index)
    relative = mutation.mutate(key, genotype, space)
    inherited = inheritance.inherit(key, genotype, variables, relative)
    other = Parent(relative, trainer.train(key, relative, inherited, [1e-3] * 4))
    for first, second in ((parent, other), (other, parent)):
      accuracy = trainer.accuracy(*second, 'validation')
      for cut in crossover.cuts(first.genotype, second.genotype):
        child = crossover.child_at(first.genotype, second.genotype, cut)
        stitched, _ = initialisation.stitched(first, second, cut, trainer)
        plain = crossover.leaf_rule(key, first, second, cut)
        for found, of in ((drops, stitched), (drops_of_leaf_rule, plain)):
          found.append(accuracy - trainer.accuracy(child, of, 'validation'))
  assert np.median(drops) < 0.02
  assert np.median(drops_of_leaf_rule) > 0.05
