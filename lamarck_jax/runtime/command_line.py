"""What the command-line programs share: flags, and errors in one line.

Bad input ends a program with exit status 2, a file that cannot be written with 1.
"""

from collections.abc import Callable
import difflib
import gc
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
  'Directory of compiled programs, shared by all searches; empty for none;'
  ' ~/.cache/lamarck_jax/xla by default.'
)


def run(
  main: Callable[[list[str]], None], default_config: str | None = None
) -> NoReturn:
  """Parses the flags, calls a program's main function, and exits.

  Args:
    main: Takes the program's name and the arguments that are not flags. It may raise
      UserError or StorageError.
    default_config: Configuration file where --config is not given. If None, --config
      is required of a program that defines it.
  """
  # Until `signals.install`, Ctrl-C ends the program at once and without a traceback.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  # Not the flag's own default: ml_collections would load it even if not used.
  if default_config and not any(map(_is_config_flag, sys.argv[1:])):
    sys.argv.insert(1, f'--config={default_config}')

  def guarded_main(argv: list[str]) -> None:
    # absl would show JAX's messages about platforms that are not there.
    logging.getLogger('jax').setLevel(logging.WARNING)
    try:
      main(argv)
    except UserError as error:
      _exit(error, status=2)
    except StorageError as error:
      _exit(error, status=1)
    finally:
      # Python would look through all objects for cycles as it ends, for half a second.
      gc.freeze()

  app.run(guarded_main, flags_parser=_parse_flags)
  raise AssertionError  # app.run exits.


def _is_config_flag(argument: str) -> bool:
  return argument.lstrip('-').split('=')[0] == 'config'


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    arguments = flags.FLAGS(argv)
    if 'config' in flags.FLAGS:
      if flags.FLAGS.config is None:
        raise UserError('config: got nothing, want a configuration file')
      # The first access loads the file, and raises if that is impossible.
      flags.FLAGS.config.lock()
    return arguments
  # Configuration files are executed while flags are parsed, and raise anything.
  except Exception as error:
    known = 'config' in flags.FLAGS and (_missing_file(argv) or _wrong_field(argv))
    _exit(known or error, status=2)


def _missing_file(argv: list[str]) -> UserError | None:
  """Returns the error of a configuration file that does not exist, if one is given."""
  for argument in argv:
    match = re.fullmatch(r'--?config=(.+?)(:.*)?', argument)
    if match and not (path := pathlib.Path(match[1])).exists():
      others = sorted(map(str, path.parent.glob('*.py')))
      wanted = f'one of {", ".join(others)}' if others else 'a configuration file'
      return UserError(f'config: got {match[1]!r}, which does not exist, want {wanted}')
  return None


def _wrong_field(argv: list[str]) -> UserError | None:
  """Returns the error of a flag for a field that has no value, if one is given."""
  fields = config_lib.field_names(config_lib.get_config())
  for argument in argv:
    match = re.fullmatch(r'--?(?:no)?config\.([^=]+)(=.*)?', argument)
    if not match or match[1] in fields:
      continue
    inside = [field for field in fields if field.startswith(f'{match[1]}.')]
    if inside:
      return UserError(
        f'config.{match[1]}: got one value, want one for {" or ".join(inside)}'
      )
    close = difflib.get_close_matches(match[1], fields, n=1)
    wanted = f'a field such as {close[0]}' if close else f'one of {", ".join(fields)}'
    return UserError(f'config: got unknown field {match[1]!r}, want {wanted}')
  return None


def _exit(error: Exception, status: int) -> NoReturn:
  """Prints an error in one line and exits."""
  message = ' '.join(str(error).replace('\\n', ' ').split())
  print(f'error: {message}', file=sys.stderr)
  sys.exit(status)
