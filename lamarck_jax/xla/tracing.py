"""Tracing in one thread while another one trains.

Tracing is Python, and needs the interpreter; so does each start of a program. A thread
that wants the interpreter from one that computes waits for the switch interval, by
default 5 ms: beside tracing, a step of one to six tiny blocks took 22 to 99 ms instead
of 0.1 to 0.4 (docs/performance.md).
"""

from collections.abc import Iterator
import contextlib
import sys
import threading

# Seconds after which a thread that traces gives the interpreter away. With a tenth of
# it steps are some 40% shorter, and tracing takes half as long again.
SWITCH_INTERVAL = 1e-4

# Of the process, as the interpreter is: threads that trace would take it in turn.
_LOCK = threading.Lock()


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
  """Lets one thread trace at a time, and others have the interpreter meanwhile."""
  with _LOCK:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(min(interval, SWITCH_INTERVAL))
    try:
      yield
    finally:
      sys.setswitchinterval(interval)
