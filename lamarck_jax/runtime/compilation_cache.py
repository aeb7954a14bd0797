"""Compiled programs on disk, so that a second search compiles almost nothing."""

import os
import pathlib

from absl import logging
import jax

_MAX_BYTES = 4 * 2**30


def default_directory() -> str:
  """Returns the cache folder of the user, `~/.cache/lamarck_jax/xla` by default."""
  cache_home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return os.path.join(cache_home, 'lamarck_jax', 'xla')


def enable(directory: str | None = None) -> None:
  """Makes JAX keep compiled programs in a folder.

  A new folder is for its owner alone, since programs read from it are run. It is
  bounded in size; the programs used least recently go first. A folder that cannot
  be used costs only time.

  Args:
    directory: The folder; made if it is not there. None: the user's cache folder.
      Empty: no cache.
  """
  if directory is None:
    directory = default_directory()
  if not directory:
    jax.config.update('jax_enable_compilation_cache', False)
    return
  try:
    pathlib.Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
  except OSError as error:
    logging.warning('no compilation cache: %s: %s', directory, error.strerror)
    return
  jax.config.update('jax_compilation_cache_dir', directory)
  jax.config.update('jax_compilation_cache_max_size', _MAX_BYTES)
  # By default programs that compile in less than a second are not kept.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
