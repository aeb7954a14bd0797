"""Settings of glibc's allocator, for training on the CPU."""

from collections.abc import Callable
import ctypes

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8
# A heap of an arena other than the main one has 64 MiB; larger blocks than this do not
# fit into it twice.
_MAX_BLOCK_OF_ARENAS = 32 * 2**20


def keep_freed_memory(largest_block: int | None = None) -> bool:
  """Makes glibc keep freed memory for reuse instead of returning it to the kernel.

  XLA allocates every large result anew. By default glibc maps such a block and unmaps
  it when freed, and the kernel clears its pages each time, which takes several times
  as long as an elementwise operation on it. With this setting the resident memory stays
  at its peak until `release_freed_memory`.

  The setting is process-wide; programs apply it at their start.

  Args:
    largest_block: Bytes of the largest block that will be allocated, if known.

  Returns:
    Whether the settings were applied; False if the C library is not glibc.
  """
  mallopt = _libc_function('mallopt')
  if mallopt is None:
    return False
  settings = [(_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)]
  if largest_block is None or largest_block > _MAX_BLOCK_OF_ARENAS:
    # Only the main arena reuses blocks of this size. Otherwise each thread keeps its
    # own arena, so that threads do not wait for one another's lock.
    settings.append((_M_ARENA_MAX, 1))
  return all(mallopt(*setting) for setting in settings)


def release_freed_memory() -> bool:
  """Returns freed memory to the operating system, also from the middle of arenas.

  It takes about ten milliseconds for 500 MB; the next training pays page faults for
  the memory it needs again.

  Returns:
    Whether memory was released; False if the C library is not glibc.
  """
  malloc_trim = _libc_function('malloc_trim')
  return malloc_trim is not None and bool(malloc_trim(0))


def _libc_function(name: str) -> Callable[..., int] | None:
  try:
    return getattr(ctypes.CDLL(None), name)
  except (AttributeError, OSError, TypeError):
    return None  # Another C library, or one that cannot be loaded by name.
