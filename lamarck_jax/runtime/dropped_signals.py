"""Raises the exception of a signal handler again where CPython has dropped it.

CPython runs signal handlers in the main thread, between any two bytecodes. If these
belong to a finalizer, a weak reference's callback or a callback of the garbage
collector, there is no caller to which an exception could propagate: it is passed to
`sys.unraisablehook`, and the program continues as if there had been no signal
(https://github.com/python/cpython/issues/95959; documented at `object.__del__` and
`sys.unraisablehook`). JAX registers such a callback in `gc.callbacks`.
"""

from collections.abc import Callable
import functools
import signal
import sys
import types

# From the dropped exception to the first attempt to raise it again.
RETRY_SECONDS = 0.01
# Between attempts.
_INTERVAL_SECONDS = 0.01


def raise_again(exception_type: type[BaseException]) -> None:
  """Makes dropped exceptions of a type be raised again, shortly afterwards.

  It uses SIGALRM and the real-time timer, and must be called in the main thread.

  Args:
    exception_type: The type, which only signal handlers raise; its constructor takes
      the `args` of its instances.
  """
  sys.unraisablehook = functools.partial(_hook, sys.unraisablehook, exception_type)


def _hook(
  previous_hook: Callable[['sys.UnraisableHookArgs'], object],
  exception_type: type[BaseException],
  unraisable: 'sys.UnraisableHookArgs',
) -> None:
  dropped = unraisable.exc_value
  if not isinstance(dropped, exception_type):
    previous_hook(unraisable)
    return
  # A copy, since the dropped exception holds the frames of its traceback.
  exception = exception_type(*dropped.args)
  signal.signal(signal.SIGALRM, functools.partial(_raise_outside_hook, exception))
  signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS, _INTERVAL_SECONDS)


def _raise_outside_hook(
  exception: BaseException, alarm: int, frame: types.FrameType | None
) -> None:
  """Raises the exception, unless the alarm has interrupted the hook itself.

  CPython would drop it there once more, without calling the hook; the timer's next
  alarm tries again.
  """
  while frame:
    if frame.f_code is _hook.__code__:
      return
    frame = frame.f_back
  signal.setitimer(signal.ITIMER_REAL, 0)
  raise exception
