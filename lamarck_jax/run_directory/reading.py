"""Reads a run directory without changing it, also while a search writes to it."""

from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any

from lamarck_jax import config as config_lib
from lamarck_jax.errors import DamagedError, UserError
from lamarck_jax.run_directory import dataset_record, digests, durable, events, lock

FORMAT_VERSION = 3
# A run keeps the version that it was started with; version 2 had no digests.
_VERSIONS = (2, 3)


def check(path: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
  """Checks, without writing, that a directory holds this run or can become its own.

  Args:
    path: The directory; it need not exist.
    config: The configuration as nested dictionaries.

  Raises:
    UserError: If it holds a run with another configuration, or other files.
  """
  path = pathlib.Path(path)
  config_path = path / 'config.json'
  try:
    if not config_path.exists():
      # A crash while config.json was written leaves its temporary file.
      if path.exists() and not all(map(_is_left_by_a_crash, path.iterdir())):
        raise UserError(
          f'workdir: got {path} with files but no config.json, want a run directory, or'
          ' an empty or new one'
        )
      return
  except OSError as error:
    raise unusable(path, error) from error
  stored = read_config(path)
  differing = config_lib.differing_fields(_as_json(config), stored)
  if 'dataset.name' in differing and dataset_record.may_be_same(
    path, config['dataset']['name'], str(stored['dataset']['name'])
  ):
    differing.remove('dataset.name')
  if differing:
    raise UserError(
      f'workdir: got {path}, want another directory: the config of its run differs in'
      f' {", ".join(differing)}; give one with'
      ' --workdir=DIR (in Python workdir=DIR)'
    )


def read_events(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the events of a run, oldest first; the run may still be going on.

  Args:
    path: The run directory.

  Raises:
    UserError: If a line is damaged, or it is no run directory.
  """
  return _read_events(pathlib.Path(path)).events


def read_result(path: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Returns the outcome of a run, or None while there is none.

  Args:
    path: The run directory.

  Raises:
    DamagedError: If it is damaged, or belongs to another configuration or other events.
  """
  path = pathlib.Path(path)
  result = durable.read_json(path / 'result.json')
  if result is None or (run := run_digest(path)) is None:
    return result
  bound = {digests.CONFIG: run, digests.EVENTS: _read_events(path).digest}
  return digests.unsealed(path / 'result.json', result, bound)


def _read_events(path: pathlib.Path) -> events.Parsed:
  run = run_digest(path)
  try:
    folder = durable.Folder.open(path)
  except OSError as error:
    raise unusable(path, error) from error
  return events.read(folder, run)


def read_environment(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns `dataset` and `starts` of a run; empty if they are unknown.

  Args:
    path: The run directory.
  """
  environment = _read_environment(path)
  try:
    recorded = dataset_record.read(path)
  except DamagedError:
    recorded = None  # A start of the search says so.
  return {**environment, 'dataset': recorded.description} if recorded else environment


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the configuration of a run, as JSON has it.

  Fields that were added after the run was started have their defaults.

  Args:
    path: The run directory.

  Raises:
    UserError: If there is none, or it is of another format version.
  """
  return _as_json(config_lib.with_defaults(_stored_config(path)[1]))


def run_digest(path: pathlib.Path) -> str | None:
  """Returns the digest of a run's configuration; None for a run without digests."""
  version, config = _stored_config(path)
  return digests.of_config(config, config_lib.LOCATIONS) if version > 2 else None


def _stored_config(path: str | os.PathLike[str]) -> tuple[int, dict[str, Any]]:
  """Returns the format version of a run, and its configuration as it was written."""
  config_path = pathlib.Path(path) / 'config.json'
  try:
    content = durable.read_json(config_path)
  except DamagedError:
    content = None
  match content:
    case {'format_version': int(version), 'config': dict(config)} if (
      version in _VERSIONS
    ):
      return version, config
  raise UserError(
    f'workdir: got {config_path}, want a configuration of format version'
    f' {" or ".join(map(str, _VERSIONS))}'
  )


def _read_environment(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns environment.json; empty if it is damaged, since no result depends on it."""
  try:
    content = durable.read_json(pathlib.Path(path) / 'environment.json')
  except DamagedError:
    return {}
  parts = {'dataset': dict, 'starts': list}
  content = content or {}
  return {
    key: content[key] for key in parts if isinstance(content.get(key), parts[key])
  }


def _is_left_by_a_crash(path: pathlib.Path) -> bool:
  """Returns whether a crash before config.json was written can leave a file."""
  return path.name == lock.FILE_NAME or durable.temporary_of(path.name) == 'config.json'


def read_starts(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the starts of a run, see `RunDirectory.write_start`."""
  return _read_environment(path).get('starts', [])


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a configuration as it is read back from JSON: tuples become lists."""
  return json.loads(json.dumps(config))


def unusable(path: pathlib.Path, error: OSError) -> UserError:
  """Returns the error of a directory that cannot be opened."""
  return UserError(
    f'workdir: got {error.strerror} opening {path}, want a writable directory'
  )
