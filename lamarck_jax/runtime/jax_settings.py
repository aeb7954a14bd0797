"""The JAX settings with which a search computes, whatever its process has set.

JAX takes its settings from environment variables, from the process and from contexts.
Some change numbers (`jax_enable_x64`), some keys (`jax_threefry_partitionable`), and
some make correct programs fail (`jax_transfer_guard`). A search has the values below,
which are JAX's defaults. They hold for the thread that enters them alone, so the
settings of the caller's process stay as they are.
"""

from collections.abc import Iterator
import contextlib
from typing import Any

import jax

# Name of a context in `jax` -> value.
SETTINGS: dict[str, Any] = {
  # Numbers.
  'enable_x64': False,
  'numpy_dtype_promotion': 'standard',
  'numpy_rank_promotion': 'allow',
  'default_matmul_precision': None,
  'allow_f16_reductions': True,
  'softmax_custom_jvp': False,
  # Random keys.
  'default_prng_impl': 'threefry2x32',
  'threefry_partitionable': True,
  'enable_custom_prng': False,
  'legacy_prng_key': 'allow',
  'debug_key_reuse': False,
  # What stops or slows programs, for debugging. A loss that is not finite is a
  # candidate's failure, not an error.
  'disable_jit': False,
  'no_tracing': False,
  'no_execution': False,
  'debug_nans': False,
  'debug_infs': False,
  'enable_checks': False,
  'check_tracer_leaks': False,
  'array_garbage_collection_guard': None,
  'thread_guard': False,
  'transfer_guard': 'allow',
}


@contextlib.contextmanager
def applied() -> Iterator[None]:
  """Applies the settings to this thread, inside a `with` or a decorated function."""
  with contextlib.ExitStack() as stack:
    for name, value in SETTINGS.items():
      stack.enter_context(getattr(jax, name)(value))
    yield
