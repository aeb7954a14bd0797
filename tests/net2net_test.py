"""Tests of what `net2net` preserves exactly, and of training from there."""

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lamarck_jax import activations as activations_lib
from lamarck_jax import inheritance, model, mutation, net2net, training
from lamarck_jax.data import datasets
from lamarck_jax.genotype import Block, Genotype
from lamarck_jax.moments import measure
from lamarck_jax.study.before_training import can_preserve_function
from tests.networks import (
  NUM_CLASSES,
  SPACE,
  assert_same_function,
  images,
  measured_moments,
  network,
  random_parent,
  trained_variables,
)

_PROPERTY = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**20)

EXACT = ('add_block', 'add_filters', 'change_kernel_size')
exact_operators = st.sampled_from(EXACT)


def exact_child(operator: str, seed: int, parent: Genotype) -> Genotype | None:
  """Returns a child that is to compute what its parent does, if there is one."""
  try:
    child = getattr(mutation, operator)(jax.random.key(seed), parent, SPACE)
  except mutation.NotApplicable:
    return None
  return child if can_preserve_function(parent, child, 3) else None


@_PROPERTY
@given(seeds, seeds, exact_operators, st.sampled_from([(7, 7), (8, 8), (8, 9)]))
def test_a_child_in_an_exact_direction_computes_what_its_parent_does(
  parent_seed, seed, operator, image_shape
):
  parent = random_parent(parent_seed)
  child = exact_child(operator, seed, parent)
  if child is None:
    return
  parent_variables = trained_variables(parent_seed, parent)
  variables = inheritance.inherit(
    jax.random.key(seed),
    parent,
    parent_variables,
    child,
    'net2net',
    image_shape=image_shape,
  )
  x = images(*image_shape)
  assert_same_function(parent, parent_variables, child, variables, x)


def test_the_operators_reach_every_exact_direction():
  """Or the properties would hold of nothing."""
  for operator in EXACT:
    children = [exact_child(operator, seed, random_parent(seed)) for seed in range(30)]
    assert sum(child is not None for child in children) >= 4


@pytest.mark.parametrize('image_shape', [(4, 4), (5, 5), (8, 8), (9, 9), (8, 9)])
@pytest.mark.parametrize('old', [1, 3])
def test_a_larger_kernel_of_stride_two_is_exact_at_even_and_odd_sizes(image_shape, old):
  parent = Genotype((Block(6, old, 2), Block(8, old, 2)))
  parent_variables = trained_variables(0, parent)
  for index in range(2):
    blocks = list(parent.blocks)
    old_block = blocks[index]
    blocks[index] = Block(old_block.filters, 5, 2, old_block.lineage)
    child = Genotype(tuple(blocks), parent.next_lineage)
    variables = net2net.inherit(
      jax.random.key(0), parent, parent_variables, child, image_shape=image_shape
    )
    x = images(*image_shape)
    assert_same_function(parent, parent_variables, child, variables, x)
    with pytest.raises(ValueError, match='image_shape: got None, want height and'):
      net2net.inherit(jax.random.key(0), parent, parent_variables, child)


def test_several_mutations_at_once_are_exact_too():
  parent = Genotype.parse('6c1 8c3s2 8c1')
  first, second, third = parent.blocks
  child = Genotype(
    (
      Block(12, 3, 1, 7),  # New.
      Block(12, 3, 1, 10),  # New.
      Block(8, 5, 1, first.lineage),
      Block(8, 3, 1, 8),  # New.
      Block(12, 3, 2, second.lineage),
      Block(12, 3, 1, third.lineage),
      Block(16, 1, 1, 9),  # New.
    ),
    11,
  )
  assert can_preserve_function(parent, child, 3)
  parent_variables = trained_variables(0, parent)
  variables = net2net.inherit(
    jax.random.key(0), parent, parent_variables, child, image_shape=(8, 8)
  )
  assert_same_function(parent, parent_variables, child, variables, images(8, 8))


# ------------------------------------------------------------------------------
# Training from there
# ------------------------------------------------------------------------------


def gradients(genotype: Genotype, variables: dict) -> dict:
  labels = jnp.arange(6) % NUM_CLASSES

  def loss(params):
    outputs, _ = network(genotype).apply(
      {**variables, 'params': params}, images(8, 8), True, mutable=['batch_stats']
    )
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()

  return jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(variables['params']))


@settings(_PROPERTY, max_examples=8)
@given(seeds, seeds, exact_operators)
def test_gradients_reach_everything_that_a_child_has_more_than_its_parent(
  parent_seed, seed, operator
):
  parent = random_parent(parent_seed, 2)
  child = exact_child(operator, seed, parent)
  if child is None:
    return
  variables = inheritance.inherit(
    jax.random.key(seed),
    parent,
    trained_variables(parent_seed, parent),
    child,
    'net2net',
    image_shape=(8, 8),
  )
  found = gradients(child, variables)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
  for block in child.blocks:
    kernel = found[model.block_name(block)]['conv']['kernel']
    # Of every tap and of every channel that goes out.
    assert (np.abs(kernel).max(axis=(2, 3)) > 1e-7).all()
    assert (np.abs(kernel).max(axis=(0, 1, 2)) > 1e-7).all()


@pytest.mark.parametrize('noise', [0.0, 0.05])
def test_noise_lets_copies_grow_apart(noise):
  """Without it a copy's gradient is its original's, and so is its every step."""
  parent = Genotype.parse('6c3 8c3')
  first, second = parent.blocks
  child = Genotype((Block(12, 3, 1, first.lineage), second), 2)
  variables = net2net.inherit(
    jax.random.key(0), parent, trained_variables(0, parent), child, noise=noise
  )
  name = model.block_name(first)
  kernel = variables['params'][name]['conv']['kernel']
  gradient = gradients(child, variables)[name]['conv']['kernel']
  for copy in range(6, 12):
    distances = np.abs(kernel[..., :6] - kernel[..., copy, np.newaxis]).max((0, 1, 2))
    original = distances.argmin()
    assert distances[original] == 0 if noise == 0 else 0 < distances[original] < 0.2
    difference = np.abs(gradient[..., copy] - gradient[..., original]).max()
    relative = difference / np.abs(gradient[..., original]).max()
    assert relative < 1e-3 if noise == 0 else relative > 1e-2


@pytest.mark.parametrize('position', range(3))
def test_a_new_block_is_nearly_the_identity_in_training_mode_too(position):
  """With the moments of the very images."""
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
  activations = list(activations_lib.outputs(trainer, parent, parent_variables))
  mean, std = datasets.channel_statistics(split.images)
  x = jnp.asarray((split.images - mean) / std)
  np.testing.assert_allclose(activations[0], x, rtol=1e-5, atol=1e-5)
  moments = measure(activations)
  measured = measured_moments(parent, parent_variables, x)
  for ours, theirs in zip(jax.tree.leaves(moments), jax.tree.leaves(measured)):
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)

  blocks = list(parent.blocks)
  blocks.insert(position, Block(12, 3, 1, 2))
  child = Genotype(tuple(blocks), 3)
  variables = net2net.inherit(
    jax.random.key(0), parent, parent_variables, child, parent_moments=moments
  )
  plain = jax.tree.map(np.array, variables)  # Normalises, and does no more.
  norm = plain['params']['block_2']['norm']
  norm['scale'][:], norm['bias'][:] = 1, 0
  expected, outputs, control = (
    jax.jit(network(genotype).apply, static_argnames=('train', 'mutable'))(
      v, x, train=True, mutable=('batch_stats',)
    )[0]
    for genotype, v in ((parent, parent_variables), (child, variables), (child, plain))
  )
  error = jnp.abs(outputs - expected).max()
  # Behind the last block there is no other that normalises what running statistics,
  # of which the moments are, and the batch's make different.
  assert error < (0.2 if position == 2 else 0.01) * jnp.abs(expected).max()
  if position > 0:  # Images are standardised already.
    assert error < jnp.abs(control - expected).max() / 4
