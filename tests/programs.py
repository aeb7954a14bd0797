"""Runs the command-line programs one after another in one process, apart from pytest.

Importing and starting JAX takes longer than most programs do. Each program runs as
`python -m MODULE` or `python SCRIPT.py` would run it, with its own flags.
"""

from collections.abc import Iterator
import contextlib
import gc
import json
import os
import pathlib
import re
import runpy
import select
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any, NamedTuple
import warnings

ROOT = pathlib.Path(__file__).parents[1]
# A program that waits for ever is told by its silence from one on a busy machine.
IDLE_SECONDS, MAX_SECONDS = 20, 400
# The exit status that stands for an exception that nobody has caught.
TRACEBACK = 70


# Lines that are no errors: progress, warnings, and what a search says of its directory.
_ORDINARY = re.compile(
  r'(epoch|completion|digits:|WARNING|warning:|going on after|\S+/seed\d) ?'
  '|.* holds a finished'
)


class Outcome(NamedTuple):
  """How a program ended."""

  status: int
  stdout: str
  stderr: str


def check_end(outcome: Outcome, statuses: tuple[int, ...] = (0, 1, 2)) -> None:
  """Checks that a program has ended in an ordinary way."""
  assert outcome.status in statuses, outcome
  assert 'Traceback' not in outcome.stderr, outcome
  assert re.fullmatch(r'[^\x00-\x08\x0b-\x1f\x7f]*', outcome.stderr), outcome
  errors = [line for line in outcome.stderr.splitlines() if not _ORDINARY.match(line)]
  errors = [line for line in errors if line]
  if outcome.status:
    assert len(errors) == 1, outcome
    assert re.match('error: |failed: ', errors[0]), outcome
  else:
    assert not errors, outcome


class Programs:
  """A process that runs programs."""

  def __init__(self) -> None:
    self._process: subprocess.Popen | None = None

  def run(self, *argv: Any, stop: str = '') -> Outcome:
    """Runs a program to its end.

    Args:
      argv: Module or script, and its arguments.
      stop: `METHOD:COUNT` of `RunDirectory`, whose call of that number fails as if the
        disk were full.
    """
    process = self._process = self._process or self._start()
    assert process.stdin and process.stdout
    request = json.dumps({'argv': [str(part) for part in argv], 'stop': stop})
    process.stdin.write(request + '\n')
    process.stdin.flush()
    start = time.monotonic()
    used = -1.0
    while not select.select([process.stdout], [], [], IDLE_SECONDS)[0]:
      before, used = used, _cpu_seconds(process.pid)
      if used == before or time.monotonic() - start > MAX_SECONDS:
        self.close()
        raise AssertionError(f'{argv} does not end, after {used} s of computing')
    answer = process.stdout.readline()
    if not answer:
      self.close()
      raise AssertionError(f'{argv} has ended the process: {process.returncode}')
    return Outcome(*json.loads(answer))

  def close(self) -> None:
    """Ends the process."""
    if self._process:
      self._process.kill()
      self._process.communicate()
    self._process = None

  def _start(self) -> subprocess.Popen:
    return subprocess.Popen(
      [sys.executable, '-m', 'tests.programs'],
      cwd=ROOT,
      # On a busy machine XLA logs how slow it is.
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3'},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )


def _cpu_seconds(process: int) -> float:
  """Returns how long a process has computed, of all its threads together."""
  status = pathlib.Path(f'/proc/{process}/stat').read_text()
  user, system = status.rpartition(')')[2].split()[11:13]
  return (int(user) + int(system)) / os.sysconf('SC_CLK_TCK')


def _serve() -> None:
  """Answers requests until there are no more."""
  from absl import app, flags

  from lamarck_jax.runtime import signals
  from lamarck_jax.study import executors

  # A thread and a pipe each time; and what is frozen is never freed.
  for module, name, replacement in (
    (signals, 'install', lambda: None),
    (gc, 'freeze', lambda: None),
    (executors, 'LocalExecutor', _InThisProcess),
  ):
    setattr(module, name, replacement)
  # A module that other programs have imported is run again.
  warnings.filterwarnings('ignore', module='runpy')
  answers = os.fdopen(os.dup(1), 'w')
  app.define_help_flags()
  own_flags = set(flags.FLAGS)
  for line in sys.stdin:
    request = json.loads(line)
    for name in set(flags.FLAGS) - own_flags:
      delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    print(json.dumps(_run(**request)), file=answers, flush=True)


def _run(argv: list[str], stop: str) -> Outcome:
  streams = sys.stdout, sys.stderr
  with (
    tempfile.TemporaryFile() as out,
    tempfile.TemporaryFile() as error,
    _stopping(stop),
  ):
    for number, file in ((1, out), (2, error)):
      os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    sys.argv = argv
    status = 0
    try:
      if argv[0].endswith('.py'):
        runpy.run_path(argv[0], run_name='__main__')
      else:
        runpy.run_module(argv[0], run_name='__main__', alter_sys=True)
    except SystemExit as ended:
      status = int(ended.code or 0)
    except BaseException:
      traceback.print_exc()
      status = TRACEBACK
    for stream in (sys.stdout, sys.stderr):
      print(end='', file=stream, flush=True)
    sys.stdout, sys.stderr = streams
    texts = []
    for file in (out, error):
      file.seek(0)
      texts.append(file.read().decode(errors='replace'))
  return Outcome(status, *texts)


@contextlib.contextmanager
def _stopping(stop: str) -> Iterator[None]:
  """Makes a call of a method of `RunDirectory` fail as if the disk were full."""
  from lamarck_jax.errors import StorageError
  from lamarck_jax.run_directory.records import RunDirectory

  name, _, number = stop.partition(':')
  if not name:
    yield
    return
  method, left = getattr(RunDirectory, name), int(number)

  def call(*args: Any) -> Any:
    nonlocal left
    left -= 1
    if not left:
      raise StorageError('file: got a full disk, want room')
    return method(*args)

  setattr(RunDirectory, name, call)
  try:
    yield
  finally:
    setattr(RunDirectory, name, method)


class _InThisProcess:
  """An executor that performs each run at once."""

  num_workers = 1

  def __init__(self, *_: Any):
    pass

  def submit(self, task: Any) -> Any:
    import concurrent.futures

    from lamarck_jax.study import executors

    future: concurrent.futures.Future = concurrent.futures.Future()
    future.set_result(executors.perform(task))
    return future

  def close(self) -> None:
    pass


if __name__ == '__main__':
  _serve()
