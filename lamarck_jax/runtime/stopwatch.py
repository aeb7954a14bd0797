"""The phases of an evaluation in seconds, and for how long it has been running."""

from collections.abc import Callable
import functools
import threading
import time

# Between two readings of an `ActiveClock`.
_INTERVAL_SECONDS = 0.5
# A busy machine delays a reading too, as does a native call that holds the interpreter,
# but rarely for longer than this.
_LONGEST_DELAY_SECONDS = 2.0


class ActiveClock:
  """A clock that stands still while its process is stopped or its machine suspended.

  A stopped process (SIGSTOP, Ctrl-Z) computes nothing, but the machine's clock goes on.
  A thread reads this one regularly; a long gap between two readings is time in which no
  thread of the process ran.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    """Starts from a clock that returns seconds and never goes back."""
    self._clock, self._lock = clock, threading.Lock()
    self._last, self._away = clock(), 0.0

  def __call__(self) -> float:
    """Returns the time in seconds."""
    with self._lock:
      now = self._clock()
      if now - self._last > _LONGEST_DELAY_SECONDS:
        self._away += now - self._last - _INTERVAL_SECONDS
      self._last = now
      return now - self._away


@functools.cache
def _active_clock() -> ActiveClock:
  """Returns the clock of this process, which a thread reads from now on."""
  clock = ActiveClock()

  def read_regularly() -> None:
    while True:
      time.sleep(_INTERVAL_SECONDS)
      clock()

  threading.Thread(target=read_regularly, daemon=True, name='active clock').start()
  return clock


class Stopwatch:
  """Measures phases that follow one another.

  Attributes:
    seconds: Duration of every phase so far, and their `total`.
  """

  def __init__(self) -> None:
    self.seconds = {'total': 0.0}
    self._clock = _active_clock()
    self._start, self._last = self._clock(), time.monotonic()

  @property
  def elapsed(self) -> float:
    """Seconds since the start in which the process could run."""
    return self._clock() - self._start

  def lap(self, phase: str) -> None:
    """Ends a phase."""
    now = time.monotonic()
    self.seconds[phase] = round(now - self._last, 4)
    self.seconds['total'] = round(self.seconds['total'] + now - self._last, 4)
    self._last = now
