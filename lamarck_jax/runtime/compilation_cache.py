"""JAX's persistent compilation cache, shared by all searches of a user."""

import os
import pathlib

from absl import logging
import jax

_MAX_BYTES = 4 * 2**30


def default_directory() -> str:
  """Returns the user's cache directory, `~/.cache/lamarck_jax/xla` by default."""
  cache_home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return os.path.join(cache_home, 'lamarck_jax', 'xla')


def enable(directory: str | None = None) -> None:
  """Makes JAX keep compiled programs in a directory.

  The cache is bounded in size and evicts the least recently used programs. If the
  directory cannot be used, a warning is logged and programs are compiled every time.

  Args:
    directory: The directory, created if missing; None for `default_directory()`, empty
      for no cache.
  """
  if directory is None:
    directory = default_directory()
  if not directory:
    jax.config.update('jax_enable_compilation_cache', False)
    return
  try:
    # Readable and writable by the owner alone: programs read from it are executed.
    pathlib.Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
  except OSError as error:
    logging.warning('no compilation cache: %s: %s', directory, error.strerror)
    return
  jax.config.update('jax_compilation_cache_dir', directory)
  jax.config.update('jax_compilation_cache_max_size', _MAX_BYTES)
  # JAX's default omits programs that compile within a second; many of ours do.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
