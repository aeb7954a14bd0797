"""Tests of `allocator`, in programs of their own: its settings are process-wide."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, mmap, resource, sys
from lamarck_jax.runtime import allocator
if sys.argv[1] == 'keep':
  assert allocator.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def faults():
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for round in range(4):
  start = faults()
  block = libc.malloc(ctypes.c_size_t(2**27))
  ctypes.memset(block, 1, 2**27)
  libc.free(block)
print(faults() - start)
"""


def page_faults(mode: str) -> int:
  """Returns the page faults of the fourth allocation of 128 MiB."""
  process = subprocess.run(
    [sys.executable, '-c', PROGRAM, mode], capture_output=True, text=True, check=True
  )
  return int(process.stdout)


glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='needs glibc')


@glibc_only
def test_freed_memory_is_reused_without_page_faults():
  assert page_faults('default') > 1000
  assert page_faults('keep') < 10


RELEASE = """
import ctypes, pathlib, resource
from lamarck_jax.runtime import allocator
allocator.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def resident_mb():
  pages = pathlib.Path('/proc/self/statm').read_text().split()[1]
  return int(pages) * resource.getpagesize() / 2**20
blocks = [libc.malloc(ctypes.c_size_t(2**16)) for _ in range(2000)]
for block in blocks:
  ctypes.memset(block, 1, 2**16)
for block in blocks[:-1]:  # The last one prevents trimming from the heap's end.
  libc.free(block)
full = resident_mb()
assert allocator.release_freed_memory()
print(full - resident_mb())
"""


@glibc_only
def test_freed_memory_is_released_from_between_blocks_in_use():
  released = subprocess.check_output([sys.executable, '-c', RELEASE], text=True)
  assert 110 < float(released) < 140  # Of 125 MiB.
