from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lamarck_jax import genotype as genotype_lib
from lamarck_jax import inheritance, model, mutation, net2net, training
from lamarck_jax.data import datasets
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


def trained_variables(seed: int, genotype: Genotype, channels: int = 3) -> dict:
  """Variables in which no two channels are alike, as after training."""
  rng = np.random.default_rng(seed)
  leaves = traverse_util.flatten_dict(
    model.init_variables(jax.random.key(seed), genotype, channels, NUM_CLASSES)
  )
  for path, leaf in leaves.items():
    if path[-1] in ('scale', 'var'):
      leaves[path] = rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    elif path[-1] in ('bias', 'mean'):
      leaves[path] = rng.normal(0, 0.3, leaf.shape).astype(np.float32)
  return traverse_util.unflatten_dict(leaves)


def images(height: int, width: int, count: int = 6, channels: int = 3) -> jax.Array:
  shape = (count, height, width, channels)
  return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def network(genotype: Genotype) -> model.ConvNet:
  # XLA's own convolution compiles faster than a program for the whole network.
  return model.ConvNet(
    genotype, NUM_CLASSES, conv_general_dilated=jax.lax.conv_general_dilated
  )


def logits(genotype: Genotype, variables: dict, x: jax.Array) -> np.ndarray:
  return np.asarray(network(genotype).apply(variables, x))


def measured_moments(
  genotype: Genotype, variables: dict, x: jax.Array
) -> list[net2net.Moments]:
  _, state = network(genotype).apply(
    variables, x, capture_intermediates=True, mutable=['intermediates']
  )
  names = [model.block_name(block) for block in genotype.blocks]
  outputs = [state['intermediates'][name]['__call__'][0] for name in names]
  return net2net.moments(map(np.asarray, [x, *outputs]))


def assert_same_function(
  parent, parent_variables, child, variables, x, tolerance=1e-4
) -> None:
  expected = logits(parent, parent_variables, x)
  np.testing.assert_allclose(
    logits(child, variables, x),
    expected,
    rtol=tolerance,
    atol=tolerance * np.abs(expected).max(),
  )


EXACT = ('add_block', 'add_filters', 'change_kernel_size')
exact_operators = st.sampled_from(EXACT)


def exact_child(operator: str, seed: int, parent: Genotype) -> Genotype | None:
  """Returns a child that is to compute what its parent does, if there is one."""
  try:
    child = getattr(mutation, operator)(jax.random.key(seed), parent, SPACE)
  except mutation.NotApplicable:
    return None
  return child if net2net.is_exact(parent, child, 3) else None


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
  assert net2net.is_exact(parent, child, 3)
  parent_variables = trained_variables(0, parent)
  variables = net2net.inherit(
    jax.random.key(0), parent, parent_variables, child, image_shape=(8, 8)
  )
  assert_same_function(parent, parent_variables, child, variables, images(8, 8))


@_PROPERTY
@given(seeds, seeds, st.sampled_from(inheritance.MODES))
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
  model.check_variables(variables, child, 3, NUM_CLASSES)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
  jax.tree.map(np.testing.assert_array_equal, parent_variables, before)


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
  activations = list(trainer.activations(parent, parent_variables))
  mean, std = datasets.channel_statistics(split.images)
  x = jnp.asarray((split.images - mean) / std)
  np.testing.assert_allclose(activations[0], x, rtol=1e-5, atol=1e-5)
  moments = net2net.moments(activations)
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


# ------------------------------------------------------------------------------
# What cannot be exact
# ------------------------------------------------------------------------------


def assert_undone(small: Genotype, large: Genotype, channels: int = 3) -> None:
  """A network that has grown and shrinks again computes what it did."""
  small_variables = trained_variables(0, small, channels)
  large_variables = net2net.inherit(
    jax.random.key(0), small, small_variables, large, image_shape=(8, 8)
  )
  x = images(8, 8, 64, channels)
  variables = net2net.inherit(
    jax.random.key(0),
    large,
    large_variables,
    small,
    parent_moments=measured_moments(large, large_variables, x),
  )
  assert_same_function(small, small_variables, small, variables, x, 2e-3)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('position', range(3))
def test_a_removed_block_is_made_up_for_as_far_as_its_inputs_can(channels, position):
  """An identity can be, wherever it stands, in front of the first block too."""
  small = Genotype.parse('6c3 8c3')
  blocks = list(small.blocks)
  blocks.insert(position, Block(12, 3, 1, 2))
  assert_undone(small, Genotype(tuple(blocks), 3), channels)


@pytest.mark.parametrize('stride', [1, 2])
def test_a_removed_block_is_predicted_by_least_squares(stride):
  rng = np.random.default_rng(0)
  x = rng.normal(1, 2, (200, 10, 10, 4)).astype(np.float32)
  same_pixel = x[:, ::stride, ::stride]
  y = np.maximum(same_pixel @ rng.normal(size=(4, 6)).astype(np.float32), 0)
  wiring = net2net.bypass(*net2net.moments([x, y]))
  design = same_pixel.reshape(-1, 4)
  design = np.concatenate([design, np.ones((len(design), 1))], axis=1)
  expected, _, _, _ = np.linalg.lstsq(design, y.reshape(-1, 6))
  # With a stride the moments of the inputs are still those of all pixels.
  tolerance = 1e-3 if stride == 1 else 0.05
  np.testing.assert_allclose(wiring.weights, expected[:4], atol=tolerance)
  np.testing.assert_allclose(wiring.offset, expected[4], atol=2 * tolerance)


def test_an_input_that_never_varies_stands_in_for_nothing():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(8, 4, 4, 3)).astype(np.float32)
  x[..., 1] = 0
  y = rng.normal(size=(8, 4, 4, 5)).astype(np.float32)
  wiring = net2net.bypass(*net2net.moments([x, y]))
  np.testing.assert_array_equal(wiring.weights[1], 0)
  assert np.abs(wiring.weights).max() < 1


def test_copies_are_the_first_to_go():
  small = Genotype.parse('6c3 8c3')
  first, second = small.blocks
  assert_undone(small, Genotype((Block(12, 3, 1, first.lineage), second), 2))


def test_channels_that_vary_and_are_read_are_kept():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1000, 4)) * [1, 3, 1, 2]
  outputs = net2net.Moments(x.mean(0), np.cov(x.T, bias=True))
  for influence, expected in (
    ([1, 1, 1, 1], [1, 3]),
    ([9, 1, 1, 1], [0, 1]),
    ([0, 0, 1, 1], [2, 3]),
  ):
    kept, wiring = net2net.narrow(outputs, np.array(influence, float), 2)
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_array_equal(wiring.weights[:, kept], np.eye(2))
    np.testing.assert_array_equal(wiring.offset[kept], 0)


@pytest.mark.parametrize('new_block', [False, True])
def test_a_narrowed_layer_keeps_channels_and_its_successor_follows(new_block):
  """A new block of fewer filters keeps its inputs by the same rule."""
  parent = Genotype.parse('8c3 8c3')
  first, second = parent.blocks
  parent_variables = trained_variables(0, parent)
  x = images(8, 8, 64)
  moments = measured_moments(parent, parent_variables, x)
  if new_block:
    child = Genotype((first, Block(6, 1, 1, 2), second), 3)
  else:
    child = Genotype((Block(6, 3, 1, first.lineage), second), 2)
  variables = net2net.inherit(
    jax.random.key(0), parent, parent_variables, child, parent_moments=moments
  )
  old, new = parent_variables['params'], variables['params']
  reader = old['block_1']['conv']['kernel']
  influence = np.sqrt(np.square(reader).sum((0, 1, 3)))
  kept, wiring = net2net.narrow(moments[1], influence, 6)
  if new_block:
    kernel = np.eye(8, dtype=np.float32)[:, kept]
    np.testing.assert_array_equal(new['block_2']['conv']['kernel'][0, 0], kernel)
  else:
    jax.tree.map(
      np.testing.assert_array_equal,
      new['block_0'],
      jax.tree.map(lambda leaf: leaf[..., kept], old['block_0']),
    )
  conv = new['block_1']['conv']
  np.testing.assert_allclose(
    conv['kernel'],
    np.einsum('ci,hwio->hwco', wiring.weights, reader),
    rtol=1e-4,
    atol=1e-5,
  )
  bias = old['block_1']['conv']['bias'] + wiring.offset @ reader.sum((0, 1))
  np.testing.assert_allclose(conv['bias'], bias, rtol=1e-4, atol=1e-5)


def test_a_removed_last_block_leaves_the_mean_of_the_logits():
  parent = Genotype.parse('8c3 8c3')
  child = Genotype(parent.blocks[:1], 2)
  parent_variables = trained_variables(0, parent)
  x = images(8, 8, 64)
  variables = net2net.inherit(
    jax.random.key(0),
    parent,
    parent_variables,
    child,
    parent_moments=measured_moments(parent, parent_variables, x),
  )
  np.testing.assert_allclose(
    logits(child, variables, x).mean(0),
    logits(parent, parent_variables, x).mean(0),
    rtol=1e-3,
    atol=1e-3,
  )


def test_a_smaller_kernel_is_the_centre_and_what_is_cut_off_goes_to_its_edge():
  kernel = np.arange(25.0).reshape(5, 5, 1, 1)
  for size in (1, 3, 5):
    centre = kernel[(5 - size) // 2 :][:size, (5 - size) // 2 :][:, :size]
    np.testing.assert_array_equal(net2net.shrink_kernel(kernel, size, 0.0), centre)
    alike = net2net.shrink_kernel(kernel, size, 1.0)
    np.testing.assert_allclose(alike.sum(), kernel.sum())
  smaller = net2net.shrink_kernel(kernel, 3, 0.5)[..., 0, 0]
  rows = kernel[..., 0, 0]
  corner = rows[1, 1] + (rows[0, 1] + rows[1, 0]) / 2 + rows[0, 0] / 4
  side = rows[1, 2] + rows[0, 2] / 2
  assert smaller[0, 0] == corner and smaller[0, 1] == side
  assert smaller[1, 1] == rows[2, 2]


def test_what_is_cut_off_a_kernel_is_predicted_by_least_squares():
  """Of images whose pixels are correlated as r^d."""
  rng = np.random.default_rng(0)
  r, x = 0.7, rng.normal(size=(4000, 5, 5))
  for axis in (1, 2):
    pixels = np.moveaxis(x, axis, 0)
    for i in range(1, 5):
      pixels[i] = r * pixels[i - 1] + np.sqrt(1 - r**2) * pixels[i]
  moments = net2net.moments([x[..., np.newaxis]])
  assert moments[0].correlation == pytest.approx(r, abs=0.03)
  kernel = rng.normal(size=(5, 5))
  design = x[:, 1:4, 1:4].reshape(-1, 9)
  expected, _, _, _ = np.linalg.lstsq(design, (x * kernel).sum((1, 2)))
  smaller = net2net.shrink_kernel(kernel[..., np.newaxis, np.newaxis], 3, r)
  np.testing.assert_allclose(smaller.ravel(), expected, atol=0.15)


def test_a_smaller_kernel_leaves_the_mean_of_what_comes_out():
  parent = Genotype.parse('8c3 8c5')
  first, second = parent.blocks
  child = Genotype((first, Block(8, 1, 1, second.lineage)), 2)
  parent_variables = trained_variables(0, parent)
  x = images(16, 16, 32)
  moments = measured_moments(parent, parent_variables, x)
  variables = net2net.inherit(
    jax.random.key(0), parent, parent_variables, child, parent_moments=moments
  )
  old, new = (v['params']['block_1']['conv'] for v in (parent_variables, variables))
  means = [
    conv['bias'] + moments[1].mean @ conv['kernel'].sum((0, 1)) for conv in (old, new)
  ]
  np.testing.assert_allclose(*means, rtol=1e-4, atol=1e-4)


def test_another_stride_leaves_every_weight():
  parent = Genotype.parse('8c3 8c3')
  first, second = parent.blocks
  child = Genotype((Block(8, 3, 2, first.lineage), second), 2)
  parent_variables = trained_variables(0, parent)
  variables = net2net.inherit(jax.random.key(0), parent, parent_variables, child)
  jax.tree.map(np.testing.assert_array_equal, variables, parent_variables)


def test_estimated_moments_are_those_of_a_sample():
  """Of inputs that are normal, and alike at neighbouring pixels."""
  rng = np.random.default_rng(0)
  params = {
    'conv': {
      'kernel': rng.normal(size=(3, 3, 4, 3)).astype(np.float32) / 6,
      'bias': np.zeros(3, np.float32),
    },
    'norm': {
      'scale': np.array([1.0, 0.5, -2.0], np.float32),
      'bias': np.array([0.0, -0.7, 1.0], np.float32),
    },
  }
  x = rng.normal(size=(400000, 4)) * [1, 2, 3, 4]
  y = x @ params['conv']['kernel'].sum((0, 1))
  stats = {'norm': {'mean': y.mean(0), 'var': y.var(0)}}
  y = (y - y.mean(0)) / y.std(0) * params['norm']['scale'] + params['norm']['bias']
  sample = net2net.moments([x[:, None, None], np.maximum(y, 0)[:, None, None]])
  moments = net2net.estimated_moments(params, stats, sample[0])
  np.testing.assert_allclose(moments.mean, sample[1].mean, atol=0.01)
  variances = np.diagonal(moments.covariance), np.diagonal(sample[1].covariance)
  np.testing.assert_allclose(*variances, rtol=0.02)
  np.testing.assert_allclose(moments.cross, sample[1].cross, rtol=0.02, atol=0.02)


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
