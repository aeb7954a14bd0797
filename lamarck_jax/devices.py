"""The cores of a CPU as devices that share every batch."""

import functools
import os

import jax
from jax.sharding import AxisType, Mesh

# Name of the mesh's axis.
BATCH = 'batch'

# With fewer examples each, devices wait for one another longer than they compute.
_MIN_EXAMPLES = 32
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


def use_every_core() -> None:
  """Makes a JAX device of each core that this process may use.

  Most products of a convolution are too small to be divided among threads; batches are
  not. This has to come before JAX looks at the machine, and holds for the whole
  process, so programs call it at their start and importing this package does not.
  """
  count = num_cores()
  if count > 1:
    # A device that waits for another holds a thread of the pool, which by default has
    # one for each device: none is left for what they wait for.
    os.environ[_NUM_THREADS] = str(2 * count)
    jax.config.update('jax_num_cpu_devices', count)


def batch_mesh(batch_size: int) -> Mesh:
  """Returns the devices that share a batch.

  These are as many of the CPU's as can have equal and sufficient shares, or one GPU or
  TPU: these are kept busy by several searches, not by one.

  Args:
    batch_size: Examples per batch.
  """
  devices = jax.local_devices()
  count = 1
  if devices[0].platform == 'cpu':
    most = min(len(devices), batch_size // _MIN_EXAMPLES)
    count = max((n for n in range(1, most + 1) if batch_size % n == 0), default=1)
  return jax.make_mesh((count,), (BATCH,), (AxisType.Auto,), devices=devices[:count])
