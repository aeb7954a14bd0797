"""Process-wide settings of a search; apply before JAX initialises."""

import contextlib
import gc
import threading

import jax
from ml_collections import config_dict

from lamarck_jax import config as config_lib
from lamarck_jax.data import datasets
from lamarck_jax.runtime import allocator, compilation_cache, devices

_BYTES_PER_VALUE = 4  # float32


def configure(config: config_dict.ConfigDict, xla_cache_dir: str | None = None) -> None:
  """Sets memory, devices and the compilation cache of this process for a search.

  On a GPU it also begins to start JAX, in a thread.

  Programs call this once, before JAX initialises its devices. `search.run` does not
  call it, since a library must not change settings of its caller's process.

  Args:
    config: The configuration of the search.
    xla_cache_dir: Directory of compiled programs; see `compilation_cache.enable`.

  Raises:
    UserError: If the configuration is invalid.
  """
  config_lib.validate(config)
  if not gc.get_freeze_count():
    # What was imported stays; full collections need not look through it each time.
    gc.freeze()
  allocator.keep_freed_memory(largest_activations(config))
  devices.configure_cpu_devices(config.batch_size, _image_size(config))
  compilation_cache.enable(xla_cache_dir)
  if devices.available_gpus():
    # CUDA takes a while to start, in which the data can be read.
    threading.Thread(target=_start_jax, name='start JAX').start()


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
  with contextlib.suppress(RuntimeError):  # It will reach the main thread as well.
    jax.devices()
