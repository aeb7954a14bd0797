"""What the command-line programs share: flags, and errors that are one line.

Bad input ends with exit status 2, files that cannot be written with 1.
"""

from collections.abc import Callable
import difflib
import logging
import pathlib
import re
import signal
import sys
from typing import NoReturn

from absl import app, flags

from lamarck_jax import config as config_lib
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

  # Until there is something to end in order, Ctrl-C ends a program without a trace.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
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
    _refuse(_explained(argv) or error)


def _explained(argv: list[str]) -> UserError | None:
  """Returns what is wrong with the flags of a configuration, if that can be seen."""
  if 'config' not in flags.FLAGS:
    return None
  values = [re.fullmatch(r'--?config=(.+?)(:.*)?', argument) for argument in argv]
  for path in (pathlib.Path(match[1]) for match in values if match):
    if not path.exists():
      others = sorted(str(other) for other in path.parent.glob('*.py'))
      there = f'; there are {", ".join(others)}' if others else ''
      return UserError(f'config: no such file: {path}{there}')
  fields = config_lib.field_names(config_lib.get_config())
  for argument in argv:
    match = re.fullmatch(r'--?(?:no)?config\.([^=]+)(=.*)?', argument)
    if not match or match[1] in fields:
      continue
    inside = [name for name in fields if name.startswith(f'{match[1]}.')]
    if inside:
      return UserError(f'config.{match[1]}: has fields of its own: {", ".join(inside)}')
    close = difflib.get_close_matches(match[1], fields, n=1)
    hint = f'is it {close[0]}?' if close else f'there are {", ".join(fields)}'
    return UserError(f'config.{match[1]}: no such field; {hint}')
  return None


def _refuse(error: Exception) -> NoReturn:
  """Prints an error in one line and exits with status 2."""
  message = ' '.join(str(error).replace('\\n', ' ').split())
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)
