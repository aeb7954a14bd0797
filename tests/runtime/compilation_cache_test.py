"""The cache of compiled programs; JAX's use of it in programs of their own."""

import os
import pathlib
import signal
import subprocess
import sys
import time
import zlib

import pytest

from lamarck_jax.runtime.compilation_cache import DiskCache

# Compiles three functions; prints the hits of the cache and the results.
_PROGRAM = """
import sys
import jax
from lamarck_jax.runtime import compilation_cache
compilation_cache.enable(sys.argv[1])
hits = []
jax.monitoring.register_event_listener(
  lambda event, **_: hits.append(event) if event.endswith('cache_hits') else None
)
results = [int(jax.jit(lambda x, n=n: x * x + n)(2)) for n in range(3)]
print(len(hits), results)
"""


def run(directory) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, '-c', _PROGRAM, str(directory)],
    capture_output=True,
    text=True,
    check=True,
  )


def entries(path) -> list[pathlib.Path]:
  return sorted(path.glob('*.program'))


@pytest.fixture
def cache(tmp_path):
  return DiskCache(tmp_path, 10_000)


# ------------------------------------------------------------------------------
# With JAX
# ------------------------------------------------------------------------------


def test_a_second_process_reads_what_the_first_one_compiled(tmp_path):
  directory = tmp_path / 'new' / 'xla'
  assert run(directory).stdout == '0 [4, 5, 6]\n'
  for path in (directory.parent, directory):
    assert path.stat().st_mode & 0o777 == 0o700
  first, second, third = entries(directory)
  whole = first.read_bytes()
  first.write_bytes(b'')
  second.write_bytes(second.read_bytes()[:-10])
  third.write_bytes(whole)  # Another's, as a backup that went wrong leaves it.
  # What is damaged is compiled anew, with one line in all.
  damaged = run(directory)
  assert damaged.stdout == '0 [4, 5, 6]\n'
  assert len(damaged.stderr.splitlines()) == 1
  again = run(directory)
  assert (again.stdout, again.stderr) == ('3 [4, 5, 6]\n', '')


def test_entries_that_jax_cannot_load_are_replaced_with_one_line_in_all(tmp_path):
  run(tmp_path)
  cache = DiskCache(tmp_path, 2**30)
  for path in entries(tmp_path):
    cache.put(path.stem, zlib.compress(b'no program'))
  damaged = run(tmp_path)
  assert damaged.stdout == '0 [4, 5, 6]\n'
  assert len(damaged.stderr.splitlines()) == 1, damaged.stderr
  assert 'cannot be loaded' in damaged.stderr
  for path in entries(tmp_path):
    assert len(cache.get(path.stem)) > 100


def test_programs_run_without_a_cache():
  assert run('').stdout == '0 [4, 5, 6]\n'


# ------------------------------------------------------------------------------
# Entries
# ------------------------------------------------------------------------------


def test_a_program_comes_back_and_can_be_replaced(cache, tmp_path):
  assert cache.get('a') is None
  cache.put('a', b'one')
  cache.put('b', b'')
  cache.put('a', b'two')
  assert DiskCache(tmp_path, 10_000).get('a') == cache.get('a') == b'two'
  assert cache.get('b') == b''


@pytest.mark.parametrize('bit', [0, 100, 8 * 40])
def test_an_entry_with_a_flipped_bit_is_removed(cache, tmp_path, bit):
  cache.put('a', bytes(100))
  (path,) = entries(tmp_path)
  content = bytearray(path.read_bytes())
  content[bit // 8] ^= 1 << bit % 8
  path.write_bytes(content)
  assert cache.get('a') is None
  assert entries(tmp_path) == []
  cache.put('a', b'new')
  assert cache.get('a') == b'new'


@pytest.mark.parametrize(
  'make', [os.mkfifo, os.mkdir, lambda path: path.symlink_to('.')]
)
def test_what_is_no_regular_file_is_no_program_and_ends_no_writes(
  cache, tmp_path, caplog, make
):
  make(tmp_path / 'a.program')
  (tmp_path / 'orphan-cache').write_bytes(b'')
  (tmp_path / 'orphan-atime').write_bytes(b'')
  assert cache.get('a') is None
  cache.put('a', b'a')
  for number in range(20):
    cache.put(f'{number}', bytes(1000))  # Others have to go, again and again.
  assert cache.get('19') == bytes(1000)
  assert len(caplog.records) == 1


def test_the_least_recently_used_programs_make_room(cache, tmp_path):
  for number in range(8):
    cache.put(f'{number}', bytes(1000))
    long_ago = time.time() - 100 + number
    os.utime(tmp_path / f'{number}.program', (long_ago, long_ago))
  assert cache.get('0') is not None
  cache.put('large', bytes(3000))
  assert [path.stem for path in entries(tmp_path)] == ['0', '4', '5', '6', '7', 'large']


def test_a_full_disk_leaves_nothing_behind_and_is_told_once(cache, tmp_path, caplog):
  cache.put('a', b'old')
  before = set(tmp_path.iterdir())
  code = f"""
import resource, signal, pathlib
from lamarck_jax.runtime.compilation_cache import DiskCache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
cache = DiskCache(pathlib.Path({str(tmp_path)!r}), 10**9)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for key in 'ab':
  cache.put(key, bytes(2000))
assert cache.get('a') == b'old'
"""
  process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert process.returncode == 0, process.stderr
  assert len(process.stderr.splitlines()) == 1
  assert {path for path in tmp_path.iterdir() if path.suffix != '.loading'} <= before


# ------------------------------------------------------------------------------
# Other processes
# ------------------------------------------------------------------------------

_LOADING = """
import os, pathlib, sys, time
from lamarck_jax.runtime.compilation_cache import DiskCache
cache = DiskCache(pathlib.Path(sys.argv[1]), 10**9)
cache.get('loaded')
cache.on_event('/jax/compilation_cache/cache_hits')
cache.get('fatal')
print('loading', flush=True)
time.sleep(60)
"""


def test_what_a_process_was_loading_when_it_was_killed_is_removed(
  cache, tmp_path, caplog
):
  for key in ('fatal', 'loaded'):
    cache.put(key, b'x')
  process = subprocess.Popen(
    [sys.executable, '-c', _LOADING, str(tmp_path)], stdout=subprocess.PIPE
  )
  process.stdout.readline()
  # While it lives, its program is not suspected.
  assert DiskCache(tmp_path, 10_000).get('fatal') == b'x'
  process.send_signal(signal.SIGKILL)
  process.communicate()
  after = DiskCache(tmp_path, 10_000)
  assert after.get('fatal') is None
  assert after.get('loaded') == b'x'
  assert 'fatal.program' in caplog.text


def test_temporary_files_of_killed_processes_are_removed_in_time(tmp_path):
  old, new = tmp_path / '.1.tmp', tmp_path / '.2.tmp'
  for path in (old, new):
    path.write_bytes(b'half')
  os.utime(old, (0, 0))
  DiskCache(tmp_path, 10_000)
  assert not old.exists()
  assert new.exists()  # Another process may be writing it.


def test_opening_a_cache_of_many_programs_takes_no_time(tmp_path):
  cache = DiskCache(tmp_path, 2**30)
  for number in range(300):
    cache.put(f'{number}', bytes(10_000))
  start = time.perf_counter()
  DiskCache(tmp_path, 2**30)
  assert time.perf_counter() - start < 0.1


# ------------------------------------------------------------------------------
# The folder
# ------------------------------------------------------------------------------


_ENABLE = """
import sys
import jax
from lamarck_jax.runtime import compilation_cache
for directory in sys.argv[1:]:
  jax.config.update('jax_enable_compilation_cache', True)
  compilation_cache.enable(directory)
  print(jax.config.jax_enable_compilation_cache)
"""


def test_a_folder_that_others_can_write_to_or_replace_is_refused_in_one_line(tmp_path):
  def make(name, mode, parent_mode=0o755):
    path = tmp_path / name / 'xla'
    path.mkdir(parents=True)
    path.chmod(mode)
    path.parent.chmod(parent_mode)
    return path

  refused = [
    make('group', 0o770),
    make('other', 0o707),
    make('sticky', 0o1777),
    make('replaceable', 0o700, parent_mode=0o777),
  ]
  link = make('links', 0o700, parent_mode=0o777).parent / 'link'
  link.symlink_to(make('behind', 0o700))  # Others can let it point elsewhere.
  refused.append(link)
  if os.geteuid() == 0:
    refused.append(make('foreign', 0o700))
    os.chown(refused[-1], 1234, 1234)
  (tmp_path / 'file').write_text('')
  refused.append(tmp_path / 'file' / 'below')
  used = [make('own', 0o700), make('in_tmp', 0o755, parent_mode=0o1777)]
  (tmp_path / 'own-link').symlink_to(used[0])
  used.append(tmp_path / 'own-link')

  process = subprocess.run(
    [sys.executable, '-c', _ENABLE, *map(str, refused + used)],
    capture_output=True,
    text=True,
    check=True,
  )
  enabled = process.stdout.split()
  assert enabled == ['False'] * len(refused) + ['True'] * len(used)
  lines = process.stderr.splitlines()
  assert len(lines) == len(refused)
  for line, path in zip(lines, refused):
    assert 'no compilation cache: ' in line
    assert path.parent.name in line or path.is_symlink()
