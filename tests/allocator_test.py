import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, mmap, resource, sys
from lamarck_jax import allocator
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
  """Page faults when a block of 128 MiB is allocated for the fourth time."""
  process = subprocess.run(
    [sys.executable, '-c', PROGRAM, mode], capture_output=True, text=True, check=True
  )
  return int(process.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the setting is glibc')
def test_memory_that_was_freed_is_used_again_without_page_faults():
  assert page_faults('default') > 1000
  assert page_faults('keep') < 10
