"""Tests of `compilation_cache`, in programs of their own: it is process-wide."""

import subprocess
import sys

import pytest

_PROGRAM = """
import sys
import jax
from lamarck_jax.runtime import compilation_cache
compilation_cache.enable(sys.argv[1])
hits = []
jax.monitoring.register_event_listener(
  lambda event, **_: hits.append(event) if event.endswith('cache_hits') else None
)
jax.jit(lambda x: x * x + 1)(2.0).block_until_ready()
print(len(hits))
"""


def run(directory) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, '-c', _PROGRAM, str(directory)],
    capture_output=True,
    text=True,
    check=True,
  )


def test_a_second_process_reads_what_the_first_one_compiled(tmp_path):
  directory = tmp_path / 'new' / 'xla'
  assert int(run(directory).stdout) == 0
  assert int(run(directory).stdout) > 0
  assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize('name', ['', 'file/below'])
def test_programs_run_without_a_cache(tmp_path, name):
  (tmp_path / 'file').write_text('')
  result = run(tmp_path / name if name else '')
  assert int(result.stdout) == 0
  assert ('no compilation cache' in result.stderr) == bool(name)
