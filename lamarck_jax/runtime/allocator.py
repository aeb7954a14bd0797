"""Freed memory that stays with the process, for training on the CPU."""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8
# Larger ones do not fit twice into a heap of glibc's further arenas, 64 MiB.
_MAX_BLOCK_OF_ARENAS = 32 * 2**20


def keep_freed_memory(largest_block: int | None = None) -> bool:
  """Makes the C library keep memory that is freed, instead of returning it.

  XLA allocates every large result anew. By default glibc takes it from the kernel
  and gives it back each time, and the kernel clears every page again: that takes
  several times as long as the arithmetic of an elementwise pass over large arrays. The
  resident memory then stays at its peak until `release_freed_memory`. Large blocks are
  kept by glibc's main arena alone, so with such it is the only one; with others each
  thread has an arena, and does not wait for another's.

  It holds for the whole process, so programs call it, at their start, and importing
  this package does not.

  Args:
    largest_block: Bytes of the largest block, if it is known.

  Returns:
    Whether the C library is glibc and took the settings.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return False  # Another C library, or none that can be asked.
  settings = [(_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)]
  if largest_block is None or largest_block > _MAX_BLOCK_OF_ARENAS:
    settings.append((_M_ARENA_MAX, 1))
  return all(mallopt(*setting) for setting in settings)


def release_freed_memory() -> bool:
  """Gives freed memory back to the operating system, from the middle of arenas too.

  It takes some ten milliseconds for 500 MB, and the next training takes page faults to
  get back what it needs.

  Returns:
    Whether the C library is glibc and gave something back.
  """
  try:
    return bool(ctypes.CDLL(None).malloc_trim(0))
  except (AttributeError, OSError, TypeError):
    return False
