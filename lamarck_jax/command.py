"""What the command-line programs share: flags, and errors that are one line.

Bad input ends with exit status 2, files that cannot be written with 1.
"""

from collections.abc import Callable
import logging
import sys
from typing import NoReturn

from absl import app, flags

from lamarck_jax.errors import StorageError, UserError

XLA_CACHE_DIR_HELP = (
  'Folder for compiled programs, for all searches together; empty for none;'
  ' ~/.cache/lamarck_jax/xla by default.'
)


def run(
  main: Callable[[list[str]], None], default_config: str | None = None
) -> NoReturn:
  """Parses the flags, calls a program's main function, and exits.

  Args:
    main: Gets the arguments that are no flags, after the program's name. It may
      raise UserError. Flag --config has its configuration.
    default_config: The configuration file where --config is not given; None: it must
      be, if the program has the flag. It is no default of the flag, which
      ml_collections would load in any case.
  """

  def guarded_main(argv: list[str]) -> None:
    # Absl shows what JAX says of devices that are not there.
    logging.getLogger('jax').setLevel(logging.WARNING)
    try:
      main(argv)
    except UserError as error:
      _refuse(error)
    except StorageError as error:
      print(f'error: {error}', file=sys.stderr)
      sys.exit(1)

  given = any(arg.lstrip('-').split('=')[0] == 'config' for arg in sys.argv[1:])
  if default_config and not given:
    sys.argv.insert(1, f'--config={default_config}')
  app.run(guarded_main, flags_parser=_parse_flags)
  raise AssertionError  # absl has exited.


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    arguments = flags.FLAGS(argv)
    if 'config' in flags.FLAGS:
      if flags.FLAGS.config is None:
        raise UserError('config: missing, want a configuration file')
      flags.FLAGS.config.lock()  # A file that cannot be loaded fails at first use.
    return arguments
  # Configuration files run while flags are parsed, and raise what they like.
  except Exception as error:
    _refuse(error)


def _refuse(error: Exception) -> NoReturn:
  """Prints an error in one line and exits with status 2."""
  message = ' '.join(str(error).replace('\\n', ' ').split())
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)
