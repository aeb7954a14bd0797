"""What the command-line programs share: flags, paths, and errors in one line.

Bad input ends a program with exit status 2, a file that cannot be written with 1.
"""

from collections.abc import Callable
import difflib
import gc
import logging
import os
import pathlib
import re
import signal
import sys
from typing import NoReturn
import warnings

from absl import app, flags
from absl import logging as absl_logging

from lamarck_jax import config as config_lib
from lamarck_jax.errors import StorageError, UserError
from lamarck_jax.runtime import paths, standard_streams

# So that --help lists a flag that is defined here with those of the program.
flags.disclaim_key_flags()

XLA_CACHE_DIR_HELP = (
  'Directory of compiled programs, shared by all searches; empty for none;'
  ' ~/.cache/lamarck_jax/xla by default.'
)


def run(
  main: Callable[[list[str]], None], default_config: str | None = None
) -> NoReturn:
  """Parses the flags, calls a program's main function, and exits.

  Args:
    main: Takes the program's name and the arguments that are not flags, which are
      paths. It may raise UserError or StorageError.
    default_config: Configuration file where --config is not given. If None, --config
      is required of a program that defines it.
  """
  standard_streams.protect()
  # Until `signals.install`, Ctrl-C ends the program at once and without a traceback.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  # Not the flag's own default: ml_collections would load it even if not used.
  if default_config and not any(map(_is_config_flag, sys.argv[1:])):
    sys.argv.insert(1, f'--config={default_config}')
  # Packages warn, and PYTHONWARNINGS=error would make each warning end the program.
  if any(action == 'error' for action, *_ in warnings.filters):
    warnings.simplefilter('default')
  try:
    os.getcwd()
  except OSError:
    _exit(UserError('current directory: got one that is gone, want another'), status=2)

  def guarded_main(argv: list[str]) -> None:
    # absl would show JAX's messages about platforms that are not there.
    logging.getLogger('jax').setLevel(logging.WARNING)
    absl_logging.get_absl_handler().setFormatter(_Lines())
    try:
      _import_jax()
      main([argv[0], *(paths.local('arguments', path) for path in argv[1:])])
    except UserError as error:
      _exit(error, status=2)
    except StorageError as error:
      _exit(error, status=1)
    finally:
      # Python would look through all objects for cycles as it ends, for half a second.
      gc.freeze()

  app.run(guarded_main, flags_parser=_parse_flags)
  raise AssertionError  # app.run exits.


def define_path(name: str, default: str | None, description: str) -> flags.FlagHolder:
  """Defines a flag that is a path of the file system."""
  return flags.DEFINE(_PathParser(name), name, default, description)


class _PathParser(flags.ArgumentParser):
  """Parses a path; an empty one stays empty."""

  def __init__(self, name: str):
    self._name = name

  def parse(self, argument: str) -> str:
    return paths.local(self._name, argument) if argument else argument

  def flag_type(self) -> str:
    return 'path'


class _Lines(logging.Formatter):
  """Formats log records as the other lines of a program, without time and place."""

  def format(self, record: logging.LogRecord) -> str:
    text = super().format(record)
    is_warning = record.levelno >= logging.WARNING
    return f'{record.levelname.lower()}: {text}' if is_warning else text


def _import_jax() -> None:
  """Raises UserError if the environment has a setting of JAX with an unknown value."""
  # Only then, since reports and tables need no JAX, which takes a second.
  if not any(name.startswith('JAX_') for name in os.environ):
    return
  try:
    import jax  # noqa: F401
  except ValueError as error:
    raise UserError(f'environment: got {error}, want what JAX takes') from error


def _is_config_flag(argument: str) -> bool:
  return argument.lstrip('-').split('=')[0] == 'config'


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    argv = [*map(_with_local_config, argv)]
    arguments = flags.FLAGS(argv)
    if 'config' in flags.FLAGS:
      if flags.FLAGS.config is None:
        raise UserError('config: got nothing, want a configuration file')
      # The first access loads the file, and raises if that is impossible.
      flags.FLAGS.config.lock()
    return arguments
  except UserError as error:
    _exit(error, status=2)
  # Configuration files are executed while flags are parsed, and raise anything.
  except Exception as error:
    known = 'config' in flags.FLAGS and (_missing_file(argv) or _wrong_field(argv))
    _exit(known or error, status=2)


def _with_local_config(argument: str) -> str:
  """Returns an argument; `~` in the path of a configuration file is expanded."""
  flag, equals, path = argument.partition('=')
  if not (equals and _is_config_flag(flag)):
    return argument
  return f'{flag}={paths.local("config", path) if path else path}'


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
