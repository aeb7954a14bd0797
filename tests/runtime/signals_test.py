"""Tests of `signals` and `dropped_signals`, in programs of their own."""

import subprocess
import sys
import textwrap

import pytest


def run(body: str, hangup: str = 'SIG_DFL') -> subprocess.CompletedProcess:
  """Runs a program that installs the handlers and exits with the signal's status.

  `hangup` is what SIGHUP does before.
  """
  program = 'import gc, os, signal, time\n'
  program += f'signal.signal(signal.SIGHUP, signal.{hangup})\n'
  program += 'from lamarck_jax.runtime import dropped_signals, signals\n'
  program += 'signals.install()\ntry:\n' + textwrap.indent(body, '  ')
  program += '\n  time.sleep(30)\nexcept signals.Stopped as stopped:\n'
  program += '  raise SystemExit(stopped.status)\n'
  return subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, timeout=60
  )


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP'])
def test_a_signal_is_an_exception_in_the_main_thread(name):
  result = run(f'os.kill(os.getpid(), signal.{name})')
  assert (result.returncode, result.stderr) == (
    {'SIGINT': 130, 'SIGTERM': 143, 'SIGHUP': 129}[name],
    '',
  )


def test_a_closed_terminal_ends_no_program_that_nohup_has_started():
  body = 'signal.raise_signal(signal.SIGHUP)\n'
  result = run(body + 'signal.raise_signal(signal.SIGTERM)', hangup='SIG_IGN')
  assert (result.returncode, result.stderr) == (143, '')


def test_a_program_ends_though_nobody_can_be_told():
  """A terminal that is closed takes standard error with it."""
  result = run(
    'import sys\n'
    'sys.stderr = open("/dev/full", "w")\n'
    'try:\n'
    '  signal.raise_signal(signal.SIGHUP)\n'
    'except signals.Stopped:\n'
    '  signals.say_stopped("stopped")\n'
    'os._exit(0)'
  )
  assert result.returncode == 0


_DURING_GARBAGE_COLLECTION = """
def callback(phase, info):
  gc.callbacks.clear()
  signal.raise_signal(signal.SIGTERM)
gc.callbacks.append(callback)
gc.collect()
"""
_DURING_A_FINALIZER = """
class Finalized:
  def __del__(self):
    signal.raise_signal(signal.SIGTERM)
Finalized()
"""


@pytest.mark.parametrize('retry_seconds', [0.01, 1e-6])
@pytest.mark.parametrize('body', [_DURING_GARBAGE_COLLECTION, _DURING_A_FINALIZER])
def test_a_signal_is_not_lost_where_python_drops_exceptions(body, retry_seconds):
  """The shortest time has passed before the hook that starts the timer returns."""
  result = run(f'dropped_signals.RETRY_SECONDS = {retry_seconds}{body}')
  assert (result.returncode, result.stderr) == (143, '')


def test_other_exceptions_in_finalizers_are_still_shown():
  result = run(
    'class Finalized:\n'
    '  def __del__(self):\n'
    '    raise ValueError("wrong")\n'
    'Finalized()\n'
    'signal.raise_signal(signal.SIGINT)'
  )
  assert result.returncode == 130
  assert 'ValueError: wrong' in result.stderr


def test_a_second_signal_ends_a_busy_program_at_once():
  result = run(
    'try:\n'
    '  signal.raise_signal(signal.SIGTERM)\n'
    'except signals.Stopped:\n'
    '  try:\n'
    '    signal.raise_signal(signal.SIGTERM)\n'
    '  except signals.Stopped:\n'
    '    pass'
  )
  assert result.returncode == 143
  assert 'ended at once' in result.stderr
