"""A search that pauses after every evaluation, for search_speed.py.

  python -m benchmarks.stopping_search --config=FILE --workdir=DIR --xla_cache_dir=DIR

It is run_evolution.py with fewer flags, but sends itself SIGSTOP after each event, when
no phase is being timed, and continues on SIGCONT.
"""

import os
import signal

from absl import app
from ml_collections import config_flags

from lamarck_jax import search
from lamarck_jax.report import html_page
from lamarck_jax.runtime import command_line, process

_CONFIG = config_flags.DEFINE_config_file('config')
_WORKDIR = command_line.define_path('workdir', None, 'Run directory.')
_XLA_CACHE_DIR = command_line.define_path(
  'xla_cache_dir', None, 'Directory of compiled programs.'
)


def main(argv: list[str]) -> None:
  """Runs the search that the flags describe."""
  del argv
  process.configure(_CONFIG.value, _XLA_CACHE_DIR.value)
  search.run(
    _CONFIG.value,
    _WORKDIR.value,
    on_event=lambda event: os.kill(os.getpid(), signal.SIGSTOP),
  )
  html_page.write_if_possible(_WORKDIR.value)


if __name__ == '__main__':
  app.run(main)
