"""The process that workers of this machine are forked from.

It imports JAX and what belongs to it once for all of them, which takes a second or two
of a core, and while the search imports the same. It initialises no device, so each
worker still chooses its own. Nothing here imports JAX, since it is started before that.
"""

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

# Not this package: the process looks for modules in the working directory first, where
# another version of it may lie. Workers import it from where the search did.
_IMPORTED = ['flax.linen', 'jax', 'ml_collections', 'optax']


def start() -> ForkServerContext:
  """Begins to start it, unless it runs; returns the context that forks from it.

  Where JAX's settings are environment variables, workers have those of its start.
  """
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(_IMPORTED)
  forkserver.ensure_running()
  return context
