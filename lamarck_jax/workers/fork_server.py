"""The process that workers of this machine are forked from.

It imports the package with JAX, Flax and Optax once for all workers, which takes a
second or two of CPU time, in parallel with the search's own imports. It initialises no
device, so each worker still chooses its own. Nothing here imports JAX, so that it can
be started before that.
"""

from collections.abc import Iterator
import contextlib
import multiprocessing
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
import os
import signal
import sys

_IMPORTED = ['lamarck_jax.workers.local', 'scipy.linalg']

# Those of a terminal reach the whole process group, and workers ignore them.
_OF_TERMINALS = (signal.SIGINT, signal.SIGHUP)


def start() -> ForkServerContext:
  """Starts the process if it is not running, without waiting for its imports.

  Python has one for each program. Where the program itself uses `forkserver`, its own
  does, and workers import what that one lacks.

  Returns:
    The context whose processes are forked from it.
  """
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(_IMPORTED)
  resource_tracker.ensure_running()  # It would unblock the signals.
  with _blocked_signals(), _same_modules():
    forkserver.ensure_running()
  return context


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
  """Keeps the signals of a terminal from a process that is started inside.

  It would show a traceback until it has imported everything, and ignores them then.
  """
  mask = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINALS)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def _same_modules() -> Iterator[None]:
  """Makes a process that is started inside find the modules that this one finds.

  By itself it would look in the working directory first, where other versions may be.
  """
  own = {'PYTHONSAFEPATH': '1', 'PYTHONPATH': os.pathsep.join(sys.path)}
  before = {name: os.environ.get(name) for name in own}
  os.environ.update(own)
  try:
    yield
  finally:
    for name, value in before.items():
      if value is None:
        del os.environ[name]
      else:
        os.environ[name] = value
