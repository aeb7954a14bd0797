"""The files of a run and of a study, as the analysis and the report need them.

They may come from anybody, so everything that is used of them is checked here, where it
is read; what follows can rely on it.
"""

from collections.abc import Callable, Mapping
import pathlib
import re
from typing import Any, NamedTuple

from lamarck_jax.errors import DamagedError, UserError
from lamarck_jax.run_directory import digests, durable, records

# A setting's name is a folder's, and part of links. `--settings` takes no dots, but
# there are studies with some.
_SETTING_NAME = '[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}'
_LIMIT = 1e300


class Field(NamedTuple):
  """What a field has to be.

  Attributes:
    want: The same in words.
    fits: Whether a value is that.
    required: Whether it may not be missing.
  """

  want: str
  fits: Callable[[Any], bool]
  required: bool = True


def is_number(value: Any) -> bool:
  """Returns whether a value is a number that a float can hold; JSON has others."""
  return type(value) in (int, float) and -_LIMIT < value < _LIMIT


def is_count(value: Any) -> bool:
  """Returns whether a value is an integer of at least 0."""
  return type(value) is int and 0 <= value < _LIMIT


def is_accuracy(value: Any) -> bool:
  """Returns whether a value is a number in [0, 1]."""
  return is_number(value) and 0 <= value <= 1


def is_text(value: Any) -> bool:
  """Returns whether a value is text."""
  return type(value) is str


def is_seed(value: Any) -> bool:
  """Returns whether a value is an integer of 64 bits."""
  return type(value) is int and -(2**63) <= value < 2**63


def is_setting_name(value: Any) -> bool:
  """Returns whether a value is a name that a setting may have."""
  return is_text(value) and re.fullmatch(_SETTING_NAME, value) is not None


def list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
  """Returns a check of a list, whose values have to fit."""
  return lambda value: type(value) is list and all(map(fits, value))


def mapping_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
  """Returns a check of a JSON object, whose values have to fit."""
  return lambda value: type(value) is dict and all(map(fits, value.values()))


def or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
  """Returns a check of a value that may be None."""
  return lambda value: value is None or fits(value)


def is_network(value: Any) -> bool:
  """Returns whether a value is a list of blocks (filters, kernel size, stride)."""
  is_block = list_of(lambda number: is_count(number) and 0 < number < 2**31)
  are_blocks = list_of(lambda block: is_block(block) and len(block) == 3)
  return bool(value) and are_blocks(value)


def is_object_of(fields: Mapping[str, Field]) -> Callable[[Any], bool]:
  """Returns a check of a JSON object that has these fields."""

  def fits(value: Any) -> bool:
    return type(value) is dict and not any(
      field.required if name not in value else not field.fits(value[name])
      for name, field in fields.items()
    )

  return fits


def check(
  path: pathlib.Path, content: Mapping[str, Any], fields: Mapping[str, Field]
) -> None:
  """Checks the content of a file.

  Args:
    path: The file, for messages.
    content: A JSON object of it.
    fields: What its fields have to be; it may have others.

  Raises:
    DamagedError: If a field is not what it has to be.
  """
  for name, field in fields.items():
    if name not in content and field.required:
      raise DamagedError(f'{name}: got none in {path}, want {field.want}')
    if name in content and not field.fits(content[name]):
      got = repr(content[name])
      got = got if len(got) < 60 else f'{got[:60]}...'
      raise DamagedError(f'{name}: got {got} in {path}, want {field.want}')


def printable(text: str) -> str:
  """Returns text in one line, without characters that control a terminal."""
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


_NETWORK = Field('a list of [filters, kernel size, stride]', is_network)
_ACCURACY = Field('a number from 0 to 1', is_accuracy)
_COUNT = Field('an integer of at least 0', is_count)
_COUNTS = Field('integers of at least 0', list_of(is_count))
_NUMBER = Field('a number', is_number)
_TEXT = Field('text', is_text)
_SEED = Field('an integer', is_seed)
_NAME = Field('a name of letters, digits, _, - and .', is_setting_name)
_OPTIONAL_ACCURACY = Field(
  'a number from 0 to 1, or null', or_none(is_accuracy), required=False
)
_OPTIONAL_EVALUATION = Field('an evaluation, or null', or_none(is_count))
_ACCURACIES = Field('numbers from 0 to 1', list_of(is_accuracy))

# ------------------------------------------------------------------------------
# A run
# ------------------------------------------------------------------------------

_CONFIG = {
  'setting': _TEXT,
  'seed': _SEED,
  'inheritance': _NAME,
  'budget_epochs': _COUNT,
  'epochs_per_evaluation': _COUNT,
  'fitness': _TEXT,
  'parsimony': _NUMBER,
  'dataset': Field('an object with a name', is_object_of({'name': _TEXT})),
}

_EVENT = {
  'parent': _OPTIONAL_EVALUATION,
  'niche': _OPTIONAL_EVALUATION,
  'genotype': _NETWORK,
  'mutation': Field('a list of names', list_of(is_text)),
  'fitness': _ACCURACY,
  'fitness_at_birth': _OPTIONAL_ACCURACY,
  'best_fitness': _ACCURACY,
  'best': Field('an evaluation, or null', or_none(is_count), required=False),
  'accepted': Field('true or false', lambda value: type(value) is bool),
  'failure': Field('text or null', or_none(is_text), required=False),
  'epochs_used': _COUNT,
  'flops': _COUNT,
  'seconds': Field('an object of numbers', mapping_of(is_number)),
  # Of a population.
  'generation': Field('an integer of at least 0', is_count, required=False),
  'parents': Field('evaluations', list_of(is_count), required=False),
  'crossover': Field(
    'null, or an object with mate, cut and r2',
    or_none(
      is_object_of(
        {
          'mate': _COUNT,
          'cut': Field('two counts', or_none(list_of(is_count))),
          'r2': Field('a number', or_none(is_number)),
        }
      )
    ),
    required=False,
  ),
}

_CHECKPOINT = {
  'epochs': _COUNT,
  'genotype': _NETWORK,
  'seconds': Field('a number', is_number, required=False),
  'fitness': _OPTIONAL_ACCURACY,
  'training_accuracy': _OPTIONAL_ACCURACY,
  'validation_accuracy': _OPTIONAL_ACCURACY,
  'test_accuracy': _ACCURACY,
  'test_accuracy_by_class': Field(
    'an object of accuracies', mapping_of(or_none(is_accuracy)), required=False
  ),
  'test_balanced_accuracy': _OPTIONAL_ACCURACY,
  'test_confusion': Field(
    'lists of counts', list_of(list_of(is_count)), required=False
  ),
}

_RESULT = {
  'flops': _COUNT,
  'seconds': _NUMBER,
  'best': Field('an object with a genotype', is_object_of({'genotype': _NETWORK})),
  'checkpoints': Field('completed networks', list_of(is_object_of(_CHECKPOINT))),
}


def read_config(path: pathlib.Path) -> dict[str, Any]:
  """Returns the configuration of a run.

  Args:
    path: The run directory.

  Raises:
    UserError: If there is none, or it is damaged.
  """
  try:
    config = records.read_config(path)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise DamagedError(f'file: got {path / "config.json"} with {error}') from error
  check(path / 'config.json', config, _CONFIG)
  return config


def read_events(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the events of a run, oldest first; the run may still be going on.

  Args:
    path: The run directory.

  Raises:
    UserError: If they are damaged, or there is no configuration.
  """
  events = records.read_events(path)
  for number, event in enumerate(events):
    check(path / 'events.jsonl', event, _EVENT)
    parent = max(
      [-1 if event['parent'] is None else event['parent'], *event.get('parents', [])]
    )
    if (event.get('best') or 0) > number:
      raise DamagedError(
        f'best: got {event["best"]} of evaluation {number} in {path / "events.jsonl"},'
        ' want it or an earlier one'
      )
    if parent >= number:
      raise DamagedError(
        f'parent: got {parent} of evaluation {number} in {path / "events.jsonl"}, want'
        ' an earlier evaluation'
      )
  return events


def read_result(path: pathlib.Path) -> dict[str, Any] | None:
  """Returns the outcome of a run, or None while there is none.

  Args:
    path: The run directory.

  Raises:
    UserError: If it is damaged.
  """
  result = records.read_result(path)
  if result is not None:
    check(path / 'result.json', result, _RESULT)
  return result


# ------------------------------------------------------------------------------
# A study
# ------------------------------------------------------------------------------


def _is_planned(value: Any) -> bool:
  """Returns whether a value is the name of a setting with a seed."""
  is_pair = type(value) is list and len(value) == 2
  return is_pair and is_setting_name(value[0]) and is_seed(value[1])


_PLAN = {
  'runs': Field(
    'a list of [setting, seed], a setting of letters, digits, _, - and .',
    list_of(_is_planned),
  ),
  'failures': Field('an object of text', mapping_of(is_text)),
}

_BY_EVALUATION = ('epochs', 'fitness', 'best_fitness', 'best_num_blocks')
_BY_EPOCHS = Field('accuracies by epochs', mapping_of(is_accuracy))
_RUN = {
  'seed': _SEED,
  'epochs': _COUNTS,
  'fitness': _ACCURACIES,
  'best_fitness': _ACCURACIES,
  'best_num_blocks': _COUNTS,
  'flops': _COUNT,
  'seconds': _NUMBER,
  'best': _NETWORK,
  'test_accuracy': _BY_EPOCHS,
  'training_accuracy': _BY_EPOCHS._replace(required=False),
}


def _is_run(value: Any) -> bool:
  """Returns whether a value is a run with values of the same evaluations."""
  if not is_object_of(_RUN)(value):
    return False
  lengths = {len(value[name]) for name in _BY_EVALUATION}
  return len(lengths) == 1 and lengths != {0}


_SETTING = {
  'name': _NAME,
  'inheritance': _NAME,
  'epochs_per_evaluation': _COUNT,
  'fitness': _TEXT._replace(required=False),
  'parsimony': _NUMBER._replace(required=False),
  'dataset': _TEXT._replace(required=False),
  'budget_epochs': _COUNT._replace(required=False),
  'runs': Field('runs', list_of(_is_run)),
  'missing': Field('an object of text', mapping_of(is_text)),
}

_SETTINGS = list_of(is_object_of(_SETTING))
_RESULTS = {
  'dataset': _TEXT,
  'budget_epochs': _COUNT,
  'checkpoint_epochs': _COUNTS,
  'settings': Field(
    'settings with their runs', lambda value: bool(value) and _SETTINGS(value)
  ),
}


def read_plan(path: pathlib.Path, version: int) -> dict[str, Any]:
  """Returns the plan of a study: `runs`, and `failures` by `<setting>/seed<k>`.

  No run is in it twice.

  Args:
    path: Its study.json.
    version: The latest format version that it may have.

  Raises:
    UserError: If there is none, or it is damaged or of a later format version.
  """
  try:
    plan = _read_sealed(path, version)
    check(path, plan, _PLAN)
  except UserError as error:
    raise UserError(f'study: got {path}, want the plan of a study: {error}') from error
  return {
    **plan,
    'runs': [list(run) for run in dict.fromkeys(map(tuple, plan['runs']))],
  }


def read_results(path: pathlib.Path, version: int) -> dict[str, Any]:
  """Returns the numbers of a study.

  Args:
    path: Its results.json.
    version: The latest format version that it may have.

  Raises:
    UserError: If there is none, or it is damaged or of a later format version.
  """
  try:
    content = _read_sealed(path, version)
    check(path, content, _RESULTS)
  except UserError as error:
    raise UserError(
      f'results: got {path}, want a study or its results.json: {error}'
    ) from error
  return content


def _read_sealed(path: pathlib.Path, version: int) -> dict[str, Any]:
  """Returns a JSON object without its digest and its format version.

  Raises:
    UserError: If it is not as it was written, or of a later format version.
  """
  content = durable.read_json(path)
  if content is None:
    raise UserError(f'file: got no {path}, want one')
  check(path, content, {'format_version': _COUNT})
  if content['format_version'] != 1 or digests.OWN in content:  # 1 had no digest.
    content = digests.unsealed(path, content, {})
  written = content.pop('format_version')
  if written > version:
    raise UserError(
      f'format_version: got {written} in {path}, want {version} or an earlier one'
    )
  return content
