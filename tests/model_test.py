"""Tests of `model`. The reference is written out in NumPy, in float64."""

from collections.abc import Callable
import functools
import math
from typing import Any

import chex
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamarck_jax import model
from lamarck_jax.genotype import Block, Genotype

_BOUNDED = settings(max_examples=20, deadline=None, derandomize=True)

_blocks = st.builds(
  Block,
  filters=st.sampled_from([4, 8, 12]),
  kernel_size=st.sampled_from([1, 3, 5]),
  stride=st.sampled_from([1, 2]),
)
_genotypes = st.lists(_blocks, min_size=1, max_size=5).map(
  lambda blocks: Genotype(tuple(blocks))
)
_channels = st.sampled_from([1, 3])
_sizes = st.integers(1, 33)


def _random_variables(genotype: Genotype, channels: int, num_classes: int) -> dict:
  """Returns variables with no special values anywhere; variances positive."""
  rng = np.random.default_rng(3)
  flat = traverse_util.flatten_dict(
    model.init_variables(jax.random.key(0), genotype, channels, num_classes)
  )
  for path, leaf in flat.items():
    if path[-1] in ('scale', 'var'):
      flat[path] = rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
    elif path[-1] != 'kernel':
      flat[path] = rng.normal(0, 0.5, leaf.shape).astype(np.float32)
  return traverse_util.unflatten_dict(flat)


def _images(*shape: int) -> np.ndarray:
  return np.random.default_rng(4).normal(size=shape).astype(np.float32)


def _apply(network: model.ConvNet, train: bool) -> Callable[..., Any]:
  """Returns `network.apply`, jitted: (variables, images) -> (logits, statistics)."""
  return jax.jit(functools.partial(network.apply, train=train, mutable=['batch_stats']))


def _reference_conv(
  images: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int
) -> np.ndarray:
  """The definition of a SAME convolution, pixel by pixel."""
  num_images, *size, _ = images.shape
  window = kernel.shape[0]
  out = [math.ceil(n / stride) for n in size]
  result = np.empty((num_images, *out, kernel.shape[-1]))
  # SAME: as many zeros as the last window needs, the odd one at the end.
  pads = [max((m - 1) * stride + window - n, 0) for n, m in zip(size, out)]
  pads = [(pad // 2, pad - pad // 2) for pad in pads]
  padded = np.pad(images, [(0, 0), *pads, (0, 0)])
  for row in range(out[0]):
    for column in range(out[1]):
      top, left = row * stride, column * stride
      patch = padded[:, top : top + window, left : left + window]
      result[:, row, column] = np.einsum('nijc,ijcf->nf', patch, kernel) + bias
  return result


def _reference(
  genotype: Genotype, variables: dict, images: np.ndarray, train: bool
) -> tuple[np.ndarray, dict]:
  """Returns logits and the running statistics after, in float64."""
  variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
  x, new_stats = images.astype(np.float64), {}
  for block in genotype.blocks:
    name = f'block_{block.lineage}'
    conv, norm = (variables['params'][name][part] for part in ('conv', 'norm'))
    running = variables['batch_stats'][name]['norm']
    x = _reference_conv(x, conv['kernel'], conv['bias'], block.stride)
    mean, var = running['mean'], running['var']
    if train:
      mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
      running = {
        'mean': 0.9 * running['mean'] + 0.1 * mean,
        'var': 0.9 * running['var'] + 0.1 * var,
      }
    new_stats[name] = {'norm': running}
    x = (x - mean) / np.sqrt(var + 1e-5) * norm['scale'] + norm['bias']
    x = np.maximum(x, 0)
  dense = variables['params']['classifier']['dense']
  return x.mean((1, 2)) @ dense['kernel'] + dense['bias'], new_stats


# ------------------------------------------------------------------------------
# What the network computes
# ------------------------------------------------------------------------------

_NETWORKS = [
  ('4c3', 1, (8, 8)),
  ('6c5s2 4c3 8c1s2', 3, (9, 7)),
  ('4c1s2 4c3s2 5c5s2', 3, (10, 13)),
]


@pytest.mark.parametrize('train', [False, True], ids=['evaluation', 'training'])
@pytest.mark.parametrize(('text', 'channels', 'size'), _NETWORKS)
def test_the_network_computes_what_the_reference_does(text, channels, size, train):
  genotype = Genotype.parse(text)
  variables = _random_variables(genotype, channels, num_classes=5)
  images = _images(6, *size, channels)
  logits, updated = _apply(model.ConvNet(genotype, 5), train)(variables, images)
  wanted, wanted_stats = _reference(genotype, variables, images, train)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)
  chex.assert_trees_all_equal_structs(updated['batch_stats'], wanted_stats)
  jax.tree.map(
    lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5),
    updated['batch_stats'],
    wanted_stats,
  )


def test_evaluation_leaves_the_statistics_bit_for_bit_and_training_changes_them_all():
  genotype = Genotype.parse('4c3 6c1')
  variables = _random_variables(genotype, 3, 5)
  images = _images(4, 6, 6, 3)
  network = model.ConvNet(genotype, 5)
  for train in (False, True):
    _, updated = _apply(network, train)(variables, images)
    same = jax.tree.map(
      lambda before, after: np.asarray(before).tobytes() == np.asarray(after).tobytes(),
      variables['batch_stats'],
      updated['batch_stats'],
    )
    assert all(leaf != train for leaf in jax.tree.leaves(same))


def test_evaluation_is_the_default_and_treats_every_image_alone():
  genotype = Genotype.parse('4c3s2 6c1')
  variables = _random_variables(genotype, 3, 5)
  images = _images(4, 6, 6, 3)
  network = model.ConvNet(genotype, 5)
  apply = jax.jit(network.apply)
  logits, alone = apply(variables, images), apply(variables, images[2:3])
  np.testing.assert_allclose(logits[2:3], alone, rtol=1e-5, atol=1e-5)


def test_training_normalises_by_the_batchs_own_statistics():
  genotype = Genotype.parse('4c3')
  variables = _random_variables(genotype, 1, 5)
  images = _images(8, 6, 6, 1)
  apply = _apply(model.ConvNet(genotype, 5), True)
  logits, _ = apply(variables, images)
  stats = jax.tree.map(lambda leaf: 7 * leaf, variables['batch_stats'])
  scaled, _ = apply(variables | {'batch_stats': stats}, images)
  np.testing.assert_array_equal(logits, scaled)


# ------------------------------------------------------------------------------
# Shapes
# ------------------------------------------------------------------------------


@_BOUNDED
@given(_genotypes, _sizes, _sizes, _channels, st.integers(2, 100))
def test_every_image_gets_a_logit_for_every_class(
  genotype, height, width, channels, num_classes
):
  logits = jax.eval_shape(
    model.ConvNet(genotype, num_classes).apply,
    model.variable_shapes(genotype, channels, num_classes),
    jax.ShapeDtypeStruct((3, height, width, channels), jnp.float32),
  )
  assert logits.shape == (3, num_classes)
  assert logits.dtype == jnp.float32


@pytest.mark.parametrize('kernel_size', [1, 3, 5])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [1, 2, 3, 7, 8, 28, 32])
def test_a_block_divides_the_size_by_its_stride_and_rounds_up(
  size, stride, kernel_size
):
  block = model.conv_block(Block(6, kernel_size, stride))
  output, _ = jax.eval_shape(
    functools.partial(block.init_with_output, train=False),
    jax.random.key(0),
    jax.ShapeDtypeStruct((2, size, size + 1, 3), jnp.float32),
  )
  rounded_up = [(n + 1) // 2 if stride == 2 else n for n in (size, size + 1)]
  assert output.shape == (2, *rounded_up, 6)


def test_blocks_compute_in_the_type_they_are_given_and_keep_float32_parameters():
  genotype = Genotype.parse('4c3 6c1')
  network = model.ConvNet(genotype, 5, dtype=jnp.bfloat16)
  images = jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.float32)
  variables = jax.eval_shape(network.init, jax.random.key(0), images)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
  assert jax.eval_shape(network.apply, variables, images).dtype == jnp.float32
  block = model.conv_block(genotype.blocks[0], dtype=jnp.bfloat16)
  output, _ = jax.eval_shape(
    functools.partial(block.init_with_output, train=False), jax.random.key(0), images
  )
  assert output.dtype == jnp.bfloat16


# ------------------------------------------------------------------------------
# Variables
# ------------------------------------------------------------------------------


@_BOUNDED
@given(_genotypes, _channels, st.integers(2, 20))
def test_initial_variables_have_the_structure_that_flax_gives_the_network(
  genotype, channels, num_classes
):
  wanted = jax.eval_shape(
    model.ConvNet(genotype, num_classes).init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32),
  )
  shapes = model.variable_shapes(genotype, channels, num_classes)
  variables = model.init_variables(jax.random.key(0), genotype, channels, num_classes)
  for tree in (shapes, variables):
    chex.assert_trees_all_equal_structs(tree, wanted)
    for leaf, wanted_leaf in zip(jax.tree.leaves(tree), jax.tree.leaves(wanted)):
      assert leaf.shape == wanted_leaf.shape
      assert leaf.dtype == wanted_leaf.dtype


@_BOUNDED
@given(_genotypes, _channels)
def test_a_network_has_as_many_parameters_as_the_formula_says(genotype, channels):
  variables = model.init_variables(jax.random.key(0), genotype, channels, 10)
  parameters, filters = 0, channels
  for block in genotype.blocks:
    # Kernel; conv's bias; BatchNorm's scale and shift.
    parameters += (block.kernel_size**2 * filters + 3) * block.filters
    filters = block.filters
  parameters += (filters + 1) * 10
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == parameters


def test_variables_are_named_by_lineage_not_by_position():
  genotype = Genotype((Block(4, 3, 1, lineage=6), Block(8, 1, 1, lineage=2)))
  variables = model.init_variables(jax.random.key(0), genotype, 3, 10)
  assert set(variables) == {'params', 'batch_stats'}
  assert set(variables['batch_stats']) == {'block_6', 'block_2'}
  assert set(variables['params']) == {'block_6', 'block_2', 'classifier'}
  params = variables['params']
  assert params['block_6']['conv']['kernel'].shape == (3, 3, 3, 4)
  assert params['block_2']['conv']['kernel'].shape == (1, 1, 4, 8)


def test_initial_variables_depend_on_the_key_alone():
  genotype = Genotype.parse('4c3 8c1')
  one = model.init_variables(jax.random.key(0), genotype, 3, 10)
  again = model.init_variables(jax.random.key(0), genotype, 3, 10)
  other = model.init_variables(jax.random.key(1), genotype, 3, 10)
  jax.tree.map(np.testing.assert_array_equal, one, again)
  kernels, other_kernels = (
    [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim > 1] for tree in (one, other)
  )
  assert len(kernels) == 3
  for kernel, other_kernel in zip(kernels, other_kernels):
    assert not np.any(kernel == other_kernel)


def test_a_fresh_network_gives_finite_logits_of_moderate_size():
  genotype = Genotype.parse('16c3 16c3s2 16c5')
  variables = model.init_variables(jax.random.key(0), genotype, 3, 10)
  logits, _ = _apply(model.ConvNet(genotype, 10), True)(variables, _images(16, 8, 8, 3))
  assert np.all(np.isfinite(logits))
  assert 0.01 < np.std(logits) < 10
