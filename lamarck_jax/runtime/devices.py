"""The cores and GPUs of a machine, and the cores as JAX devices that share a batch."""

from collections.abc import Sequence
import contextlib
import functools
import importlib.util
import itertools
import os
import re
import shutil
import subprocess

from absl import logging
import jax

from lamarck_jax.errors import UserError
from lamarck_jax.xla import sharding

# The environment variable that sets the size of XLA's thread pool.
_NUM_THREADS = 'PJRT_NPROC'
_CUDA_PLUGINS = ('jax_cuda12_plugin', 'jax_cuda13_plugin')
_GPU = re.compile(r'\d+|(GPU|MIG)-.+')  # In CUDA_VISIBLE_DEVICES.


def available_cores() -> list[int]:
  """Returns the cores to which the operating system confines this process."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def available_gpus() -> list[str]:
  """Returns the identifiers of the GPUs that JAX would use, without starting JAX."""
  if _first_platform() not in ('', 'cuda', 'gpu'):
    return []
  if not any(map(importlib.util.find_spec, _CUDA_PLUGINS)):
    return []
  if 'CUDA_VISIBLE_DEVICES' in os.environ:
    # CUDA takes those before the first that is none.
    listed = map(str.strip, os.environ['CUDA_VISIBLE_DEVICES'].split(','))
    return list(itertools.takewhile(_GPU.fullmatch, listed))
  if not shutil.which('nvidia-smi'):
    return []
  listing = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True)
  # Lines of partitions of a GPU are indented below its own.
  found = [line for line in listing.stdout.splitlines() if line.startswith('GPU ')]
  return [] if listing.returncode else [str(index) for index in range(len(found))]


def _first_platform() -> str:
  """Returns the platform that JAX is told to use, empty if it chooses."""
  if name := os.environ.get('JAX_PLATFORM_NAME'):
    return name.lower()
  platforms: str | None = jax.config.jax_platforms  # type: ignore[attr-defined]
  return (platforms or '').split(',')[0]


def gpu_memory(gpus: Sequence[str]) -> int | None:
  """Returns the bytes of memory of the smallest of some GPUs; None if unknown.

  Args:
    gpus: Their identifiers, of `available_gpus`.
  """
  if not gpus or not shutil.which('nvidia-smi'):
    return None
  query = ['nvidia-smi', f'--id={",".join(gpus)}', '--query-gpu=memory.total']
  query.append('--format=csv,noheader,nounits')
  listing = subprocess.run(query, capture_output=True, text=True)
  sizes = [line.strip() for line in listing.stdout.splitlines()]
  if listing.returncode or not sizes or not all(map(str.isdecimal, sizes)):
    return None
  return min(map(int, sizes)) * 2**20


# Cached because `configure_cpu_devices` may lower PJRT_NPROC, which limits XLA's
# threads alone.
@functools.cache
def num_cores() -> int:
  """Returns the number of cores to use: those available, or PJRT_NPROC if fewer.

  Raises:
    UserError: If PJRT_NPROC is no number of threads.
  """
  count = len(available_cores())
  limit = os.environ.get(_NUM_THREADS) or str(count)
  if not limit.isdecimal() or int(limit) < 1:
    raise UserError(f'{_NUM_THREADS}: got {limit!r}, want an integer of at least 1')
  return min(count, int(limit))


def configure_cpu_devices(
  batch_size: int, image_size: int | None = None, num_devices: int | None = None
) -> None:
  """Sets the number of JAX's CPU devices and of XLA's threads.

  Each core becomes a device that takes a part of every batch: most matrix products of
  a convolution are too small to be divided among threads, batches are not. If batches
  are too small even for that, one device with one thread is fastest.

  The setting is process-wide; programs apply it before JAX initialises. Afterwards
  JAX keeps the devices that it has. Limited to one core, a CPU's programs run in the
  thread that calls them.

  Args:
    batch_size: Examples per batch.
    image_size: Height and width of the images in pixels; None if not known yet.
    num_devices: Number of devices and of threads, whatever the cores, on which results
      must not depend; None: one per core. It is not used where there is a GPU.
  """
  count = num_cores()
  small = image_size is not None and sharding.max_shards(batch_size, image_size**2) == 1
  if not available_gpus():
    count = 1 if small else num_devices or count
  os.environ[_NUM_THREADS] = str(count)
  if num_cores() == count == 1:
    # Another thread would compute while this one waits, for the same core if each has
    # one. (JAX does not read the option's environment variable.)
    with contextlib.suppress(AttributeError):  # A later JAX may lack the option.
      jax.config.update('jax_cpu_enable_async_dispatch', False)
  try:
    # Even if it is one: XLA_FLAGS or JAX_NUM_CPU_DEVICES may ask for more.
    jax.config.update('jax_num_cpu_devices', count)
  except RuntimeError:
    logging.info('JAX has initialised its devices already and keeps them')


def check_platform() -> None:
  """Initialises JAX's devices.

  Raises:
    UserError: If the platform that the environment asks for cannot be had, or JAX uses
      the CPU where there is a GPU for it; the machine would be divided wrongly.
  """
  try:
    platform = jax.local_devices()[0].platform
  # JAX asserts where it knows the platform and lacks its plugin.
  except (AssertionError, RuntimeError) as error:
    names = ('JAX_PLATFORMS', 'JAX_PLATFORM_NAME')
    asked = [f'{name}={os.environ[name]}' for name in names if os.environ.get(name)]
    raise UserError(
      f'JAX: got {" ".join(asked) or "no platform"}, want one that it finds here, such'
      f' as JAX_PLATFORMS=cpu{f": {error}" if str(error) else ""}'
    ) from error
  if platform == 'cpu' and (gpus := available_gpus()):
    raise UserError(
      f'JAX: got the CPU, want the GPU {gpus[0]}, which JAX did not start;'
      ' JAX_PLATFORMS=cpu uses the CPU'
    )
