"""The CPU's convolution and fused block against XLA, Flax and float64."""

import itertools

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from lamarck_jax.xla import convolution

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
# (images, height, width): even, odd and rectangular, smaller than the kernel and alone.
_SHAPES = [(3, 8, 8), (2, 7, 9), (1, 1, 2)]
_CASES = [
  (*shape, channels, kernel_size, stride)
  for shape, channels, kernel_size, stride in itertools.product(
    _SHAPES, (3, 17), (1, 3, 5), (1, 2)
  )
]


def _arrays(images, height, width, channels, kernel_size, stride, filters=6):
  rng = np.random.default_rng(0)
  size = -(-height // stride), -(-width // stride)
  x = rng.normal(size=(images, height, width, channels))
  kernel = rng.normal(size=(kernel_size, kernel_size, channels, filters))
  dy = rng.normal(size=(images, *size, filters))
  return tuple(array.astype(np.float32) for array in (x, kernel, dy))


def _float64_conv_and_gradients(x, kernel, dy, stride):
  """SAME convolution and its gradients with SciPy in float64, tap by tap."""
  x, kernel, dy = (array.astype(np.float64) for array in (x, kernel, dy))
  pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride,) * 2, 'SAME')
  padded = np.pad(x, ((0, 0), *pads, (0, 0)))
  y = np.zeros_like(dy)
  for n, c, f in np.ndindex(x.shape[0], x.shape[3], dy.shape[3]):
    full = signal.correlate(padded[n, :, :, c], kernel[:, :, c, f], mode='valid')
    y[n, :, :, f] += full[::stride, ::stride]
  dpadded, dkernel = np.zeros_like(padded), np.zeros_like(kernel)
  for i, j in np.ndindex(kernel.shape[:2]):
    rows = slice(i, i + (dy.shape[1] - 1) * stride + 1, stride)
    columns = slice(j, j + (dy.shape[2] - 1) * stride + 1, stride)
    dkernel[i, j] = np.einsum('nhwc,nhwf->cf', padded[:, rows, columns], dy)
    dpadded[:, rows, columns] += dy @ kernel[i, j].T
  (top, _), (left, _) = pads
  dx = dpadded[:, top : top + x.shape[1], left : left + x.shape[2]]
  return y, dx, dkernel


def _conv_and_gradients(conv, x, kernel, dy, stride):
  @jax.jit
  def run(x, kernel, dy):
    y, pullback = jax.vjp(
      lambda x, kernel: conv(
        x, kernel, (stride, stride), 'SAME', dimension_numbers=_DIMENSIONS
      ),
      x,
      kernel,
    )
    return y, *pullback(dy)

  return run(x, kernel, dy)


def _assert_close(actual, desired, tolerance=2e-6):
  """Compares relative to the largest value, as rounding errors of sums are."""
  for a, b in zip(actual, desired, strict=True):
    scale = max(float(np.max(np.abs(b))), 1e-3)
    np.testing.assert_allclose(
      np.asarray(a, np.float64) / scale,
      np.asarray(b, np.float64) / scale,
      rtol=0,
      atol=tolerance,
    )


@pytest.mark.parametrize('case', _CASES, ids=str)
def test_convolution_and_its_gradients_match_float64(case):
  x, kernel, dy = _arrays(*case)
  stride = case[-1]
  actual = _conv_and_gradients(convolution.conv_general_dilated, x, kernel, dy, stride)
  _assert_close(actual, _float64_conv_and_gradients(x, kernel, dy, stride))


@pytest.mark.parametrize('images', [1, 4, 7])
@pytest.mark.parametrize('channels, kernel_size, stride', [(3, 3, 1), (17, 3, 2)])
def test_chunks_that_do_not_divide_the_batch_change_nothing(
  monkeypatch, images, channels, kernel_size, stride
):
  case = (images, 6, 6, channels, kernel_size, stride)
  x, kernel, dy = _arrays(*case)
  # Room for two images' patches, so that there is a loop, and a rest if n is odd.
  monkeypatch.setattr(convolution, '_CHUNK_BYTES', 4 * 2 * 36 * 9 * 17)
  actual = _conv_and_gradients(convolution.conv_general_dilated, x, kernel, dy, stride)
  desired = _conv_and_gradients(lax.conv_general_dilated, x, kernel, dy, stride)
  _assert_close(actual, desired)


def test_flax_conv_takes_it_and_bfloat16_too():
  x = jnp.asarray(_arrays(2, 8, 8, 3, 3, 1)[0])
  for dtype in (jnp.float32, jnp.bfloat16):
    plain = nn.Conv(4, (3, 3), strides=2, dtype=dtype)
    fast = plain.clone(conv_general_dilated=convolution.conv_general_dilated)
    variables = plain.init(jax.random.key(0), x)
    actual, desired = (jax.jit(conv.apply)(variables, x) for conv in (fast, plain))
    assert actual.dtype == dtype
    np.testing.assert_allclose(
      np.asarray(actual, np.float32), np.asarray(desired, np.float32), atol=2e-6
    )


@pytest.mark.parametrize(
  'options',
  [
    {'rhs_dilation': (2, 2)},
    {'lhs_dilation': (2, 2), 'padding': ((1, 1), (1, 1))},
    {'feature_group_count': 2},
    {'padding': 'VALID'},
    {'padding': ((2, 0), (1, 3))},
  ],
  ids=str,
)
def test_other_options_mean_what_they_mean_in_lax(options):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 9, 9, 4)).astype(np.float32)
  groups = options.get('feature_group_count', 1)
  kernel = rng.normal(size=(3, 3, 4 // groups, 6)).astype(np.float32)
  options = {'padding': 'SAME', **options, 'dimension_numbers': _DIMENSIONS}
  actual = convolution.conv_general_dilated(x, kernel, (1, 1), **options)
  desired = lax.conv_general_dilated(x, kernel, (1, 1), **options)
  _assert_close([actual], [desired])


class _FlaxBlock(nn.Module):
  """The block as Flax's own modules make it."""

  filters: int
  kernel_size: int
  stride: int

  @nn.compact
  def __call__(self, x):
    z = nn.Conv(
      self.filters, (self.kernel_size,) * 2, strides=self.stride, name='conv'
    )(x)
    norm = nn.BatchNorm(use_running_average=False, momentum=0.0, name='norm')
    return nn.relu(norm(z))


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
def test_block_and_its_gradients_match_flax_with_plain_autodiff(case):
  x, kernel, dy = _arrays(*case)
  rng = np.random.default_rng(1)
  conv_bias, scale, bias, dmean, dvar = rng.normal(size=(5, 6)).astype(np.float32)
  stride = case[-1]
  module = _FlaxBlock(6, case[-2], stride)

  def fused(*args):
    return convolution.conv_batch_norm_relu(*args, (stride, stride))

  def plain(x, kernel, conv_bias, scale, bias):
    params = {
      'conv': {'kernel': kernel, 'bias': conv_bias},
      'norm': {'scale': scale, 'bias': bias},
    }
    stats = {'norm': {'mean': jnp.zeros(6), 'var': jnp.ones(6)}}
    variables = {'params': params, 'batch_stats': stats}
    y, updated = module.apply(variables, x, mutable=['batch_stats'])
    return (
      y,
      updated['batch_stats']['norm']['mean'],
      updated['batch_stats']['norm']['var'],
    )

  def run(block):
    @jax.jit
    def outputs_and_gradients(*args):
      outputs, pullback = jax.vjp(block, *args)
      return *outputs, *pullback((dy, dmean, dvar))

    return outputs_and_gradients(x, kernel, conv_bias, scale, bias)

  # Flax takes the variance as a difference of squares: the looser of the two.
  _assert_close(run(fused), run(plain), tolerance=3e-5)


def test_block_keeps_the_variance_where_the_mean_is_large():
  rng = np.random.default_rng(0)
  x = (1000 + rng.normal(size=(70, 8, 8, 3))).astype(np.float32)
  kernel = np.eye(3, dtype=np.float32)[None, None]
  ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
  _, mean, var = convolution.conv_batch_norm_relu(x, kernel, zeros, ones, zeros, (1, 1))
  np.testing.assert_allclose(mean, x.mean((0, 1, 2), np.float64), rtol=1e-6)
  np.testing.assert_allclose(var, x.var((0, 1, 2), np.float64), rtol=1e-4)


def test_conv_bias_has_exactly_no_gradient_through_the_block_output():
  x, kernel, dy = _arrays(3, 8, 8, 3, 3, 1)
  ones = np.ones(6, np.float32)

  def loss(conv_bias):
    y, _, _ = convolution.conv_batch_norm_relu(x, kernel, conv_bias, ones, ones, (1, 1))
    return jnp.sum(y * dy)

  np.testing.assert_array_equal(jax.grad(loss)(ones), 0)
