"""Process-wide settings of a search; apply before JAX initialises."""

from ml_collections import config_dict

from lamarck_jax import config as config_lib
from lamarck_jax.data import datasets
from lamarck_jax.runtime import allocator, compilation_cache, devices

_BYTES_PER_VALUE = 4  # float32


def configure(config: config_dict.ConfigDict, xla_cache_dir: str | None = None) -> None:
  """Sets memory, devices and the compilation cache of this process for a search.

  Programs call this once, before JAX initialises its devices. `search.run` does not
  call it, since a library must not change settings of its caller's process.

  Args:
    config: The configuration of the search.
    xla_cache_dir: Directory of compiled programs; see `compilation_cache.enable`.

  Raises:
    UserError: If the configuration is invalid.
  """
  config_lib.validate(config)
  image_size = config.dataset.image_size or datasets.IMAGE_SIZES.get(
    config.dataset.name
  )
  allocator.keep_freed_memory(_largest_activations(config, image_size))
  devices.configure_cpu_devices(config.batch_size, image_size)
  compilation_cache.enable(xla_cache_dir)


def _largest_activations(
  config: config_dict.ConfigDict, image_size: int | None
) -> int | None:
  """Returns the bytes of a batch's largest activations; None if the size is unknown."""
  if image_size is None:
    return None
  num_values = config.batch_size * image_size**2 * max(config.search_space.filters)
  return _BYTES_PER_VALUE * num_values
