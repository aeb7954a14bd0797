"""XLA's options for compiled programs, by platform; the one place that chooses them."""

from collections.abc import Sequence
import contextlib
import functools

import jax

Options = dict[str, str | bool]

# By default XLA's autotuner takes the GPU exclusively and times every candidate kernel
# on it while a network trains: 99 of 170 s of training in one search. Asked for
# deterministic operations, it takes the first kernel of cuDNN's heuristics that is, and
# the card only computes. It also takes from the choice of kernels what differs from run
# to run.
# Without Triton, matrix products need no timing either.
_GPU: Options = {
  'xla_gpu_exclude_nondeterministic_ops': True,
  'xla_gpu_enable_triton_gemm': False,
}

# Compiled faster. The older code generator (jax 0.10) takes 0.6 of the time for blocks,
# and steps are level (docs/performance.md).
_QUICK_CPU: Sequence[Options] = (
  {'xla_cpu_use_fusion_emitters': False},
  {'xla_backend_optimization_level': '2'},
)


@functools.cache
def options(platform: str) -> Options | None:
  """Returns the options of every program of a platform; None: XLA's defaults.

  Args:
    platform: JAX's name of the platform, such as `cpu` or `gpu`.
  """
  return _GPU if platform in ('cuda', 'gpu') else None


@functools.cache
def block_options(platform: str) -> Options | None:
  """Returns the options of the programs of a block; None: XLA's defaults."""
  return first_known(_QUICK_CPU) if platform == 'cpu' else options(platform)


def first_known(candidates: Sequence[Options]) -> Options | None:
  """Returns the first options that the CPU's XLA knows, or None."""
  for candidate in candidates:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # No such option.
      jax.jit(lambda: 0).lower().compile(candidate)
      return candidate
  return None
