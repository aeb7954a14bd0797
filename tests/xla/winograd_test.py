"""Winograd's form against convolution in float64."""

import functools

import jax
import numpy as np
import pytest

from lamarck_jax.xla import winograd
from lamarck_jax.xla.im2col import Geometry
from tests.xla.conftest import assert_close, float64_conv_and_gradients, make_arrays


def conv_and_gradients(geometry, x, kernel, dy):
  """Returns the convolution and both gradients by Winograd's form, one chunk."""
  size = geometry.output_size(x, kernel)
  phases = winograd.Phases(geometry.strides[0], geometry.pads, kernel.shape[0], size)

  @jax.jit
  def run(x, kernel, dy):
    reduced = phases.kernel(kernel)
    values = winograd.transform_kernel(reduced)
    y = winograd.convolve(phases, values, x)
    values = winograd.transform_kernel(reduced.swapaxes(2, 3))
    dx, products = winograd.gradients(phases, values, x, dy)
    return y, dx, winograd.kernel_gradient(phases, kernel, products)

  return run(x, kernel, dy)


@pytest.mark.parametrize('kernel_size', sorted(winograd.TRANSFORMS))
def test_the_matrices_give_a_correlation_exactly(kernel_size):
  rng = np.random.default_rng(0)
  output, kernel, image = winograd.TRANSFORMS[kernel_size]
  g, d = rng.normal(size=kernel_size), rng.normal(size=len(image))
  actual = output.T @ ((kernel @ g) * (image @ d))
  np.testing.assert_allclose(actual, np.correlate(d, g, 'valid'), rtol=1e-12)


@pytest.mark.parametrize(('kernel_size', 'stride'), [(3, 1), (5, 1), (5, 2)])
@pytest.mark.parametrize(
  ('images', 'height', 'width', 'channels', 'filters'),
  [(2, 7, 9, 17, 8), (1, 6, 5, 9, 20), (2, 1, 2, 8, 8)],
)
def test_convolution_and_its_gradients_match_float64(
  images, height, width, channels, filters, kernel_size, stride
):
  case = (images, height, width, channels, kernel_size, stride, filters)
  x, kernel, dy = make_arrays(*case)
  actual = conv_and_gradients(Geometry.same(x, kernel, stride), x, kernel, dy)
  desired = float64_conv_and_gradients(x, kernel, dy, stride)
  # Relative to the largest value; tiles of a 5x5 kernel round more.
  assert_close(actual, desired, tolerance={3: 5e-6, 5: 1e-5}[kernel_size])


@pytest.mark.parametrize('kernel_size', [3, 5])
def test_rounding_is_that_of_a_direct_sum_at_wide_layers(kernel_size):
  x, kernel, dy = make_arrays(2, 8, 8, 64, kernel_size, 1, filters=64)
  actual = conv_and_gradients(Geometry.same(x, kernel, 1), x, kernel, dy)
  desired = float64_conv_and_gradients(x, kernel, dy, 1)
  assert_close(actual, desired, tolerance=1e-5)


@pytest.mark.parametrize('pads', [((0, 0), (0, 0)), ((0, 3), (2, 1))])
@pytest.mark.parametrize(('kernel_size', 'stride'), [(3, 1), (5, 1), (5, 2)])
def test_other_padding_means_what_it_means_in_lax(pads, kernel_size, stride):
  x, kernel, _ = make_arrays(2, 12, 13, 8, kernel_size, 1, filters=8)
  geometry = Geometry((stride, stride), pads)

  @jax.jit
  def plain(x, kernel):
    conv = functools.partial(
      jax.lax.conv_general_dilated,
      window_strides=geometry.strides,
      padding=pads,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    y, pullback = jax.vjp(conv, x, kernel)
    return y, *pullback(y)

  desired = plain(x, kernel)
  actual = conv_and_gradients(geometry, x, kernel, desired[0])
  assert_close(actual, desired, tolerance=2e-5)


@pytest.mark.parametrize(
  ('channels', 'filters', 'size', 'kernel_size', 'stride', 'used'),
  [
    (64, 64, 16, 3, 1, True),
    (64, 64, 16, 5, 1, True),
    (64, 64, 16, 1, 1, False),
    (64, 64, 16, 3, 2, False),
    (64, 32, 16, 5, 2, True),
    (64, 4, 16, 5, 2, False),
    (128, 256, 16, 5, 2, True),
    (129, 256, 16, 5, 2, False),
    (16, 16, 8, 5, 2, False),
    (3, 64, 32, 5, 1, False),
    (16, 16, 8, 3, 1, False),
    (16, 16, 8, 5, 1, True),
    (8, 64, 16, 3, 1, False),
    (8, 64, 16, 5, 1, True),
    (256, 256, 2, 3, 1, False),
  ],
)
def test_it_is_used_where_it_gains(channels, filters, size, kernel_size, stride, used):
  kernel_shape = (kernel_size, kernel_size, channels, filters)
  output_size = (-(-size // stride),) * 2
  assert winograd.suits((stride,) * 2, 64, kernel_shape, output_size) is used
