"""Tests of what `net2net` can preserve only approximately."""

import jax
import numpy as np
import pytest

from lamarck_jax import net2net
from lamarck_jax.genotype import Block, Genotype
from lamarck_jax.moments import Moments, estimated_moments, measure
from tests.networks import (
  assert_same_function,
  images,
  logits,
  measured_moments,
  trained_variables,
)


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
  affine_map = net2net.bypass(*measure([x, y]))
  design = same_pixel.reshape(-1, 4)
  design = np.concatenate([design, np.ones((len(design), 1))], axis=1)
  expected, _, _, _ = np.linalg.lstsq(design, y.reshape(-1, 6))
  # With a stride the moments of the inputs are still those of all pixels.
  tolerance = 1e-3 if stride == 1 else 0.05
  np.testing.assert_allclose(affine_map.weights, expected[:4], atol=tolerance)
  np.testing.assert_allclose(affine_map.offset, expected[4], atol=2 * tolerance)


def test_an_input_that_never_varies_stands_in_for_nothing():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(8, 4, 4, 3)).astype(np.float32)
  x[..., 1] = 0
  y = rng.normal(size=(8, 4, 4, 5)).astype(np.float32)
  affine_map = net2net.bypass(*measure([x, y]))
  np.testing.assert_array_equal(affine_map.weights[1], 0)
  assert np.abs(affine_map.weights).max() < 1


def test_copies_are_the_first_to_go():
  small = Genotype.parse('6c3 8c3')
  first, second = small.blocks
  assert_undone(small, Genotype((Block(12, 3, 1, first.lineage), second), 2))


def test_channels_that_vary_and_are_read_are_kept():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1000, 4)) * [1, 3, 1, 2]
  outputs = Moments(x.mean(0), np.cov(x.T, bias=True))
  for influence, expected in (
    ([1, 1, 1, 1], [1, 3]),
    ([9, 1, 1, 1], [0, 1]),
    ([0, 0, 1, 1], [2, 3]),
  ):
    kept, affine_map = net2net.narrow(outputs, np.array(influence, float), 2)
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_array_equal(affine_map.weights[:, kept], np.eye(2))
    np.testing.assert_array_equal(affine_map.offset[kept], 0)


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
  kept, affine_map = net2net.narrow(moments[1], influence, 6)
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
    np.einsum('ci,hwio->hwco', affine_map.weights, reader),
    rtol=1e-4,
    atol=1e-5,
  )
  bias = old['block_1']['conv']['bias'] + affine_map.offset @ reader.sum((0, 1))
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
  moments = measure([x[..., np.newaxis]])
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
  sample = measure([x[:, None, None], np.maximum(y, 0)[:, None, None]])
  moments = estimated_moments(params, stats, sample[0])
  np.testing.assert_allclose(moments.mean, sample[1].mean, atol=0.01)
  variances = np.diagonal(moments.covariance), np.diagonal(sample[1].covariance)
  np.testing.assert_allclose(*variances, rtol=0.02)
  np.testing.assert_allclose(moments.cross, sample[1].cross, rtol=0.02, atol=0.02)
