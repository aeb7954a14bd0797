"""Winograd's form against convolution in float64."""

import functools

import jax
from jax import lax
import numpy as np
import pytest

from lamarck_jax.xla import convolution, winograd
from tests.xla import convolution_test


@pytest.mark.parametrize('kernel_size', sorted(winograd.TRANSFORMS))
def test_the_matrices_give_a_correlation_exactly(kernel_size):
  rng = np.random.default_rng(0)
  output, kernel, image = winograd.TRANSFORMS[kernel_size]
  g, d = rng.normal(size=kernel_size), rng.normal(size=len(image))
  actual = output.T @ ((kernel @ g) * (image @ d))
  np.testing.assert_allclose(actual, np.correlate(d, g, 'valid'), rtol=1e-12)


@pytest.fixture
def everywhere(monkeypatch):
  """Takes Winograd's form for the smallest layers too, and counts its uses."""
  uses = []
  product = winograd.product

  def counted(*arrays):
    uses.append(arrays)
    return product(*arrays)

  monkeypatch.setattr(convolution, '_WINOGRAD_MIN_MULTIPLICATIONS', 0)
  monkeypatch.setattr(
    convolution, '_WINOGRAD_MIN_CHANNELS', {(3, 1): 8, (5, 1): 8, (5, 2): 8}
  )
  monkeypatch.setattr(convolution, '_WINOGRAD_MIN_SIZE', 1)
  monkeypatch.setattr(winograd, 'product', counted)
  return uses


@pytest.mark.parametrize(('kernel_size', 'stride'), [(3, 1), (5, 1), (5, 2)])
@pytest.mark.parametrize(
  ('images', 'height', 'width', 'channels', 'filters'),
  [(3, 8, 8, 8, 8), (2, 7, 9, 17, 8), (1, 6, 5, 9, 20), (2, 1, 2, 8, 8)],
)
def test_convolution_and_its_gradients_match_float64(
  everywhere, images, height, width, channels, filters, kernel_size, stride
):
  case = (images, height, width, channels, kernel_size, stride, filters)
  x, kernel, dy = convolution_test._arrays(*case)
  actual = convolution_test._conv_and_gradients(
    convolution.conv_general_dilated, x, kernel, dy, stride
  )
  assert len(everywhere) == 2  # Forward, and the gradient of the image.
  desired = convolution_test._float64_conv_and_gradients(x, kernel, dy, stride)
  # Of the largest value; tiles of a 5x5 kernel round more.
  tolerance = {3: 5e-6, 5: 1e-5}[kernel_size]
  convolution_test._assert_close(actual, desired, tolerance)


@pytest.mark.parametrize(('size', 'kernel_size', 'stride'), [(6, 3, 1), (12, 5, 2)])
@pytest.mark.parametrize('images', [1, 4, 7])
def test_chunks_that_do_not_divide_the_batch_change_nothing(
  everywhere, monkeypatch, images, size, kernel_size, stride
):
  x, kernel, dy = convolution_test._arrays(
    images, size, size, 8, kernel_size, stride, filters=8
  )
  gradients = functools.partial(
    convolution_test._conv_and_gradients,
    convolution.conv_general_dilated,
    x,
    kernel,
    dy,
    stride,
  )
  # Room for two images, so that there is a loop, and a rest if their number is odd.
  values = 36 * 4 * (8 * stride**2 + 8)
  monkeypatch.setattr(convolution, '_WINOGRAD_CHUNK_BYTES', 4 * 2 * values)
  actual = gradients()
  assert everywhere[0][0].shape[1] == 4 * min(images, 2)
  desired = convolution_test._float64_conv_and_gradients(x, kernel, dy, stride)
  convolution_test._assert_close(actual, desired, tolerance=5e-6)


def test_rounding_is_that_of_a_direct_sum_at_the_widest_layers(everywhere):
  """The tiles of a 5x5 kernel round more than those of a 3x3 one."""
  x, kernel, dy = convolution_test._arrays(2, 8, 8, 64, 5, 1, filters=64)
  actual = convolution_test._conv_and_gradients(
    convolution.conv_general_dilated, x, kernel, dy, 1
  )
  desired = convolution_test._float64_conv_and_gradients(x, kernel, dy, 1)
  convolution_test._assert_close(actual, desired, tolerance=1e-5)


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
  x = np.zeros((64, size, size, channels), np.float32)
  kernel = np.zeros((kernel_size, kernel_size, channels, filters), np.float32)
  sizes = (-(-size // stride),) * 2
  assert convolution._suits_winograd((stride,) * 2, x, kernel, sizes) is used


@pytest.mark.parametrize('padding', ['VALID', ((0, 3), (2, 1))])
@pytest.mark.parametrize(('kernel_size', 'stride'), [(3, 1), (5, 1), (5, 2)])
@pytest.mark.parametrize('size', [12, 13])
def test_other_padding_means_what_it_means_in_lax(
  everywhere, padding, kernel_size, stride, size
):
  x, kernel, _ = convolution_test._arrays(2, size, size, 8, kernel_size, 1, filters=8)

  def gradients(conv):
    def output(x, kernel):
      numbers = ('NHWC', 'HWIO', 'NHWC')
      return conv(x, kernel, (stride,) * 2, padding, dimension_numbers=numbers)

    y, pullback = jax.vjp(output, x, kernel)
    return y, *pullback(y)

  actual = gradients(convolution.conv_general_dilated)
  assert len(everywhere) == 2
  desired = gradients(lax.conv_general_dilated)
  for ours, theirs in zip(actual, desired):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())
