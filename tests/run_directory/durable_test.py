"""Tests of `durable`, most of them by what becomes of a whole run directory."""

import concurrent.futures
import errno
import gc
import os
import pathlib
import shutil
import subprocess

import pytest

from lamarck_jax.errors import DamagedError, StorageError, UserError
from lamarck_jax.run_directory import durable, records
from tests.run_directory.conftest import (
  EVENTS,
  assert_same_bits,
  contents,
  make_config,
  make_variables,
  record_all,
)


def test_a_file_that_several_writers_replace_at_once_is_always_whole(tmp_path):
  path = tmp_path / 'shared'
  contents = [bytes([number]) * 50_000 for number in range(4)]
  durable.write(path, contents[0], shared=True)

  def write(content):
    for _ in range(10):
      durable.write(path, content, shared=True)
      assert path.read_bytes() in contents

  with concurrent.futures.ThreadPoolExecutor() as executor:
    list(executor.map(write, contents))
  assert [file.name for file in tmp_path.iterdir()] == ['shared']


def test_a_file_too_large_for_memory_is_refused_unread(tmp_path):
  path = tmp_path / 'result.json'
  path.touch()
  os.truncate(path, 2**40)  # Sparse: it takes no room on disk.
  with pytest.raises(DamagedError, match=rf'{2**40} bytes, want at most'):
    durable.read_json(path)


# ------------------------------------------------------------------------------
# Crashes
# ------------------------------------------------------------------------------


class _Crash(Exception):
  pass


def _crash(*args: object, **kwargs: object) -> None:
  raise _Crash


# A process can end before the content is on disk, or before the file is replaced.
_MOMENTS = ['fsync', 'replace']


@pytest.fixture(name='crashing', params=_MOMENTS)
def _crashing(request, monkeypatch):
  """Returns a function that calls another one, and crashes in it."""

  def crashing(function, *args):
    with monkeypatch.context() as patch:
      if request.param == 'fsync':
        patch.setattr(os, 'fsync', _crash)
      else:
        patch.setattr(os, 'replace', _crash)
      with pytest.raises(_Crash):
        function(*args)

  return crashing


def test_a_crash_while_weights_are_written_leaves_the_old_ones_whole(
  directory, crashing
):
  directory.write_weights(0, make_variables(0))
  crashing(directory.write_weights, 0, make_variables(1))
  crashing(directory.write_weights, 1, make_variables(1))
  reopened = records.RunDirectory(directory.path, make_config())
  assert_same_bits(reopened.read_weights(0), make_variables(0))
  with pytest.raises(DamagedError):
    reopened.read_weights(1)
  reopened.keep_weights({0, 1})
  assert [path.name for path in (directory.path / 'weights').iterdir()] == [
    '000000.safetensors'
  ]
  reopened.write_weights(1, make_variables(1))
  assert_same_bits(reopened.read_weights(1), make_variables(1))


def test_a_crash_while_the_result_is_written_leaves_the_old_one_or_none(
  directory, crashing
):
  crashing(directory.write_result, {'best': 1})
  assert directory.read_result() is None
  directory.write_result({'best': 2})
  crashing(directory.write_result, {'best': 3})
  reopened = records.RunDirectory(directory.path, make_config())
  assert reopened.read_result() == {'best': 2}


def test_a_completion_that_crashes_while_it_is_written_can_be_written_again(
  directory, crashing
):
  crashing(directory.write_completed, 4, {'test_accuracy': 0.5}, make_variables())
  assert directory.read_completed(4) is None
  directory.write_completed(4, {'test_accuracy': 0.6}, make_variables())
  assert directory.read_completed(4) == {'test_accuracy': 0.6}


def test_a_crash_while_the_directory_is_made_leaves_one_that_can_be_opened(
  tmp_path, crashing
):
  crashing(records.RunDirectory, tmp_path / 'run', make_config())
  directory = records.RunDirectory(tmp_path / 'run', make_config())
  directory.write_weights(0, make_variables())
  directory.append_event(EVENTS[0])
  reopened = records.RunDirectory(tmp_path / 'run', make_config())
  assert reopened.read_events() == EVENTS[:1]


# ------------------------------------------------------------------------------
# Faults
# ------------------------------------------------------------------------------

# Every system call by which the recorder writes.
_SYSTEM_CALLS = ('open', 'write', 'fsync', 'replace', 'unlink', 'mkdir', 'close')


class _Faults:
  """Lets the n-th system call of the recorder fail, as a full or broken disk does."""

  def __init__(self, monkeypatch, root: pathlib.Path):
    self.count = 0
    self.failing = -1
    self.error = 0
    self._descriptors: set[int] = set()
    for name in _SYSTEM_CALLS:
      monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name), str(root)))

  def _wrapped(self, name, function, root):
    def call(target, *args, **kwargs):
      if isinstance(target, int):
        concerns = target in self._descriptors
      elif folder := kwargs.get('dir_fd') or kwargs.get('src_dir_fd'):
        concerns = folder in self._descriptors
      else:
        concerns = os.fspath(target).startswith(root)
      if concerns:
        self.count += 1
        if self.count == self.failing:
          if name == 'write':  # What a full disk still takes.
            function(target, bytes(args[0])[: len(args[0]) // 2])
          if name == 'close':  # Linux frees the descriptor all the same.
            function(target)
          raise OSError(self.error, os.strerror(self.error), str(target))
      result = function(target, *args, **kwargs)
      if name == 'open' and concerns:
        self._descriptors.add(result)
      if name == 'close':
        self._descriptors.discard(target)
      return result

    return call


def test_recording_resumes_to_the_same_files_whichever_system_call_fails(
  tmp_path, monkeypatch
):
  record_all(tmp_path / 'whole')
  expected = contents(tmp_path / 'whole')
  faults = _Faults(monkeypatch, tmp_path / 'run')
  record_all(tmp_path / 'run0')
  num_calls = faults.count
  assert num_calls > 60
  for number in range(1, num_calls + 1):
    path = tmp_path / f'run-{number}'
    faults.count, faults.failing = 0, number
    faults.error = (errno.ENOSPC, errno.EIO)[number % 2]
    try:
      record_all(path)
    except (StorageError, UserError) as message:
      assert str(tmp_path) in str(message)
      assert '\n' not in str(message)
    faults.failing = -1
    record_all(path)
    assert contents(path) == expected, number


def test_recording_stops_on_a_full_file_system_and_resumes_once_there_is_room(
  tmp_path,
):
  mount = tmp_path / 'mount'
  mount.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(mount)]
  if (
    not shutil.which('mount') or subprocess.run(command, capture_output=True).returncode
  ):
    pytest.skip('mounting a small file system needs root')
  try:
    ballast = mount / 'ballast'
    ballast.write_bytes(b'x' * 40 * 1024)
    with pytest.raises(StorageError, match='No space left'):
      for number in range(100):
        directory = records.RunDirectory(mount / 'run', make_config())
        directory.write_weights(number, make_variables(number))
        directory.append_event({**EVENTS[0], 'evaluation': number})
    events = records.read_events(mount / 'run')
    assert 0 < len(events) < 100
    assert [event['evaluation'] for event in events] == list(range(len(events)))
    directory = records.RunDirectory(mount / 'run', make_config())
    assert_same_bits(directory.read_weights(0), make_variables(0))
    ballast.unlink()
    directory.write_weights(len(events), make_variables())
    directory.append_event({**EVENTS[0], 'evaluation': len(events)})
    assert len(directory.read_events()) == len(events) + 1
  finally:
    # They hold folders of the file system open, some in an error's traceback.
    directory = None
    gc.collect()
    subprocess.run(['umount', str(mount)], check=True)
