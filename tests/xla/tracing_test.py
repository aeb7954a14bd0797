"""Tracing lets other threads have the interpreter."""

import contextlib
import sys
import threading
import time

import pytest

from lamarck_jax.xla import tracing


@pytest.fixture(autouse=True)
def pythons_interval():
  interval = sys.getswitchinterval()
  yield
  sys.setswitchinterval(interval)


@pytest.mark.parametrize('error', [None, KeyError, KeyboardInterrupt])
def test_the_interval_holds_while_something_is_traced(error):
  sys.setswitchinterval(5e-3)
  with contextlib.suppress(*[error] * (error is not None)), tracing.exclusive():
    assert sys.getswitchinterval() == pytest.approx(tracing.SWITCH_INTERVAL)
    if error:
      raise error
  assert sys.getswitchinterval() == pytest.approx(5e-3)


def test_a_shorter_interval_of_the_caller_stays():
  sys.setswitchinterval(1e-5)
  with tracing.exclusive():
    assert sys.getswitchinterval() == pytest.approx(1e-5)
  assert sys.getswitchinterval() == pytest.approx(1e-5)


def waits(context) -> list[float]:
  """Seconds that a thread waits for the interpreter, beside one that computes."""
  begun, done = threading.Event(), threading.Event()

  def compute():
    with context:
      begun.set()
      while not done.is_set():
        sum(range(100))

  thread = threading.Thread(target=compute)
  thread.start()
  begun.wait()
  seconds = []
  try:
    for _ in range(20):
      start = time.perf_counter()
      time.sleep(2e-3)  # Gives the interpreter away, and wants it back.
      seconds.append(time.perf_counter() - start - 2e-3)
  finally:
    done.set()
    thread.join()
  return sorted(seconds)


def test_a_thread_that_starts_programs_waits_shortly():
  # Of the quicker waits, since a busy machine adds to any of them.
  sys.setswitchinterval(20e-3)
  assert waits(contextlib.nullcontext())[10] > 15e-3
  assert waits(tracing.exclusive())[5] < 5e-3
