"""How many searches share a GPU, and what each of them gets of its memory.

Searches of small networks leave most of a GPU idle: the host starts their programs
more slowly than the GPU runs them. So several of them run on one GPU at a time, each in
a process of its own.
"""

import math
import os

from lamarck_jax.errors import UserError

# A step of a search whose largest activations have this size keeps a GPU as busy as the
# host: the model of `docs/performance.md` gives 2 ms for a typical network of five
# blocks, with activations of half this size, on an H200; starting its programs takes 1
# to 3 ms.
_FILLING_BYTES = 256 * 2**20

# What a search needs of a GPU's memory: CUDA with its libraries and the data set, and
# in multiples of the largest activations what the gradient of a deep network needs.
_FIXED_BYTES = 2 * 2**30
_ACTIVATIONS = 32

# One to train and one to compile.
_CORES = 2

# XLA preallocates this share of a GPU's memory by default, or what one of these
# environment variables says. The second is the older one.
_PREALLOCATED = 0.75
_FRACTIONS = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')


def searches_per_gpu(
  activation_bytes: int | None, gpu_bytes: int | None, cores: int
) -> int:
  """Returns how many searches share a GPU by default.

  As many as fill it, but no more than have room in its memory and than have cores;
  at least one, and one if it is not known what they need.

  Args:
    activation_bytes: Size of a search's largest activations in bytes, or None.
    gpu_bytes: The GPU's memory in bytes, or None.
    cores: Number of cores for each GPU.
  """
  if activation_bytes is None or gpu_bytes is None:
    return 1
  filling = _FILLING_BYTES // activation_bytes
  room = gpu_bytes // (_FIXED_BYTES + _ACTIVATIONS * activation_bytes)
  return max(1, min(filling, room, cores // _CORES))


def take_as_needed() -> None:
  """Makes JAX in this process and its children take a GPU's memory as they need it.

  By default it takes three quarters at once, also in a process that leaves the GPU to
  its workers for most of the time.
  """
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')


def memory_share(num_searches: float) -> dict[str, str]:
  """Returns environment variables that give a search its share of a GPU's memory.

  What is shared is what the environment lets one process take.

  Args:
    num_searches: Number of searches that share the GPU.

  Raises:
    UserError: If the environment's share is no number above 0.
  """
  name = next(filter(os.environ.get, _FRACTIONS), None)
  total = os.environ[name] if name else str(_PREALLOCATED)
  try:
    share = float(total) / num_searches
  except ValueError:
    share = math.nan
  if not 0 < share < math.inf:
    raise UserError(f'{name}: got {total!r}, want a number above 0')
  # JAX takes one of the two alone.
  return {**dict.fromkeys(_FRACTIONS, ''), _FRACTIONS[-1]: f'{share:.3g}'}
