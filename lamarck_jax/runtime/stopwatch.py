"""The phases of an evaluation, in seconds."""

import time


class Stopwatch:
  """Measures phases that follow one another.

  Attributes:
    seconds: Duration of every phase so far, and their `total`.
  """

  def __init__(self) -> None:
    self._start = self._last = time.monotonic()
    self.seconds = {'total': 0.0}

  @property
  def elapsed(self) -> float:
    """Seconds since the start."""
    return time.monotonic() - self._start

  def lap(self, phase: str) -> None:
    """Ends a phase."""
    now = time.monotonic()
    self.seconds[phase] = round(now - self._last, 4)
    self.seconds['total'] = round(self.seconds['total'] + now - self._last, 4)
    self._last = now
