"""What a process is set to before it searches, and before JAX looks at the machine."""

from ml_collections import config_dict

from lamarck_jax import config as config_lib
from lamarck_jax.data import datasets
from lamarck_jax.runtime import allocator, compilation_cache, devices


def prepare(config: config_dict.ConfigDict, xla_cache_dir: str | None) -> None:
  """Sets memory, devices and the folder of compiled programs for a search.

  These hold for the whole process, so programs call this, and `search.run` does not.

  Args:
    config: The configuration.
    xla_cache_dir: Folder of compiled programs, as `compilation_cache.enable` has it.

  Raises:
    UserError: If the configuration is impossible.
  """
  config_lib.validate(config)
  image_size = config.dataset.image_size or datasets.IMAGE_SIZES.get(
    config.dataset.name
  )
  allocator.keep_freed_memory(_largest_block(config, image_size))
  devices.use_cores(config.batch_size, image_size)
  compilation_cache.enable(xla_cache_dir)


def _largest_block(
  config: config_dict.ConfigDict, image_size: int | None
) -> int | None:
  """Returns the bytes of the largest activations, or None if the size is not known."""
  if image_size is None:
    return None
  return 4 * config.batch_size * image_size**2 * max(config.search_space.filters)
