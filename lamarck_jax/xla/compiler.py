"""XLA's options for the programs of a block."""

from collections.abc import Sequence
import contextlib
import functools

import jax

Options = dict[str, str | bool]


@functools.cache
def quick_options(platform: str) -> Options | None:
  """Returns options with which XLA compiles faster; None where there are none.

  On the CPU the older emitters take 0.6 of the time to compile, and steps are level
  (docs/performance.md).

  Args:
    platform: JAX's name of the platform; all but `cpu` have none.
  """
  if platform != 'cpu':
    return None
  candidates: list[Options] = [
    {'xla_cpu_use_fusion_emitters': False},  # The older code generator: jax 0.10.
    {'xla_backend_optimization_level': '2'},
  ]
  return first_known(candidates)


def first_known(candidates: Sequence[Options]) -> Options | None:
  """Returns the first options that this XLA knows, or None."""
  for options in candidates:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # No such option.
      jax.jit(lambda: 0).lower().compile(options)
      return options
  return None
