"""dataset.json: the data set that a run was started with.

It is written at the first start, and every start that trains compares its data with it.
So that a finished run can be used without its data, it has all that a network needs to
know of them, and paths that lead to them from every folder.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from lamarck_jax.data import datasets, fingerprint, own_images
from lamarck_jax.data.datasets import Dataset
from lamarck_jax.data.fingerprint import Fingerprint
from lamarck_jax.data.source import Source
from lamarck_jax.errors import DamagedError, UserError
from lamarck_jax.run_directory import durable, weights

FILE_NAME = 'dataset.json'
FORMAT_VERSION = 1

# Fields of `config.dataset` that are paths; a name is one if it is of own images.
_PATHS = ('name', 'data_dir', 'manual_dir')


@dataclasses.dataclass(frozen=True)
class DatasetRecord:
  """The data set of a run.

  Attributes:
    as_typed: `name`, `data_dir` and `manual_dir` of its configuration.
    absolute: The same with absolute paths.
    fingerprint: What identifies it.
  """

  as_typed: Mapping[str, str | None]
  absolute: Mapping[str, str | None]
  fingerprint: Fingerprint

  @property
  def description(self) -> dict[str, Any]:
    """What a person wants to know of it, ready for JSON."""
    return {
      'name': self.as_typed['name'],
      'location': self.absolute['name'],
      **self.fingerprint.description,
      'mean': list(self.fingerprint.mean),
      'std': list(self.fingerprint.std),
    }


def read(workdir: str | os.PathLike[str]) -> DatasetRecord | None:
  """Returns the data set of a run, or None if it is not recorded.

  Raises:
    DamagedError: If dataset.json is not what was written.
  """
  path = pathlib.Path(workdir, FILE_NAME)
  content = durable.read_json(path)
  if content is None:
    return None
  try:
    if content.get('format_version') != FORMAT_VERSION:
      raise ValueError(f'format_version {content.get("format_version")!r}')
    if content.pop('sha256', None) != _digest(content):
      raise ValueError('another sha256 than its content')
    as_typed, absolute = (
      {field: _text(content[key][field]) for field in _PATHS}
      for key in ('as_typed', 'absolute')
    )
    return DatasetRecord(as_typed, absolute, Fingerprint.from_json(content))
  except (LookupError, TypeError, ValueError) as error:
    raise DamagedError(
      f'dataset: got {path} damaged ({error}), want it as written; where the data are'
      ' surely the same as ever, remove it to have it written anew'
    ) from error


def write(folder: durable.Folder, record: DatasetRecord) -> None:
  """Records the data set of a run, which has not been recorded yet.

  Raises:
    StorageError: If it cannot be written.
  """
  content = {
    'format_version': FORMAT_VERSION,
    'as_typed': dict(record.as_typed),
    'absolute': dict(record.absolute),
    **record.fingerprint.to_json(),
  }
  # As JSON has it, with lists for tuples.
  content = json.loads(json.dumps(content))
  content['sha256'] = _digest(content)
  folder.write_json(FILE_NAME, content)


def load(
  section: Mapping[str, Any],
  workdir: str | os.PathLike[str],
  source: Source | None = None,
) -> tuple[Dataset, DatasetRecord]:
  """Reads the data set of a run; checks that it is the one the run was started with.

  Args:
    section: `config.dataset`. Where a relative path leads nowhere from the current
      folder, it leads to where it led when the run was started.
    workdir: The run directory; it need not exist.
    source: The data set, if the program has it as arrays.

  Returns:
    The data set, and its record.

  Raises:
    UserError: If it differs from the run's.
    DatasetError: If it cannot be had.
  """
  recorded = read(workdir)
  section = _located(section, recorded)
  dataset = datasets.load(**section, source=source)
  taken = DatasetRecord(
    recorded.as_typed if recorded else {field: section[field] for field in _PATHS},
    {field: _absolute(field, section[field]) for field in _PATHS},
    fingerprint.take(dataset),
  )
  if recorded:
    check(workdir, recorded, taken)
  else:
    _check_older(workdir, taken)
  return dataset, taken


def check(
  workdir: str | os.PathLike[str], recorded: DatasetRecord, found: DatasetRecord
) -> None:
  """Checks that a data set is the one that a run was started with.

  Raises:
    UserError: If it is not, with what differs.
  """
  _refuse(
    recorded.fingerprint.differences(found.fingerprint),
    workdir,
    found,
    f'{recorded.as_typed["name"]} as it was then',
  )


def check_finished(
  section: Mapping[str, Any],
  workdir: str | os.PathLike[str],
  source: Source | None = None,
) -> bool:
  """Checks the data set of a finished run if the configuration leads to other files.

  A finished run does without its data, so they are not read otherwise.

  Args:
    section: `config.dataset`.
    workdir: The run directory.
    source: The data set, if the program has it as arrays; these are compared always.

  Returns:
    Whether the data were compared.

  Raises:
    UserError: If the data set is another one, or cannot be read.
  """
  compared = source is not None or not _is_at_recorded_place(section, read(workdir))
  if compared:
    load(section, workdir, source)
  return compared


def needs_check(section: Mapping[str, Any], workdir: str | os.PathLike[str]) -> bool:
  """Returns whether `check_finished` will read the data of a run."""
  try:
    return not _is_at_recorded_place(section, read(workdir))
  except UserError:
    return True


def may_be_same(workdir: str | os.PathLike[str], name: str, other: str) -> bool:
  """Returns whether two names may mean one data set, that of a run.

  Own images may have moved, and a path has many spellings. `load` finds out whether
  they are the same for a run that has recorded them; for older ones the path decides.
  """
  if own_images_prefix(name) is None or name == other:
    return name == other
  if own_images_prefix(name) != own_images_prefix(other):
    return False
  recorded = pathlib.Path(workdir, FILE_NAME).exists()
  return recorded or _absolute('name', name) == _absolute('name', other)


def own_images_prefix(name: str) -> str | None:
  """Returns `npz:` or `folder:` if a name is one of own images."""
  return next((p for p in own_images.PREFIXES if name.startswith(p)), None)


def with_absolute_paths(section: Mapping[str, Any]) -> dict[str, Any]:
  """Returns `config.dataset` for a process with another current folder."""
  return {**section, **{field: _absolute(field, section[field]) for field in _PATHS}}


def _is_at_recorded_place(
  section: Mapping[str, Any], recorded: DatasetRecord | None
) -> bool:
  name = _located(section, recorded)['name']
  # An older run has no record, and `may_be_same` has compared the paths.
  return recorded is None or _absolute('name', name) == recorded.absolute['name']


def _located(
  section: Mapping[str, Any], recorded: DatasetRecord | None
) -> dict[str, Any]:
  """Returns `config.dataset` with paths that lead to the data from here."""
  located = dict(section)
  for field in _PATHS if recorded else ():
    _, path = _split(field, section[field])
    typed_again = recorded and recorded.as_typed[field] == section[field]
    if recorded and path and typed_again and not os.path.exists(path):
      located[field] = recorded.absolute[field]
  return located


def _absolute(field: str, value: str | None) -> str | None:
  prefix, path = _split(field, value)
  return f'{prefix}{os.path.abspath(path)}' if path else value


def _split(field: str, value: str | None) -> tuple[str, str | None]:
  """Returns what precedes the path of a field, and the path, if it has one."""
  prefix = ''
  if field == 'name' and value is not None:
    prefix = own_images_prefix(value) or value
  path = (value or '')[len(prefix) :]
  return prefix, os.path.expanduser(path) or None


def _check_older(workdir: str | os.PathLike[str], found: DatasetRecord) -> None:
  """Compares a data set with what is known of that of a run without dataset.json."""
  path = pathlib.Path(workdir)
  try:
    described = (durable.read_json(path / 'environment.json') or {}).get('dataset')
  except DamagedError:
    described = None
  if isinstance(described, dict):
    differences = fingerprint.described_differences(
      described, found.fingerprint.description
    )
  else:
    classes, trained = len(found.fingerprint.class_names), _trained_classes(path)
    agree = trained in (None, classes)
    differences = [] if agree else [f'{classes} classes instead of {trained}']
  _refuse(differences, workdir, found, 'unchanged')


def _trained_classes(workdir: pathlib.Path) -> int | None:
  """Returns the number of classes of a run's networks, or None if it has none yet."""
  if not (workdir / 'weights').is_dir():
    return None
  folder = durable.Folder.open(workdir / 'weights')
  for name in filter(weights.parse_file_name, folder.names()):
    with contextlib.suppress(DamagedError, LookupError, TypeError):
      return len(weights.read(folder, name)['params']['classifier']['dense']['bias'])
  return None


def _refuse(
  differences: list[str],
  workdir: str | os.PathLike[str],
  found: DatasetRecord,
  wanted: str,
) -> None:
  if differences:
    raise UserError(
      f'dataset: got {found.absolute["name"]} with {", ".join(differences)}, want the'
      f' data set that {os.fspath(workdir)} was started with, {wanted}'
    )


def _digest(content: Mapping[str, Any]) -> str:
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _text(value: Any) -> str | None:
  if not isinstance(value, str | None):
    raise ValueError(f'got {value!r}, want text')
  return value
