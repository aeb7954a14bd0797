"""Tests of `standard_streams`, in programs of their own."""

import os
import subprocess
import sys

import pytest

_PRINTS = """
import os, pathlib, sys
from lamarck_jax.runtime import standard_streams
standard_streams.protect()
for _ in range(3):
  print('x' * 100_000, flush=True)
  print('error', file=sys.stderr)
print('left in the buffer \\udcff \\u4e2d')
pathlib.Path(sys.argv[1]).write_text('done')
"""


def run(shell: str, program: str, *arguments: object, **environment: str) -> int:
  """Returns the exit status of a program; `shell` redirects its streams."""
  command = ['bash', '-c', f'"$@" {shell}; exit ${{PIPESTATUS[0]}}', 'bash']
  command += [sys.executable, '-c', program, *map(str, arguments)]
  return subprocess.run(
    command,
    env={**os.environ, **environment},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    timeout=60,
  ).returncode


@pytest.mark.parametrize(
  'redirection',
  [
    *('>&-', '2>&-', '<&- >&- 2>&-', '>/dev/full 2>/dev/full'),
    *('| true', '2>&1 | head -c 1'),
  ],
)
def test_a_stream_that_cannot_be_written_ends_no_program(tmp_path, redirection):
  done = tmp_path / 'done'
  assert run(redirection, _PRINTS, done) == 0
  assert done.read_text() == 'done'


def test_characters_that_the_terminal_lacks_end_no_program(tmp_path):
  done = tmp_path / 'done'
  assert run('', _PRINTS, done, PYTHONIOENCODING='ascii') == 0
  assert done.read_text() == 'done'


def test_what_native_libraries_print_goes_into_no_file_of_the_program(tmp_path):
  """A file that is opened while descriptor 2 is closed would get its number."""
  program = """
import os, sys
from lamarck_jax.runtime import standard_streams
standard_streams.protect()
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(2, b'printed by a native library')
os.write(file, b'events')
"""
  assert run('2>&-', program, tmp_path / 'events') == 0
  assert (tmp_path / 'events').read_text() == 'events'


def test_the_processes_that_a_program_starts_have_their_streams(tmp_path):
  program = """
import subprocess, sys
from lamarck_jax.runtime import standard_streams
standard_streams.protect()
child = 'import os, sys; assert sys.stdout and sys.stderr; os.write(2, b"x")'
subprocess.run([sys.executable, '-c', child], check=True)
"""
  assert run('<&- >&- 2>&-', program) == 0


def test_what_can_be_written_is_written():
  program = """
import sys
from lamarck_jax.runtime import standard_streams
standard_streams.protect()
print('result', sys.stdout.fileno())
print('progress', sys.stderr.fileno(), file=sys.stderr)
"""
  result = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, timeout=60
  )
  assert (result.stdout, result.stderr) == ('result 1\n', 'progress 2\n')
