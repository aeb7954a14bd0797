"""The error that a user can put right."""


class UserError(Exception):
  """Bad input; the message is one line, and a command ends with exit status 2."""
