"""The process that workers of this machine are forked from.

It imports what they need once for all of them, which takes seconds, and while the
search imports the same. It initialises no device, so each worker still chooses its own.
Nothing here imports JAX, since it is started before that.
"""

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext


def start() -> ForkServerContext:
  """Begins to start it, unless it runs; returns the context that forks from it.

  Where JAX's settings are environment variables, workers have those of its start.
  """
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['lamarck_jax.workers.local'])
  forkserver.ensure_running()
  return context
