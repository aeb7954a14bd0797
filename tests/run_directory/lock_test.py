"""Tests of `lock`: who may write to a run directory, and what becomes of others.

Writers are real processes, see `conftest.Writers`.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import re
import signal
import socket
import threading
import time

import pytest

from lamarck_jax.errors import UserError
from lamarck_jax.run_directory import lock, records
from tests.run_directory.conftest import (
  EVENTS,
  Writer,
  contents,
  record_all,
)

FAR = 'elsewhere another-boot 2026-01-01T00:00:00+00:00 0123456789abcdef'


def _refusal(path: pathlib.Path) -> str:
  """Returns the one line with which a directory is refused."""
  with pytest.raises(UserError) as error, lock.locked(path):
    pass
  assert '\n' not in str(error.value)
  assert str(path) in str(error.value)
  return str(error.value)


def _assert_free(path: pathlib.Path) -> None:
  """Checks that a directory can be locked at once, and leaves nothing behind."""
  with lock.locked(path):
    pass
  assert not (path / '.lock').exists()


# ------------------------------------------------------------------------------
# Who holds the lock
# ------------------------------------------------------------------------------


def test_a_second_process_is_refused_with_the_first_ones_host_and_number(tmp_path):
  with lock.locked(tmp_path):
    message = _refusal(tmp_path)
    assert f'process {os.getpid()} on {socket.gethostname()}' in message
  _assert_free(tmp_path)
  assert not list(tmp_path.iterdir())


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path, writers):
  writer = writers.start(tmp_path, stop_after=1)
  assert writer.wait_until_stopped()
  assert 'in use by process' in _refusal(tmp_path)
  writer.send(signal.SIGKILL)
  writer.join()
  assert (tmp_path / '.lock').exists()
  _assert_free(tmp_path)


@pytest.mark.parametrize('content', ['', '12', '0\0\0', 'what is this?\n', f'1\n{FAR}'])
def test_an_empty_or_torn_lock_that_nobody_holds_is_taken_over(tmp_path, content):
  (tmp_path / '.lock').write_text(content)
  _assert_free(tmp_path)


def test_a_lock_is_on_disk_before_anything_else_is_written(tmp_path, monkeypatch):
  synced, fsync = [], os.fsync
  monkeypatch.setattr(os, 'fsync', lambda fd: (synced.append(os.fstat(fd)), fsync(fd)))
  with lock.locked(tmp_path / 'run'):
    numbers = [status.st_ino for status in synced]
    paths = (tmp_path, tmp_path / 'run' / '.lock', tmp_path / 'run')
    assert numbers == [path.stat().st_ino for path in paths]


def test_a_host_that_has_started_anew_takes_its_old_lock_over(tmp_path):
  host = f'{socket.gethostname()} another-boot 2026-01-01T00:00:00+00:00 0123'
  (tmp_path / '.lock').write_text(f'1\n{host}\n')
  _assert_free(tmp_path)


def test_a_container_with_another_host_name_takes_the_lock_of_a_dead_one(tmp_path):
  boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  (tmp_path / '.lock').write_text(f'1\n4a7d1ed414474 {boot} 2026-01-01 0123\n')
  _assert_free(tmp_path)


def test_the_lock_of_another_host_is_taken_over_when_its_lease_has_ended(tmp_path):
  path = tmp_path / '.lock'
  path.write_text(f'1234\n{FAR}\n')
  long_ago = time.time() - lock.LEASE_SECONDS - 1
  os.utime(path, (long_ago, long_ago))
  _assert_free(tmp_path)


def test_a_start_waits_for_another_hosts_lease_and_no_longer(
  tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(lock, 'LEASE_SECONDS', 0.5)
  path = tmp_path / '.lock'
  path.write_text(f'1234\n{FAR}\n')
  start = time.monotonic()
  _assert_free(tmp_path)
  assert 0.4 < time.monotonic() - start < 5
  assert 'process 1234 on elsewhere' in caplog.text
  assert 'last heard of 0 s ago' in caplog.text


def test_another_hosts_process_that_is_heard_of_keeps_its_lock(tmp_path):
  path = tmp_path / '.lock'
  path.write_text(f'1234\n{FAR}\n')
  ended = threading.Event()

  def beat():
    while not ended.wait(0.1):
      os.utime(path)

  heart = threading.Thread(target=beat)
  heart.start()
  try:
    assert 'process 1234 on elsewhere since 2026-01-01' in _refusal(tmp_path)
  finally:
    ended.set()
    heart.join()
  assert path.read_text() == f'1234\n{FAR}\n'


def test_a_holder_is_heard_of_at_every_heartbeat(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, 'HEARTBEAT_SECONDS', 0.05)
  with lock.locked(tmp_path):
    path = tmp_path / '.lock'
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 30
    while path.stat().st_mtime < 1:
      assert time.monotonic() < deadline
      time.sleep(0.01)


def test_a_lock_of_a_version_without_heartbeats_is_respected(tmp_path):
  path, host = tmp_path / '.lock', socket.gethostname()
  path.write_text('1234\nelsewhere\n')
  assert 'process 1234 on elsewhere' in _refusal(tmp_path)
  path.write_text(f'{os.getppid()}\n{host}\n')
  assert f'process {os.getppid()} on {host}' in _refusal(tmp_path)
  path.write_text(f'{2**30}\n{host}\n1234567\n')
  _assert_free(tmp_path)


def test_what_a_lock_says_cannot_control_the_terminal(tmp_path):
  (tmp_path / '.lock').write_text('1\n\x1b[2Jhost\u202e\n')
  message = _refusal(tmp_path)
  assert message.isprintable()
  assert r'\x1b[2Jhost\u202e' in message


@pytest.mark.parametrize('kind', ['pipe', 'folder', 'link', 'device'])
def test_a_lock_that_is_no_regular_file_is_refused_at_once(tmp_path, kind):
  path = tmp_path / '.lock'
  if kind == 'pipe':
    os.mkfifo(path)
  elif kind == 'folder':
    path.mkdir()
  elif kind == 'link':
    path.symlink_to(tmp_path / 'elsewhere')
  elif os.getuid():
    pytest.skip('making a device needs root')
  else:
    os.mknod(path, 0o666 | 0o020000, os.makedev(1, 3))
  start = time.monotonic()
  assert 'want a regular file' in _refusal(tmp_path)
  assert time.monotonic() - start < 5
  assert [file.name for file in tmp_path.iterdir()] == ['.lock']


# ------------------------------------------------------------------------------
# Who has lost it
# ------------------------------------------------------------------------------


@pytest.fixture(name='expected', scope='module')
def _expected(tmp_path_factory) -> dict[str, bytes]:
  """The files of a search that one process has recorded."""
  path = tmp_path_factory.mktemp('undisturbed')
  record_all(path)
  return contents(path)


@pytest.fixture(name='stopped')
def _stopped(tmp_path, writers) -> Iterator[Writer]:
  """A writer that was stopped after its second event, in `run`."""
  writer = writers.start(tmp_path / 'run', stop_after=2)
  assert writer.wait_until_stopped()
  yield writer
  with contextlib.suppress(ProcessLookupError):
    writer.send(signal.SIGKILL)


def _loses(writer: Writer) -> str:
  """Lets a stopped writer go on; returns the line with which it ends."""
  writer.send(signal.SIGCONT)
  line = writer.join()
  assert re.fullmatch('error: .*', line), line
  return line


def test_a_writer_whose_folder_was_moved_leaves_the_new_one_alone(
  tmp_path, stopped, expected
):
  path, moved = tmp_path / 'run', tmp_path / 'moved'
  path.rename(moved)
  record_all(path)
  assert 'replaced by another folder' in _loses(stopped)
  assert contents(path) == expected
  assert records.read_events(moved) == EVENTS[:2]
  record_all(moved)
  assert contents(moved) == expected


def test_a_writer_goes_on_in_a_folder_that_was_only_moved(tmp_path, stopped, expected):
  (tmp_path / 'run').rename(tmp_path / 'moved')
  stopped.send(signal.SIGCONT)
  assert stopped.join() == ''
  assert [path.name for path in tmp_path.iterdir()] == ['moved']
  assert contents(tmp_path / 'moved') == expected


@pytest.mark.parametrize(
  'take', [lambda path: (path / '.lock').unlink(), lock.revoke], ids=['hand', 'revoke']
)
def test_a_writer_whose_lock_was_removed_stops_and_the_next_one_goes_on(
  tmp_path, writers, stopped, expected, take
):
  path = tmp_path / 'run'
  take(path)
  winner = writers.start(path, stop_after=3)
  assert winner.wait_until_stopped()
  assert 'taken over by process' in _loses(stopped)
  winner.send(signal.SIGCONT)
  assert winner.join() == ''
  assert contents(path) == expected


def test_a_writer_without_its_lock_writes_nothing_even_if_nobody_has_taken_it(
  tmp_path, stopped
):
  path = tmp_path / 'run'
  (path / '.lock').unlink()
  before = contents(path)
  assert 'without the lock of this process' in _loses(stopped)
  assert contents(path) == before


def test_a_writer_that_slept_through_its_lease_leaves_the_lock_to_the_other_host(
  tmp_path, stopped
):
  path = tmp_path / 'run'
  (path / '.lock').write_text(f'1234\n{FAR}\n')  # As its process would write it.
  before = contents(path)
  assert 'taken over by process 1234 on elsewhere' in _loses(stopped)
  assert contents(path) == before


def test_events_that_another_process_has_changed_stop_the_writer(tmp_path, stopped):
  path = tmp_path / 'run' / 'events.jsonl'
  first = path.read_bytes().splitlines(keepends=True)[0]
  path.write_bytes(first)
  assert f'got {path} changed by another process' in _loses(stopped)
  assert path.read_bytes() == first
  assert not (tmp_path / 'run' / 'result.json').exists()


def test_a_writer_that_is_stopped_in_a_write_adds_nothing_to_the_winners_files(
  tmp_path, writers, expected
):
  """Before each of the system calls that change something, after its last check."""
  for call in range(1, 100):
    path = tmp_path / str(call)
    loser = writers.start(path, stop_after=1, stop_before=call)
    if not loser.wait_until_stopped():
      break  # There are no more.
    lock.revoke(path)
    record_all(path)
    assert contents(path) == expected
    loser.send(signal.SIGCONT)
    assert 'Traceback' not in loser.join()
    assert contents(path) == expected, call
  assert 15 < call < 99


def test_what_crashed_writers_have_left_is_removed_at_the_next_start(
  tmp_path, writers, expected
):
  writer = writers.start(tmp_path, stop_after=1, stop_before=3)
  assert writer.wait_until_stopped()
  writer.send(signal.SIGKILL)
  writer.join()
  for folder in ('.', 'weights', 'completed'):
    (tmp_path / folder / '.result.json.0123abcd.tmp').write_text('{')
  record_all(tmp_path)
  assert contents(tmp_path) == expected
