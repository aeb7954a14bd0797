"""Process-wide settings of a search; apply before JAX initialises."""

import contextlib
import gc
import os
import subprocess
import sys
import threading

from absl import logging
import jax
from ml_collections import config_dict

from lamarck_jax import config as config_lib
from lamarck_jax.data import datasets
from lamarck_jax.errors import UserError
from lamarck_jax.runtime import allocator, compilation_cache, devices

_BYTES_PER_VALUE = 4  # float32

# JAX's options that change programs, and that have no context, so that
# `jax_settings` cannot set them for a search alone; and their defaults.
_PROGRAM_OPTIONS = {
  'jax_disable_most_optimizations': False,
  'jax_exec_time_optimization_effort': 0.0,
  'jax_memory_fitting_effort': 0.0,
  'jax_memory_fitting_level': 'O2',
  'jax_optimization_level': 'UNKNOWN',
  'jax_use_shardy_partitioner': True,
}

# XLA reads XLA_FLAGS here, and ends the process where it does not know one of them.
_READ_XLA_FLAGS = 'from jaxlib import xla_client; xla_client.CompileOptions()'


def configure(config: config_dict.ConfigDict, xla_cache_dir: str | None = None) -> None:
  """Sets memory, devices and the compilation cache of this process for a search.

  Programs call this once, before JAX initialises its devices, which it does at the
  end; on a GPU, which takes a while, in a thread. `search.run` does not call it, since
  a library must not change settings of its caller's process; those that are a matter of
  one thread it sets (`jax_settings`).

  Args:
    config: The configuration of the search.
    xla_cache_dir: Directory of compiled programs; see `compilation_cache.enable`.

  Raises:
    UserError: If the configuration is invalid, or the environment asks for what JAX or
      XLA cannot do.
  """
  config_lib.validate(config)
  _check_xla_flags()
  for option, value in _PROGRAM_OPTIONS.items():
    if option.upper() in os.environ:
      jax.config.update(option, value)
  if not gc.get_freeze_count():
    # What was imported stays; full collections need not look through it each time.
    gc.freeze()
  allocator.keep_freed_memory(largest_activations(config))
  is_population = config.algorithm == 'population'
  devices.configure_cpu_devices(
    config.batch_size,
    _image_size(config),
    config.population.cores_per_child if is_population else None,
  )
  compilation_cache.enable(xla_cache_dir)
  if devices.available_gpus():
    # The data can be read meanwhile; `search.run` waits for it.
    threading.Thread(target=_start_jax, name='start JAX').start()
  else:
    devices.check_platform()


def _check_xla_flags() -> None:
  """Warns of XLA_FLAGS, which is an expert's wish; raises UserError if XLA refuses."""
  xla_flags = os.environ.get('XLA_FLAGS', '').strip()
  if not xla_flags:
    return
  probe = subprocess.run(
    [sys.executable, '-c', _READ_XLA_FLAGS], capture_output=True, text=True
  )
  if probe.returncode:
    _, _, reason = probe.stderr.partition('] ')
    raise UserError(
      f'XLA_FLAGS: got {xla_flags!r}, want flags that XLA knows: {reason.strip()[:200]}'
    )
  logging.warning(
    'XLA_FLAGS is set (%s): results may differ from those without it', xla_flags
  )


def largest_activations(config: config_dict.ConfigDict) -> int | None:
  """Returns the bytes of a batch's largest activations; None if the size is unknown.

  They are those of a block with most filters on images of the full size, in float32.
  """
  size = _image_size(config)
  if size is None:
    return None
  num_values = config.batch_size * size**2 * max(config.search_space.filters)
  return _BYTES_PER_VALUE * num_values


def _image_size(config: config_dict.ConfigDict) -> int | None:
  """Returns the pixels per side, or None if only the data tell."""
  return config.dataset.image_size or datasets.IMAGE_SIZES.get(config.dataset.name)


def _start_jax() -> None:
  with contextlib.suppress(UserError):  # It reaches the main thread as well.
    devices.check_platform()
