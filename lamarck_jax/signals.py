"""Ends a program on SIGTERM and Ctrl-C: in order at first, at once if need be.

The main thread may be inside a native call when a signal comes, and then learns of it
only afterwards. So a thread waits as well, and ends the process if the main thread has
not within a few seconds, or when a second signal comes. That is safe at any moment,
since what is recorded is whole at any moment.
"""

import os
import select
import signal
import sys
import threading
from typing import NoReturn

# Below what schedulers grant between SIGTERM and SIGKILL, 10 seconds or more.
GRACE_SECONDS = 5.0


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
  signal.set_wakeup_fd(writer)
  threading.Thread(target=_watch, args=[reader], daemon=True, name='signals').start()


def _raise_stopped(number: int, frame: object) -> NoReturn:
  raise Stopped(number)


def _watch(reader: int) -> None:
  number = os.read(reader, 1)[0]
  select.select([reader], [], [], GRACE_SECONDS)
  print('ended at once', file=sys.stderr, flush=True)
  os._exit(128 + number)
