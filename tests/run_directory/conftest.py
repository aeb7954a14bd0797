"""What the tests of a run directory record."""

from collections.abc import Callable, Iterator
import json
import os
import pathlib
import pickle
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest

from lamarck_jax import config as config_lib
from lamarck_jax import model
from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import lock, records

EVENTS = [
  {
    'evaluation': number,
    'genotype': [[16, 3, 1]] * (number + 1),
    'lineages': list(range(number + 1)),
    'next_lineage': number + 1,
    'fitness': 0.1 + 0.2 * number,
    'epochs_used': number + 1,
    'niche': None,
    'accepted': number != 1,
    'mutation': ['add_block'],
  }
  for number in range(3)
]


def make_config(**fields: object) -> dict:
  """Returns a configuration; fields have `__` for the dot."""
  config = config_lib.get_config()
  config.dataset.name = 'digits'
  for field, value in fields.items():
    *path, last = field.split('__')
    section = config
    for part in path:
      section = section[part]
    section[last] = value
  return config.to_dict()


@pytest.fixture(name='directory')
def _directory(tmp_path: pathlib.Path) -> records.RunDirectory:
  return records.RunDirectory(tmp_path / 'run', make_config())


def make_variables(seed: int = 0) -> dict:
  genotype = Genotype.parse('4c3 8c1s2')
  return model.init_variables(jax.random.key(seed), genotype, 3, 10)


def assert_same_bits(tree: dict, other: dict) -> None:
  chex.assert_trees_all_equal_structs(tree, other)
  for leaf, other_leaf in zip(jax.tree.leaves(tree), jax.tree.leaves(other)):
    leaf, other_leaf = np.asarray(leaf), np.asarray(other_leaf)
    assert leaf.dtype == other_leaf.dtype
    assert leaf.shape == other_leaf.shape
    assert leaf.tobytes() == other_leaf.tobytes()


def record_all(
  path: pathlib.Path,
  variables: Callable[[int], dict] = make_variables,
  on_event: Callable[[int], None] | None = None,
) -> None:
  """Records a search of three evaluations, from wherever it was left.

  Args:
    path: The run directory.
    variables: Returns the variables of a number.
    on_event: Called with the number of events once another is recorded.
  """
  with lock.locked(path) as folder:
    directory = records.RunDirectory(path, make_config(), folder)
    done = len(directory.read_events())
    if done:
      directory.read_weights(done - 1)
    directory.keep_weights({done - 1})
    for number in range(done, len(EVENTS)):
      directory.write_weights(number, variables(number))
      directory.append_event(EVENTS[number])
      if on_event:
        on_event(number + 1)
      directory.keep_weights({number})
    if directory.read_completed(2) is None:
      directory.write_completing(2, variables(8))
      directory.write_completed(2, {'test_accuracy': 0.5}, variables(9))
    directory.write_result({'best': 2})


def contents(path: pathlib.Path) -> dict[str, bytes]:
  """Returns the contents of all files in a folder, by their paths in it."""
  return {
    str(file.relative_to(path)): file.read_bytes()
    for file in path.rglob('*')
    if file.is_file()
  }


# ------------------------------------------------------------------------------
# Writers
# ------------------------------------------------------------------------------

# Forks a process that records a search for every line of its standard input.
_DRIVER = """
import json, os, pickle, signal, sys, traceback
from lamarck_jax.errors import StorageError, UserError
from tests.run_directory.conftest import EVENTS, record_all

def stop():
  os.kill(os.getpid(), signal.SIGSTOP)

def stop_before(number):
  count = 0
  def wrapped(function):
    def call(*args, **kwargs):
      nonlocal count
      count += 1
      if count == number:
        stop()
      return function(*args, **kwargs)
    return call
  for name in ('write', 'replace', 'unlink'):
    setattr(os, name, wrapped(getattr(os, name)))

def record(path, stop_after, call):
  def on_event(number):
    if number == stop_after:
      stop_before(call) if call else stop()
  try:
    record_all(pathlib.Path(path), variables.__getitem__, on_event)
  except (StorageError, UserError) as error:
    return f'error: {error}'
  except BaseException:
    return traceback.format_exc()
  return ''

import pathlib
variables = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Ended writers leave no zombies.
print('ready', flush=True)
for line in sys.stdin:
  arguments, log = json.loads(line)
  child = os.fork()
  if not child:
    text = record(*arguments)
    pathlib.Path(log).write_text(text)
    os._exit(0)
  print(child, flush=True)
"""


class Writer:
  """A process that records the search of `record_all`."""

  def __init__(self, process: int, log: pathlib.Path):
    self._process, self._log = process, log

  def send(self, number: int) -> None:
    """Sends it a signal."""
    os.kill(self._process, number)

  def wait_until_stopped(self) -> bool:
    """Returns whether it was stopped by SIGSTOP, as opposed to having ended."""
    path = pathlib.Path(f'/proc/{self._process}/stat')
    for _ in _polls():
      try:
        state = path.read_text().rpartition(')')[2].split()[0]
      except (FileNotFoundError, ProcessLookupError):
        return False
      if state == 'T':
        return True
    raise AssertionError

  def join(self) -> str:
    """Waits for its end; returns its error, or an empty text."""
    for _ in _polls():
      try:
        os.kill(self._process, 0)
      except ProcessLookupError:
        break
    return self._log.read_text() if self._log.exists() else 'killed'


def _polls() -> Iterator[None]:
  deadline = time.monotonic() + 60
  while time.monotonic() < deadline:
    yield
    time.sleep(0.005)
  raise AssertionError('a writer does not end')


class Writers:
  """Starts writers; they fork from a process that has imported what they need."""

  def __init__(self, folder: pathlib.Path):
    self._folder, self._count = folder, 0
    variables = {number: make_variables(number) for number in (0, 1, 2, 8, 9)}
    (folder / 'variables').write_bytes(pickle.dumps(variables))
    self._driver = subprocess.Popen(
      [sys.executable, '-c', _DRIVER, str(folder / 'variables')],
      cwd=pathlib.Path(__file__).parents[2],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    assert self._read() == 'ready'

  def start(
    self, path: pathlib.Path, *, stop_after: int = 0, stop_before: int = 0
  ) -> Writer:
    """Starts a writer.

    Args:
      path: The run directory.
      stop_after: Number of events after which it stops itself.
      stop_before: Stops it before this system call, counted from then on, instead.
    """
    self._count += 1
    log = self._folder / f'{self._count}.log'
    command = [[str(path), stop_after, stop_before], str(log)]
    assert self._driver.stdin is not None
    self._driver.stdin.write(json.dumps(command) + '\n')
    self._driver.stdin.flush()
    return Writer(int(self._read()), log)

  def _read(self) -> str:
    assert self._driver.stdout is not None
    return self._driver.stdout.readline().rstrip()

  def close(self) -> None:
    """Ends the process that writers fork from."""
    self._driver.communicate()


@pytest.fixture(scope='session')
def writers(tmp_path_factory) -> Iterator[Writers]:
  """The writers of a test run."""
  result = Writers(tmp_path_factory.mktemp('writers'))
  yield result
  result.close()
