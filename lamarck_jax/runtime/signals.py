"""Ends a program on SIGTERM and Ctrl-C: in order at first, at once if need be.

The main thread may be inside a native call when a signal comes, and then learns of it
only afterwards. So a thread waits as well, and ends the process if the main thread has
not within a few seconds, or when a second signal comes. That is safe at any moment,
since what is recorded is whole at any moment.
"""

from collections.abc import Callable
import functools
import os
import select
import signal
import sys
import threading
import time
import types
from typing import Any, NoReturn

# Below what schedulers grant between SIGTERM and SIGKILL, 10 seconds or more.
GRACE_SECONDS = 5.0
# Until a signal is raised again that Python had to drop.
RETRY_SECONDS = 0.01

_said = threading.Event()  # Whether a person knows that the program has ended.


class Stopped(BaseException):
  """A signal asks the program to end.

  Attributes:
    status: Exit status by the shell's convention, 128 and the signal's number.
  """

  def __init__(self, number: int):
    """Takes the signal's number."""
    super().__init__(f'signal {number}')
    self.status = 128 + number


def install() -> None:
  """Makes SIGINT and SIGTERM raise `Stopped` in the main thread, which must call it."""
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, _raise_stopped)
  sys.unraisablehook = functools.partial(_raise_again, sys.unraisablehook)
  signal.set_wakeup_fd(writer)
  threading.Thread(target=_watch, args=[reader], daemon=True, name='signals').start()


def say_stopped(sentence: str) -> None:
  """Tells a person how a stopped program goes on; nothing is said after it."""
  print(f'\n{sentence}', file=sys.stderr, flush=True)
  _said.set()


def _raise_stopped(number: int, frame: object) -> NoReturn:
  raise Stopped(number)


def _raise_again(hook: Callable[[Any], Any], unraisable: Any) -> None:
  """Raises `Stopped` a little later, where Python had to drop it.

  It drops what is raised in a finalizer or in a callback of the garbage collector, and
  JAX has such a callback.
  """
  stopped = unraisable.exc_value
  if not isinstance(stopped, Stopped):
    hook(unraisable)
    return
  signal.signal(
    signal.SIGALRM, functools.partial(_raise_unless_in_hook, stopped.status - 128)
  )
  signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS, 0.01)


def _raise_unless_in_hook(number: int, alarm: int, frame: types.FrameType) -> None:
  """Raises `Stopped`, or waits for the next alarm where the hook would drop it."""
  caller: types.FrameType | None = frame
  while caller:
    if caller.f_code is _raise_again.__code__:
      return
    caller = caller.f_back
  signal.setitimer(signal.ITIMER_REAL, 0)
  raise Stopped(number)


def _watch(reader: int) -> None:
  number = os.read(reader, 1)[0]
  deadline = time.monotonic() + GRACE_SECONDS
  while select.select([reader], [], [], max(0, deadline - time.monotonic()))[0]:
    if os.read(reader, 1)[0] != signal.SIGALRM:
      break
  if not _said.is_set():
    say_stopped('ended at once; the same command again goes on')
  os._exit(128 + number)
