"""A search on a file system whose power is cut again and again.

The file system is ext4 on a loop device. `EXT4_IOC_SHUTDOWN` without flushing the log
discards all that was not yet made durable, as a power cut does.
"""

import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import pytest

from lamarck_jax import search
from tests.conftest import ROOT, make_tiny_config, read_events

NUM_CUTS = 20

# Forks a process for every line of its standard input. It searches in a folder of the
# file system, whose power is cut before or after one of its system calls; and it notes
# outside of the file system which evaluations it was told were recorded.
_DRIVER = """
import fcntl, json, os, pathlib, signal, struct, sys, traceback
from lamarck_jax import search
from lamarck_jax.data import datasets
from lamarck_jax.runtime import compilation_cache
from tests.conftest import make_tiny_config

NAMES = ('open', 'write', 'fsync', 'replace', 'unlink', 'mkdir', 'ftruncate', 'pwrite')
EXT4_IOC_SHUTDOWN, WITHOUT_FLUSHING_THE_LOG = 0x8004587D, 2

def cut(mount, number, before):
  count = 0
  folder = os.open(mount, os.O_RDONLY)
  def wrapped(function):
    def call(*args, **kwargs):
      nonlocal count
      own = sys._getframe(1).f_globals['__name__'].startswith('lamarck_jax.run_direc')
      count += own
      last = own and count == number
      result = None if last and before else function(*args, **kwargs)
      if last:
        mode = struct.pack('I', WITHOUT_FLUSHING_THE_LOG)
        fcntl.ioctl(folder, EXT4_IOC_SHUTDOWN, mode)
        os.kill(os.getpid(), signal.SIGKILL)
      return result
    return call
  for name in NAMES:
    setattr(os, name, wrapped(getattr(os, name)))

cache, log = sys.argv[1:]
for line in sys.stdin:
  mount, workdir, noted, number, before = json.loads(line)
  child = os.fork()
  if not child:
    status = 1
    try:
      compilation_cache.enable(cache)
      if number:
        cut(mount, number, before)
      with open(noted, 'a', buffering=1) as notes:
        search.run(make_tiny_config(), workdir, lambda e: print('event', file=notes))
      status = 0
    except BaseException:
      with open(log, 'a') as file:
        traceback.print_exc(file=file)
    os._exit(status)
  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def _run(*command: str) -> None:
  subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.fixture(name='disk')
def _disk(tmp_path) -> pathlib.Path:
  """A new ext4 file system, not mounted."""
  image, mount = tmp_path / 'image', tmp_path / 'mount'
  mount.mkdir()
  try:
    with image.open('wb') as file:
      file.truncate(64 * 2**20)
    _run('mkfs.ext4', '-q', str(image))
    _run('mount', '-o', 'loop', str(image), str(mount))
    _run('umount', str(mount))
  except (OSError, subprocess.CalledProcessError) as error:
    pytest.skip(f'mounting ext4 on a loop device needs root: {error}')
  return image


def _contents(workdir: pathlib.Path) -> dict[str, object]:
  """Returns the content of a finished run, but for its durations and starts."""
  content: dict[str, object] = {
    str(path.relative_to(workdir)): path.read_bytes()
    for path in workdir.rglob('*.safetensors')
  }
  for path in (*workdir.rglob('*.json'), workdir / 'events.jsonl'):
    if path.name not in ('environment.json', 'events.jsonl'):
      content[str(path.relative_to(workdir))] = _without_seconds(
        json.loads(path.read_text())
      )
  content['events'] = read_events(workdir)
  return content


def _without_seconds(value):
  if isinstance(value, dict):
    return {k: _without_seconds(v) for k, v in value.items() if k != 'seconds'}
  if isinstance(value, list):
    return [_without_seconds(part) for part in value]
  return value


@pytest.mark.slow
def test_a_search_goes_on_by_itself_after_every_power_cut_to_the_same_end(
  disk, tmp_path, shared_compilation_cache
):
  search.run(make_tiny_config(), tmp_path / 'undisturbed')
  expected = _contents(tmp_path / 'undisturbed')
  mount, log, noted = tmp_path / 'mount', tmp_path / 'log', tmp_path / 'noted'
  driver = subprocess.Popen(
    [sys.executable, '-c', _DRIVER, str(shared_compilation_cache), str(log)],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  rng = random.Random(0)
  cuts, status = 0, None
  try:
    while cuts < NUM_CUTS or status:
      _run('mount', '-o', 'loop', str(disk), str(mount))
      try:
        workdir = mount / 'run'
        told = len(noted.read_text().splitlines()) if noted.exists() else 0
        assert len(read_events(workdir)) >= told
        number = rng.randint(1, 60) if cuts < NUM_CUTS else 0
        command = [str(mount), str(workdir), str(noted), number, rng.random() < 0.5]
        driver.stdin.write(json.dumps(command) + '\n')
        driver.stdin.flush()
        status = int(driver.stdout.readline())
        assert status in (0, -signal.SIGKILL), log.read_text()
        if status:
          cuts += 1
        else:
          assert _contents(workdir) == expected
          shutil.rmtree(workdir)  # The next cuts are those of another search.
          noted.unlink(missing_ok=True)
      finally:
        _run('umount', str(mount))
  finally:
    driver.communicate()
  assert cuts == NUM_CUTS
