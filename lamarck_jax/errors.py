"""The errors that end a program with a line instead of a traceback."""


class UserError(Exception):
  """Bad input; the message is one line, and a command ends with exit status 2."""


class StorageError(Exception):
  """Files cannot be written; one line, exit status 1. What was recorded is whole."""


class DatasetError(UserError):
  """A data set cannot be had as asked; the message says why and what helps."""


class DamagedError(UserError):
  """A file of a run directory is not what was written."""
