"""Tests of `stopwatch`."""

import signal
import subprocess
import sys
import time

from lamarck_jax.runtime import stopwatch


def test_the_phases_add_up():
  watch = stopwatch.Stopwatch()
  time.sleep(0.01)
  watch.lap('compile')
  watch.lap('train')
  assert watch.seconds.keys() == {'total', 'compile', 'train'}
  assert watch.seconds['compile'] >= 0.01
  phases = watch.seconds['compile'] + watch.seconds['train']
  assert abs(watch.seconds['total'] - phases) < 1e-3
  assert watch.elapsed >= 0.01


def test_an_active_clock_stands_still_while_nobody_can_read_it():
  now = 100.0
  clock = stopwatch.ActiveClock(lambda: now)
  start = clock()
  for gap in (0.5, 0.5, 1.5, 3600, 0.5, 7200, 0.5):  # Two of them are suspensions.
    now += gap
    clock()
  assert 3.5 <= clock() - start < 6


def test_the_time_of_a_stopped_process_does_not_count():
  program = """
import time
from lamarck_jax.runtime import stopwatch
watch = stopwatch.Stopwatch()
start = time.monotonic()
print('started', flush=True)
while time.monotonic() < start + 4:
  time.sleep(0.1)
print(watch.elapsed)
"""
  process = subprocess.Popen(
    [sys.executable, '-c', program], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == 'started\n'
  process.send_signal(signal.SIGSTOP)
  time.sleep(3.5)
  process.send_signal(signal.SIGCONT)
  elapsed, _ = process.communicate(timeout=60)
  assert float(elapsed) < 2
