"""Whether runs may be compared: those of a setting differ in the seed and nothing else.

A study is extended by further commands, of which each has its own flags and finds the
images as they are then.
"""

from collections.abc import Iterable, Mapping
import contextlib
import dataclasses
import json
import pathlib
from typing import Any

from lamarck_jax import config as config_lib
from lamarck_jax.data.fingerprint import Fingerprint
from lamarck_jax.errors import UserError
from lamarck_jax.run_directory import dataset_record
from lamarck_jax.study import checked_files


@dataclasses.dataclass(frozen=True)
class StartedRun:
  """What a run was started with.

  Attributes:
    path: Its directory.
    config: Its configuration, as JSON has it.
    data: What identifies its data set, if that is recorded.
  """

  path: pathlib.Path
  config: Mapping[str, Any]
  data: Fingerprint | None

  @classmethod
  def read(cls, path: pathlib.Path) -> 'StartedRun':
    """Reads a run directory.

    Raises:
      UserError: If its configuration is missing or damaged.
    """
    recorded = None
    with contextlib.suppress(UserError):  # A start of the search says so.
      recorded = dataset_record.read(path)
    return cls(
      path, checked_files.read_config(path), recorded.fingerprint if recorded else None
    )

  def differences(self, config: Mapping[str, Any]) -> list[str]:
    """Returns the fields in which a configuration differs from its.

    Left out are the seed and what has no effect in either.

    Args:
      config: Nested dictionaries of a run of the same setting.
    """
    config = json.loads(json.dumps(config))  # With lists for tuples.
    found = config_lib.differing_fields(config, self.config)
    names = config['dataset']['name'], self.config['dataset']['name']
    ignored = {'seed'}
    if dataset_record.may_be_same(self.path, *names):
      ignored.add('dataset.name')
    return [
      field
      for field in found
      if field not in ignored
      and (
        config_lib.has_effect(field, config)
        or config_lib.has_effect(field, self.config)
      )
    ]


class Consistency:
  """Compares the runs of a study with the first ones."""

  def __init__(self) -> None:
    """Begins a comparison, without runs."""
    self._settings: dict[str, StartedRun] = {}
    self._data: dict[str, StartedRun] = {}

  def check(self, setting: str, run: StartedRun) -> None:
    """Compares a run with those before.

    Raises:
      UserError: If it differs from the first run of its setting in more than the seed,
        or has other data than the first run on a data set of that name.
    """
    key = _data_key(run)
    first, with_data = self._settings.get(setting), self._data.get(key)
    if first and (fields := first.differences(run.config)):
      raise UserError(
        f'{_name(run)} differs from {_name(first)} in {", ".join(fields)}, want runs'
        ' that differ in the seed alone: remove the directory of one'
      )
    for known in (with_data, first):
      if not (known and known.data and run.data):
        continue
      if found := known.data.differences(run.data):
        raise UserError(
          f'{_name(run)} has other data than {_name(known)}, {", ".join(found)}, want'
          ' the same: remove the directory of the one with wrong data'
        )
    # Only now: a run that is left out is no measure for others.
    self._settings.setdefault(setting, run)
    if run.data:
      self._data.setdefault(key, run)


def check_extension(
  runs: Iterable[tuple[str, StartedRun]], configs: Mapping[str, Mapping[str, Any]]
) -> None:
  """Checks that a command extends a study by runs that can be compared with its runs.

  Args:
    runs: Those that the study has, each with its setting.
    configs: The command's configuration of each setting that it knows.

  Raises:
    UserError: If they differ in more than the seed.
  """
  for setting, run in runs:
    if setting in configs and (fields := run.differences(configs[setting])):
      raise UserError(
        f'workdir: got {run.path.parents[1]}, where {_name(run)} has another'
        f' {", ".join(fields)}; want the flags that it was begun with, another'
        f' --workdir, or a variant with another name, NAME=SETTING+{fields[0]}=VALUE'
      )


def _name(run: StartedRun) -> str:
  return '/'.join(run.path.parts[-2:])


def _data_key(run: StartedRun) -> str:
  """Returns what two runs have in common that should have the same data."""
  section = run.config['dataset'].items()
  kept = {k: v for k, v in section if f'dataset.{k}' not in config_lib.LOCATIONS}
  return json.dumps(kept, sort_keys=True)
