"""Tests of `lock`."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from lamarck_jax.errors import UserError
from lamarck_jax.run_directory import lock


def test_a_second_process_is_refused_with_the_first_ones_host_and_number(tmp_path):
  with (
    lock.locked(tmp_path),
    pytest.raises(UserError, match=rf'process {os.getpid()} on {socket.gethostname()}'),
    lock.locked(tmp_path),
  ):
    pass
  with lock.locked(tmp_path):  # Free again.
    pass
  assert not list(tmp_path.iterdir())


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path):
  program = (
    'import os, signal, sys\n'
    'from lamarck_jax.run_directory import lock\n'
    'with lock.locked(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)'
  )
  process = subprocess.run(
    [sys.executable, '-c', program, str(tmp_path)],
    cwd=pathlib.Path(__file__).parents[2],
  )
  assert process.returncode == -signal.SIGKILL
  assert list(tmp_path.iterdir())
  with lock.locked(tmp_path):
    pass


def test_the_lock_of_another_host_stays_until_it_is_known_to_be_dead(tmp_path):
  (tmp_path / '.lock').write_text('1234\nelsewhere\n')
  with (
    pytest.raises(UserError, match='process 1234 on elsewhere'),
    lock.locked(tmp_path),
  ):
    pass
  lock.break_lock(tmp_path)
  with lock.locked(tmp_path):
    pass
