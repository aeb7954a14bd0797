"""Shared by the tests of convolutions: cases, and convolution in float64."""

from jax import lax
import numpy as np
import pytest
from scipy import signal

from lamarck_jax.xla import sharding


@pytest.fixture
def gpu_forms(monkeypatch):
  """Computes on any platform in the forms for a GPU."""
  monkeypatch.setattr(
    sharding, 'by_platform', lambda *args, cpu, default: default(*args)
  )


@pytest.fixture(params=['cpu', 'gpu'])
def all_forms(request):
  """Computes once in the forms for a CPU, and once in those for a GPU."""
  if request.param == 'gpu':
    request.getfixturevalue('gpu_forms')


def make_arrays(images, height, width, channels, kernel_size, stride, filters=6):
  """Returns images, kernel and a gradient of the output, float32."""
  rng = np.random.default_rng(0)
  size = -(-height // stride), -(-width // stride)
  x = rng.normal(size=(images, height, width, channels))
  kernel = rng.normal(size=(kernel_size, kernel_size, channels, filters))
  dy = rng.normal(size=(images, *size, filters))
  return tuple(array.astype(np.float32) for array in (x, kernel, dy))


def float64_conv_and_gradients(x, kernel, dy, stride):
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


def assert_close(actual, desired, tolerance=2e-6):
  """Compares relative to the largest value, as rounding errors of sums are."""
  for a, b in zip(actual, desired, strict=True):
    scale = max(float(np.max(np.abs(b))), 1e-3)
    np.testing.assert_allclose(
      np.asarray(a, np.float64) / scale,
      np.asarray(b, np.float64) / scale,
      rtol=0,
      atol=tolerance,
    )
