"""The cores and GPUs of a machine; cores as JAX devices that share every batch."""

import functools
import importlib.util
import os
import shutil
import subprocess

from absl import logging
import jax

from lamarck_jax.xla import sharding

# Sets the size of XLA's pool of threads, in each process.
_NUM_THREADS = 'PJRT_NPROC'
_CUDA_PLUGINS = ('jax_cuda12_plugin', 'jax_cuda13_plugin')


def available_cores() -> list[int]:
  """Returns the cores to which the operating system confines this process."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def available_gpus() -> list[str]:
  """Returns the identifiers of the GPUs that JAX would use."""
  platforms = os.environ.get('JAX_PLATFORMS')
  if platforms and not {'cuda', 'gpu'} & set(platforms.split(',')):
    return []
  if not any(map(importlib.util.find_spec, _CUDA_PLUGINS)):
    return []
  if 'CUDA_VISIBLE_DEVICES' in os.environ:
    return [gpu for gpu in os.environ['CUDA_VISIBLE_DEVICES'].split(',') if gpu]
  if not shutil.which('nvidia-smi'):
    return []
  listing = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True)
  return [str(index) for index, _ in enumerate(listing.stdout.splitlines())]


@functools.cache
def num_cores() -> int:
  """Returns the number of cores to use: those available, or PJRT_NPROC if fewer."""
  count = len(available_cores())
  return min(count, int(os.environ.get(_NUM_THREADS, count)))


def use_cores(batch_size: int, image_size: int | None = None) -> None:
  """Sets how many JAX devices and threads the cores of this process make.

  Most products of a convolution are too small to be divided among threads; batches are
  not. So each core is a device, unless batches are too small even for that: then there
  is one device, and one thread. This has to come before JAX looks at the machine, and
  holds for the whole process, so programs call it at their start and importing this
  package does not.

  Args:
    batch_size: Examples per batch.
    image_size: Height and width of the images, if they are known by now.
  """
  count = num_cores()
  small = image_size is not None and sharding.max_shards(batch_size, image_size**2) == 1
  if small and not available_gpus():
    os.environ[_NUM_THREADS] = '1'
  elif count > 1:
    os.environ[_NUM_THREADS] = str(count)
    try:
      jax.config.update('jax_num_cpu_devices', count)
    except RuntimeError:
      logging.info('JAX has its devices already: batches are shared by these')
