"""The fused block against Flax's own modules and plain autodiff."""

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamarck_jax import genotype as genotype_lib
from lamarck_jax import model, mutation
from lamarck_jax.genotype import SearchSpace
from lamarck_jax.xla import fused_block
from tests.xla.conftest import assert_close, make_arrays


def run_network(block_class, genotype, variables, images, labels):
  """Returns logits, updated statistics and all gradients of a chain of blocks."""

  def loss(params, images):
    x, updated = images, {}
    for block in genotype.blocks:
      name = model.block_name(block)
      module = block_class(block.filters, block.kernel_size, block.stride)
      x, stats = module.apply(
        {'params': params[name], 'batch_stats': variables['batch_stats'][name]},
        x,
        train=True,
        mutable=['batch_stats'],
      )
      updated[name] = stats['batch_stats']
    head = {'params': params[model.CLASSIFIER]}
    logits = model.Classifier(5).apply(head, x)
    value = -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), -1))
    return value, (logits, updated)

  @jax.jit
  def run(params, images):
    gradients, outputs = jax.grad(loss, (0, 1), has_aux=True)(params, images)
    return outputs, gradients

  return run(variables['params'], images)


@settings(max_examples=3, deadline=None, derandomize=True)
@given(
  seed=st.integers(0, 10**6),
  num_mutations=st.integers(0, 7),
  size=st.integers(5, 12),
  channels=st.sampled_from([1, 3]),
)
def test_networks_of_fused_blocks_equal_the_plain_ones_in_value_and_gradient(
  seed, num_mutations, size, channels
):
  space = SearchSpace(filters=(4, 8, 20))
  key = jax.random.key(seed)
  genotype = genotype_lib.random_genotype(key, space)
  for index in range(num_mutations):
    genotype = mutation.mutate(jax.random.fold_in(key, index), genotype, space)
  variables = model.init_variables(key, genotype, channels, 5)
  rng = np.random.default_rng(seed)
  images = rng.normal(size=(16, size, size + 1, channels)).astype(np.float32)
  labels = np.eye(5, dtype=np.float32)[rng.integers(5, size=16)]
  plain, fused = (
    run_network(block_class, genotype, variables, images, labels)
    for block_class in (model.ConvBlock, fused_block.ConvBlock)
  )
  plain_leaves, structure = jax.tree.flatten(plain)
  assert structure == jax.tree.structure(fused)
  # Relative to the largest value: the bias of a convolution has gradient 0 but for
  # rounding.
  scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain[1]))
  for ours, theirs in zip(jax.tree.leaves(fused), plain_leaves, strict=True):
    largest = max(float(jnp.abs(theirs).max()), 1e-2 * scale)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3 * largest)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  ('size', 'kernel_size', 'stride'),
  [((8, 6), 5, 2), ((7, 9), 3, 2), ((7, 9), 5, 1)],
  ids=str,
)
@pytest.mark.usefixtures('gpu_forms')
def test_the_forms_for_a_gpu_equal_the_plain_block_in_value_and_gradient(
  size, kernel_size, stride, dtype
):
  x, _, dy = make_arrays(16, *size, 5, kernel_size, stride)
  plain, fused = (
    block_class(6, kernel_size, stride, dtype=dtype)
    for block_class in (model.ConvBlock, fused_block.ConvBlock)
  )
  variables = plain.init(jax.random.key(0), x, train=False)
  scale = np.linspace(0.5, 1.5, 6, dtype=np.float32)
  variables['params']['norm'] = {'scale': scale, 'bias': scale - 1}

  def run(block):
    def apply(params, x):
      stats = {'batch_stats': variables['batch_stats']}
      return block.apply({'params': params, **stats}, x, True, mutable=['batch_stats'])

    @jax.jit
    def outputs_and_gradients(params, x):
      outputs, pullback, updated = jax.vjp(apply, params, x, has_aux=True)
      evaluated = block.apply({'params': params, **updated}, x, False)
      return outputs, evaluated, updated, pullback(dy.astype(dtype))

    results = outputs_and_gradients(variables['params'], x.astype(dtype))
    *results, (gradients, input_gradient) = results
    # It is 0 but for rounding.
    gradients['conv'].pop('bias')
    assert input_gradient.dtype == results[0].dtype == dtype
    return jax.tree.leaves((results, gradients, input_gradient))

  assert_close(run(fused), run(plain), 2e-5 if dtype == jnp.float32 else 5e-2)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.usefixtures('all_forms')
def test_one_program_trains_and_evaluates_as_the_plain_block(dtype):
  x, _, dy = make_arrays(5, 7, 8, 3, 3, 2)
  rng = np.random.default_rng(0)
  plain, fused = (
    block_class(6, 3, 2, dtype=dtype)
    for block_class in (model.ConvBlock, fused_block.ConvBlock)
  )
  variables = plain.init(jax.random.key(0), x, train=False)
  variables = jax.tree.map(
    lambda leaf: leaf + rng.uniform(0.1, 1, leaf.shape).astype(np.float32), variables
  )

  def apply(block, params, x, train):
    stats = {'batch_stats': variables['batch_stats']}
    return block.apply({'params': params, **stats}, x, train, mutable=['batch_stats'])

  @jax.jit
  def program(params, x, train):
    outputs, pullback, updated = jax.vjp(
      lambda params, x: apply(fused, params, x, train), params, x, has_aux=True
    )
    return outputs, updated, pullback(dy.astype(dtype))

  arguments = variables['params'], x.astype(dtype)
  trained, updated, gradients = program(*arguments, True)
  evaluated, *others = program(*arguments, False)
  # Evaluation has no gradient of its own: those of training come out.
  assert_close(jax.tree.leaves(others), jax.tree.leaves((updated, gradients)))
  tolerance = 2e-5 if dtype == jnp.float32 else 5e-2
  for actual, train in ((trained, True), (evaluated, False)):
    desired, stats = jax.jit(apply, static_argnums=(0, 3))(plain, *arguments, train)
    assert actual.dtype == desired.dtype == dtype
    assert_close([actual.astype(np.float32)], [desired.astype(np.float32)], tolerance)
    if train:
      assert_close(jax.tree.leaves(updated), jax.tree.leaves(stats), tolerance)
  assert np.abs(np.asarray(trained - evaluated, np.float32)).max() > 0.1


@pytest.mark.parametrize(
  'case',
  [
    (3, 8, 8, 3, 3, 1),
    (3, 8, 8, 17, 3, 1),
    (5, 7, 9, 17, 5, 2),
    (4, 6, 6, 17, 1, 2),
    (130, 8, 8, 20, 3, 2),
  ],
  ids=str,
)
def test_gradients_through_output_and_moments_match_plain_autodiff(case):
  x, kernel, dy = make_arrays(*case)
  rng = np.random.default_rng(1)
  conv_bias, scale, bias, dmean, dvar = rng.normal(size=(5, 6)).astype(np.float32)
  stride = case[-1]

  def fused(*args):
    return fused_block.conv_batch_norm_relu(*args, stride)

  def plain(x, kernel, conv_bias, scale, bias):
    z = conv_bias + jax.lax.conv_general_dilated(
      x, kernel, (stride,) * 2, 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    mean, var = z.mean((0, 1, 2)), z.var((0, 1, 2))
    y = jax.nn.relu((z - mean) * jax.lax.rsqrt(var + 1e-5) * scale + bias)
    return y, mean, var

  def run(block):
    @jax.jit
    def outputs_and_gradients(*args):
      outputs, pullback = jax.vjp(block, *args)
      return *outputs, *pullback((dy, dmean, dvar))

    return outputs_and_gradients(x, kernel, conv_bias, scale, bias)

  assert_close(run(fused), run(plain), tolerance=3e-5)


@pytest.mark.usefixtures('all_forms')
def test_the_variance_is_exact_where_the_mean_is_large():
  rng = np.random.default_rng(0)
  x = (1000 + rng.normal(size=(70, 8, 8, 3))).astype(np.float32)
  kernel = np.eye(3, dtype=np.float32)[None, None]
  ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
  block = jax.jit(lambda *args: fused_block.conv_batch_norm_relu(*args, stride=1))
  _, mean, var = block(x, kernel, zeros, ones, zeros)
  np.testing.assert_allclose(mean, x.mean((0, 1, 2), np.float64), rtol=1e-6)
  np.testing.assert_allclose(var, x.var((0, 1, 2), np.float64), rtol=1e-4)


def test_the_convolutions_bias_has_exactly_no_gradient_through_the_output():
  x, kernel, dy = make_arrays(3, 8, 8, 3, 3, 1)
  ones = np.ones(6, np.float32)

  def loss(conv_bias):
    y, _, _ = fused_block.conv_batch_norm_relu(x, kernel, conv_bias, ones, ones, 1)
    return jnp.sum(y * dy)

  np.testing.assert_array_equal(jax.jit(jax.grad(loss))(ones), 0)
