from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lamarck_jax import datasets, inheritance, model, mutation, net2net, training
from lamarck_jax import genotype as genotype_lib
from lamarck_jax.genotype import Block, Genotype, SearchSpace

SPACE = SearchSpace(filters=(6, 8, 12))
NUM_CLASSES = 5
_PROPERTY = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**20)


def random_parent(seed: int, num_mutations: int = 5) -> Genotype:
  key = jax.random.key(seed)
  genotype = genotype_lib.random_genotype(key, SPACE)
  for index in range(num_mutations):
    genotype = mutation.mutate(jax.random.fold_in(key, index), genotype, SPACE)
  return genotype


def trained_variables(seed: int, genotype: Genotype) -> dict:
  """Variables in which no two channels are alike, as after training."""
  rng = np.random.default_rng(seed)
  leaves = traverse_util.flatten_dict(
    model.init_variables(jax.random.key(seed), genotype, 3, NUM_CLASSES)
  )
  for path, leaf in leaves.items():
    if path[-1] in ('scale', 'var'):
      leaves[path] = rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    elif path[-1] in ('bias', 'mean'):
      leaves[path] = rng.normal(0, 0.3, leaf.shape).astype(np.float32)
  return traverse_util.unflatten_dict(leaves)


def images(size: int, count: int = 6) -> jax.Array:
  return jnp.asarray(
    np.random.default_rng(1).normal(size=(count, size, size, 3)), jnp.float32
  )


def logits(genotype: Genotype, variables: dict, x: jax.Array) -> np.ndarray:
  # XLA's own convolution compiles faster than a program for the whole network.
  network = model.ConvNet(
    genotype, NUM_CLASSES, conv_general_dilated=jax.lax.conv_general_dilated
  )
  return np.asarray(network.apply(variables, x))


def assert_same_function(parent, parent_variables, child, variables, size) -> None:
  x = images(size)
  expected = logits(parent, parent_variables, x)
  np.testing.assert_allclose(
    logits(child, variables, x), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
  )


@_PROPERTY
@given(
  seeds,
  seeds,
  st.sampled_from(['add_block', 'add_filters', 'change_kernel_size']),
  st.sampled_from([7, 8]),
)
def test_a_child_in_an_exact_direction_computes_what_its_parent_does(
  parent_seed, seed, operator, size
):
  parent = random_parent(parent_seed)
  key = jax.random.key(seed)
  try:
    child = getattr(mutation, operator)(key, parent, SPACE)
  except mutation.NotApplicable:
    return
  if not net2net.is_exact(parent, child, 3):
    return
  parent_variables = trained_variables(parent_seed, parent)
  variables = inheritance.inherit(
    key, parent, parent_variables, child, 'net2net', image_size=size
  )
  assert_same_function(parent, parent_variables, child, variables, size)


def test_the_operators_reach_every_exact_direction():
  """Or the property above would hold of nothing."""
  found = {
    operator: 0 for operator in ('add_block', 'add_filters', 'change_kernel_size')
  }
  for seed in range(30):
    parent = random_parent(seed)
    for operator in found:
      try:
        child = getattr(mutation, operator)(jax.random.key(seed), parent, SPACE)
      except mutation.NotApplicable:
        continue
      found[operator] += net2net.is_exact(parent, child, 3) and child != parent
  assert min(found.values()) >= 4


@pytest.mark.parametrize('size', [4, 5, 8, 9])
@pytest.mark.parametrize('old', [1, 3])
def test_a_larger_kernel_of_stride_two_is_exact_at_even_and_odd_sizes(size, old):
  parent = Genotype((Block(6, old, 2), Block(8, old, 2)))
  parent_variables = trained_variables(0, parent)
  for index in range(2):
    blocks = list(parent.blocks)
    old_block = blocks[index]
    blocks[index] = Block(old_block.filters, 5, 2, old_block.lineage)
    child = Genotype(tuple(blocks), parent.next_lineage)
    variables = net2net.inherit(
      jax.random.key(0), parent, parent_variables, child, image_size=size
    )
    assert_same_function(parent, parent_variables, child, variables, size)


def test_several_mutations_at_once_are_exact_too():
  parent = Genotype.parse('6c1 8c3s2 8c1')
  first, second, third = parent.blocks
  child = Genotype(
    (
      Block(12, 3, 1, 7),  # New.
      Block(8, 5, 1, first.lineage),
      Block(8, 3, 1, 8),  # New.
      Block(12, 3, 2, second.lineage),
      Block(12, 3, 1, third.lineage),
      Block(16, 1, 1, 9),  # New.
    ),
    10,
  )
  assert net2net.is_exact(parent, child, 3)
  parent_variables = trained_variables(0, parent)
  variables = net2net.inherit(
    jax.random.key(0), parent, parent_variables, child, image_size=8
  )
  assert_same_function(parent, parent_variables, child, variables, 8)


@_PROPERTY
@given(seeds, seeds, st.sampled_from(inheritance.MODES))
def test_every_mode_gives_every_child_variables_of_its_shapes(parent_seed, seed, mode):
  parent = random_parent(parent_seed)
  child = mutation.mutate(jax.random.key(seed), parent, SPACE)
  parent_variables = trained_variables(parent_seed, parent)
  before = jax.tree.map(np.array, parent_variables)
  variables = inheritance.inherit(
    jax.random.key(seed), parent, parent_variables, child, mode, noise=0.1
  )
  model.check_variables(variables, child, 3, NUM_CLASSES)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
  jax.tree.map(np.testing.assert_array_equal, parent_variables, before)


@pytest.mark.parametrize('noise', [0.0, 0.05])
def test_gradients_reach_the_copies_and_noise_lets_them_grow_apart(noise):
  parent = Genotype.parse('6c3 8c3')
  first, second = parent.blocks
  child = Genotype((Block(12, 3, 1, first.lineage), second), 2)
  variables = net2net.inherit(
    jax.random.key(0), parent, trained_variables(0, parent), child, noise=noise
  )
  network = model.ConvNet(child, NUM_CLASSES)
  labels = jnp.arange(6) % NUM_CLASSES

  def loss(params):
    outputs, _ = network.apply(
      {**variables, 'params': params}, images(8), True, mutable=['batch_stats']
    )
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()

  gradients = jax.jit(jax.grad(loss))(variables['params'])
  for leaf in jax.tree.leaves(gradients):
    assert np.isfinite(leaf).all()
  kernel = np.asarray(variables['params']['block_0']['conv']['kernel'])
  gradient = np.asarray(gradients['block_0']['conv']['kernel'])
  twins = [
    (copy, original)
    for copy in range(6, 12)
    for original in range(6)
    if np.allclose(kernel[..., copy], kernel[..., original], atol=0.2)
  ]
  assert len(twins) == 6
  for copy, original in twins:
    assert np.abs(gradient[..., copy]).max() > 1e-6
    same = np.array_equal(kernel[..., copy], kernel[..., original])
    assert same == (noise == 0)


def test_a_new_block_is_nearly_the_identity_in_training_mode_too():
  """With the statistics of the very images; the estimate alone is rougher."""
  rng = np.random.default_rng(0)
  split = datasets.Split(
    rng.integers(0, 256, (64, 8, 8, 3)).astype(np.uint8),
    rng.integers(NUM_CLASSES, size=64).astype(np.int32),
  )
  dataset = datasets.Dataset('random', split, split, split, tuple('abcde'))
  trainer = training.Trainer(dataset, batch_size=64)
  parent = Genotype.parse('6c3 8c3')
  parent_variables = trainer.train(
    jax.random.key(0), parent, trained_variables(0, parent), [1e-3] * 30
  )
  statistics = trainer.output_statistics(parent, parent_variables)
  assert {lineage: len(s[0]) for lineage, s in statistics.items()} == {0: 6, 1: 8}
  first, second = parent.blocks
  child = Genotype((first, Block(12, 3, 1, 2), second), 3)
  mean, std = datasets.channel_statistics(split.images)
  x = jnp.asarray((split.images - mean) / std)

  # XLA's own convolution compiles faster.
  networks = [
    model.ConvNet(
      genotype, NUM_CLASSES, conv_general_dilated=jax.lax.conv_general_dilated
    )
    for genotype in (parent, child)
  ]

  def error(output_statistics):
    variables = net2net.inherit(
      jax.random.key(0),
      parent,
      parent_variables,
      child,
      output_statistics=output_statistics,
    )
    outputs = [
      jax.jit(network.apply, static_argnames=('train', 'mutable'))(
        v, x, train=True, mutable=('batch_stats',)
      )[0]
      for network, v in ((networks[0], parent_variables), (networks[1], variables))
    ]
    return float(jnp.abs(outputs[1] - outputs[0]).max() / jnp.abs(outputs[0]).max())

  assert error(statistics) < 0.05
  assert error(None) < 0.5


def test_narrowing_keeps_the_channels_that_matter_most():
  np.testing.assert_array_equal(
    net2net.narrow(np.array([0.1, 3.0, 0.2, 2.0, 1.0]), 3), [1, 3, 4]
  )
  params = {
    'conv': {'kernel': np.ones((3, 3, 2, 3), np.float32)},
    'norm': {'scale': np.array([1.0, -3.0, 2.0], np.float32)},
  }
  params['conv']['kernel'][..., 2] *= 10
  order = np.argsort(-net2net.importance(params))
  np.testing.assert_array_equal(order, [2, 1, 0])


def test_a_block_without_influence_is_removed_without_loss():
  """A removed identity leaves the parent's function."""
  small = Genotype.parse('6c3 8c3')
  small_variables = trained_variables(0, small)
  first, second = small.blocks
  large = Genotype((first, Block(6, 3, 1, 2), second), 3)
  large_variables = net2net.inherit(
    jax.random.key(0), small, small_variables, large, image_size=8
  )
  variables = net2net.inherit(
    jax.random.key(0), large, large_variables, small, image_size=8
  )
  x = images(8)
  np.testing.assert_allclose(
    logits(small, variables, x), logits(small, small_variables, x), rtol=0.2, atol=0.2
  )


def test_rectified_statistics_are_those_of_a_sample():
  rng = np.random.default_rng(0)
  params = {
    'norm': {
      'scale': np.array([1.0, 0.5, -2.0], np.float32),
      'bias': np.array([0.0, -0.7, 1.0], np.float32),
    }
  }
  sample = np.maximum(
    rng.normal(size=(400000, 3)) * params['norm']['scale'] + params['norm']['bias'], 0
  )
  mean, variance = net2net.rectified_statistics(params)
  np.testing.assert_allclose(mean, sample.mean(0), atol=0.01)
  np.testing.assert_allclose(variance, sample.var(0), rtol=0.02)


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
