"""Ends a program on SIGINT, SIGTERM and SIGHUP: in order if possible, else at once.

A signal raises `Stopped` in the main thread. That thread may be inside a native call,
such as an epoch of training, and runs no signal handler until the call returns.
Therefore a second thread watches too, and ends the process if the main thread has not
done so within a few seconds, or when a second signal comes. Ending at any moment is
safe, because every write to a run directory is atomic.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from typing import NoReturn

from lamarck_jax.runtime import dropped_signals

# Schedulers wait 10 seconds or more between SIGTERM and SIGKILL; this is below.
GRACE_SECONDS = 5.0

# Ctrl-C; a scheduler; a terminal or an ssh connection that has been closed.
_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Set once the user has been told that the program ends, which is said only once.
_said = threading.Event()


class Stopped(BaseException):
  """A signal asks the program to end.

  Attributes:
    status: Exit status by the shell's convention: 128 plus the signal's number.
  """

  def __init__(self, number: int):
    """Takes the signal's number."""
    super().__init__(number)
    self.status = 128 + number

  def __str__(self) -> str:
    return f'signal {self.args[0]}'


def install() -> None:
  """Makes the signals raise `Stopped` in the main thread, which must call it.

  SIGHUP is left alone where it is ignored, as under `nohup`.
  """
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  for number in _NUMBERS:
    ignored = signal.getsignal(number) == signal.SIG_IGN
    if not (number == signal.SIGHUP and ignored):
      signal.signal(number, _raise_stopped)
  dropped_signals.raise_again(Stopped)
  # CPython writes the number of each signal into the pipe at once, from C.
  signal.set_wakeup_fd(writer)
  threading.Thread(target=_watch, args=[reader], daemon=True, name='signals').start()


def say_stopped(sentence: str) -> None:
  """Tells the user how to resume a stopped program; the watching thread stays silent.

  Args:
    sentence: What is printed to stderr, on a line of its own.
  """
  # The terminal may be gone, which must not keep the program from ending.
  with contextlib.suppress(OSError, ValueError):
    # Ctrl-C leaves `^C` at the end of the progress line.
    print(f'\n{sentence}', file=sys.stderr, flush=True)
  _said.set()


def _raise_stopped(number: int, frame: object) -> NoReturn:
  raise Stopped(number)


def _watch(reader: int) -> None:
  """Waits for a signal, then for a second one or the deadline; ends the process."""
  number = os.read(reader, 1)[0]
  deadline = time.monotonic() + GRACE_SECONDS
  while select.select([reader], [], [], max(0, deadline - time.monotonic()))[0]:
    # SIGALRM comes from `dropped_signals` and is no request of the user.
    if os.read(reader, 1)[0] != signal.SIGALRM:
      break
  if not _said.is_set():
    say_stopped('ended at once; run the same command again to resume')
  os._exit(128 + number)
