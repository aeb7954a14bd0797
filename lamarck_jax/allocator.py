"""Freed memory that stays with the process, for training on the CPU."""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
  """Makes the C library keep memory that is freed, instead of returning it.

  XLA allocates every large result anew. By default glibc takes it from the kernel
  and gives it back each time, and the kernel clears every page again: that takes
  several times as long as the arithmetic of an elementwise pass. The resident memory
  then stays at its peak. It holds for the whole process, so programs call it, at
  their start, and importing this package does not.

  Returns:
    Whether the C library is glibc and took the settings.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return False  # Another C library, or none that can be asked.
  settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
  return all(mallopt(*setting) for setting in settings)
