"""The cores of a CPU as devices that share every batch."""

import functools
import os

import jax
from jax.sharding import AxisType, Mesh

# Name of the mesh's axis.
BATCH = 'batch'

# With fewer pixels of a batch each, devices, and threads that share an operation, wait
# for one another longer than they compute.
_MIN_PIXELS = 4096
# Sets the size of XLA's pool of threads, in each process.
_NUM_THREADS = 'PJRT_NPROC'


def available_cores() -> list[int]:
  """Returns the cores to which the operating system confines this process."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


@functools.cache
def num_cores() -> int:
  """Returns the number of cores to use: those available, or PJRT_NPROC if fewer."""
  count = len(available_cores())
  return min(count, int(os.environ.get(_NUM_THREADS, count)))


def use_cores(batch_size: int, image_size: int | None = None) -> None:
  """Makes a JAX device of each core that this process may use.

  Most products of a convolution are too small to be divided among threads; batches are
  not. Batches too small even for that are left to a single thread. This has to come
  before JAX looks at the machine, and holds for the whole process, so programs call it
  at their start and importing this package does not.

  Args:
    batch_size: Examples per batch.
    image_size: Height and width of the images, if they are known by now.
  """
  count = num_cores()
  if image_size is not None and _num_shares(batch_size, image_size**2, count) == 1:
    os.environ[_NUM_THREADS] = '1'
  elif count > 1:
    # A device that waits for another holds a thread of the pool, which by default has
    # one for each device: none is left for what they wait for.
    os.environ[_NUM_THREADS] = str(2 * count)
    jax.config.update('jax_num_cpu_devices', count)


def batch_mesh(batch_size: int, image_shape: tuple[int, ...]) -> Mesh:
  """Returns the devices that share a batch.

  These are as many of the CPU's as can have equal and sufficient shares, or one GPU or
  TPU: these are kept busy by several searches, not by one.

  Args:
    batch_size: Examples per batch.
    image_shape: (height, width, channels).
  """
  devices = jax.local_devices()
  count = 1
  if devices[0].platform == 'cpu':
    height, width, _ = image_shape
    count = _num_shares(batch_size, height * width, len(devices))
  return jax.make_mesh((count,), (BATCH,), (AxisType.Auto,), devices=devices[:count])


def _num_shares(batch_size: int, num_pixels: int, most: int) -> int:
  """Returns the largest number of equal and sufficient shares of a batch."""
  most = min(most, batch_size * num_pixels // _MIN_PIXELS)
  return max((n for n in range(1, most + 1) if batch_size % n == 0), default=1)
