"""The CPU's convolution against float64, and the plain form against it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamarck_jax.xla import convolution
from lamarck_jax.xla.im2col import Geometry
from tests.xla.conftest import assert_close, float64_conv_and_gradients, make_arrays

# (images, height, width): even, odd and rectangular, smaller than the kernel and alone.
_SHAPES = [(3, 8, 8), (2, 7, 9), (1, 1, 2)]
_CASES = [
  (*shape, channels, kernel_size, stride)
  for shape, channels, kernel_size, stride in itertools.product(
    _SHAPES, (3, 17), (1, 3, 5), (1, 2)
  )
]


def conv_and_gradients(geometry, x, kernel, dy):
  @jax.jit
  def run(x, kernel, dy):
    y, mean, var = convolution.with_moments(geometry, x, kernel)
    return (y, *convolution.gradients(geometry, x, kernel, dy)), (mean, var)

  return run(x, kernel, dy)


@pytest.mark.parametrize('case', _CASES, ids=str)
def test_convolution_its_moments_and_its_gradients_match_float64(case):
  x, kernel, dy = make_arrays(*case)
  geometry = Geometry.same(x, kernel, case[-1])
  actual, moments = conv_and_gradients(geometry, x, kernel, dy)
  desired = float64_conv_and_gradients(x, kernel, dy, case[-1])
  assert_close(actual, desired)
  y = desired[0]
  assert_close(moments, (y.mean((0, 1, 2)), y.var((0, 1, 2))), tolerance=5e-6)


@pytest.mark.parametrize('images', [4, 9])
@pytest.mark.parametrize('channels, kernel_size, stride', [(3, 5, 1), (17, 3, 2)])
def test_chunks_that_do_not_divide_the_batch_change_nothing(
  images, channels, kernel_size, stride
):
  # Two or four images' columns fill a chunk.
  x, kernel, dy = make_arrays(images, 64, 60, channels, kernel_size, stride)
  actual, _ = conv_and_gradients(Geometry.same(x, kernel, stride), x, kernel, dy)
  desired = float64_conv_and_gradients(x, kernel, dy, stride)
  assert_close(actual, desired, tolerance=5e-6)


@pytest.mark.parametrize('pads', [((0, 0), (0, 0)), ((2, 0), (1, 3))])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.usefixtures('all_forms')
def test_other_padding_means_what_it_means_in_lax(pads, stride):
  x, kernel, _ = make_arrays(2, 9, 9, 4, 3, 1)
  geometry = Geometry((stride, stride), pads)

  @jax.jit
  def plain(x, kernel):
    def conv(x, kernel):
      return jax.lax.conv_general_dilated(
        x, kernel, *geometry, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )

    y, pullback = jax.vjp(conv, x, kernel)
    return y, *pullback(y)

  desired = plain(x, kernel)
  actual, _ = conv_and_gradients(geometry, x, kernel, desired[0])
  assert_close(actual, desired, tolerance=5e-6)


def test_bfloat16_stays_bfloat16_with_float32_moments():
  x, kernel, dy = (
    jnp.asarray(array, jnp.bfloat16) for array in make_arrays(2, 8, 8, 3, 3, 1)
  )
  geometry = Geometry.same(x, kernel, 1)
  (y, dx, dkernel), moments = conv_and_gradients(geometry, x, kernel, dy)
  assert {array.dtype for array in (y, dx, dkernel)} == {jnp.dtype('bfloat16')}
  assert {array.dtype for array in moments} == {np.dtype('float32')}
