"""Tests of `digests`: files that were exchanged or edited are noticed."""

import json
import pathlib

import pytest

from lamarck_jax.errors import DamagedError
from lamarck_jax.run_directory import digests, lock, records
from tests.run_directory.conftest import (
  EVENTS,
  assert_same_bits,
  contents,
  make_config,
  make_variables,
  record_all,
)


def _record(path: pathlib.Path, seed: int = 0, start: int = 0) -> records.RunDirectory:
  """Records an unfinished search, and returns it as a new process sees it.

  Args:
    path: The run directory.
    seed: Its seed.
    start: Number of its weights; two searches with other ones have the same genotypes.
  """
  directory = records.RunDirectory(path, make_config(seed=seed))
  for number, event in enumerate(EVENTS):
    directory.write_weights(number, make_variables(start + number))
    directory.append_event({**event, 'seconds': {'total': start + 0.5}})
  directory.write_completing(2, make_variables(start + 3))
  return records.RunDirectory(path, make_config(seed=seed))


def _exchange(path: pathlib.Path, other: pathlib.Path, name: str) -> None:
  """Puts a file of one run into the place of another run's."""
  (path / name).write_bytes((other / name).read_bytes())


def _edit(path: pathlib.Path, old: str, new: str) -> None:
  assert old in path.read_text()
  path.write_text(path.read_text().replace(old, new))


@pytest.fixture(name='runs')
def _runs(tmp_path) -> tuple[records.RunDirectory, records.RunDirectory]:
  """Two runs that are equal but for their weights."""
  return _record(tmp_path / 'run'), _record(tmp_path / 'other', start=20)


def test_weights_of_the_same_genotype_from_another_run_are_damaged_ones(runs):
  run, other = runs
  assert_same_bits(run.read_weights(2), make_variables(2))
  _exchange(run.path, other.path, 'weights/000002.safetensors')
  with pytest.raises(DamagedError, match=r'weights_sha256: got .*000002.safetensors'):
    run.read_weights(2)
  run.read_events()
  with pytest.raises(DamagedError, match='weights_sha256'):
    run.read_weights(2)
  assert_same_bits(run.read_weights(1), make_variables(1))


@pytest.mark.parametrize('seed', [0, 1])
def test_a_completion_in_progress_belongs_to_the_weights_and_the_run(tmp_path, seed):
  run, other = (
    _record(tmp_path / 'run'),
    _record(tmp_path / 'other', seed=seed, start=0 if seed else 20),
  )
  assert_same_bits(run.read_completing(2), make_variables(3))
  _exchange(run.path, other.path, 'weights/completing_000002.safetensors')
  with pytest.raises(DamagedError, match='config_sha' if seed else 'weights_sha'):
    run.read_completing(2)


@pytest.mark.parametrize(
  'name', ['weights/completed_000002.safetensors', 'completed/000002.json']
)
def test_an_exchanged_completion_is_repeated(tmp_path, name, caplog):
  run, other = _record(tmp_path / 'run'), _record(tmp_path / 'other', start=20)
  outcome = {'test_accuracy': 0.5, 'seconds': 1.5}
  run.write_completed(2, outcome, make_variables(4))
  other.write_completed(2, outcome, make_variables(24))
  assert run.read_completed(2) == outcome
  _exchange(run.path, other.path, name)
  assert run.read_completed(2) is None
  assert 'weights_sha256' in caplog.text
  with pytest.raises(DamagedError, match='weights_sha256'):
    run.read_completed_weights(2)
  run.write_completed(2, outcome, make_variables(4))
  assert run.read_completed(2) == outcome
  _edit(run.path / 'completed' / '000002.json', '0.5', '0.9999')
  assert run.read_completed(2) is None


def test_an_edited_result_is_refused(runs):
  run, _ = runs
  run.write_result({'best': {'fitness': 0.5}, 'seconds': 1.5})
  assert records.read_result(run.path) == {'best': {'fitness': 0.5}, 'seconds': 1.5}
  path = run.path / 'result.json'
  _edit(path, '0.5', '0.9999')
  with pytest.raises(DamagedError, match=rf'sha256: got {path}'):
    records.read_result(run.path)
  path.write_text('{}')
  with pytest.raises(DamagedError, match='want None as written'):
    records.read_result(run.path)


@pytest.mark.parametrize('duration', ['"long"', '[]', 'null', '-1', 'NaN'])
def test_durations_which_no_digest_covers_have_to_be_some(tmp_path, runs, duration):
  run, _ = runs
  run.write_result({'best': 2, 'seconds': 1.5})
  run.write_completed(2, {'test_accuracy': 0.5, 'seconds': 1.5}, make_variables(4))
  for name in ('result.json', 'completed/000002.json'):
    _edit(run.path / name, '"seconds": 1.5', f'"seconds": {duration}')
  with pytest.raises(DamagedError, match=r'seconds: got .* in .*result.json'):
    run.read_result()
  assert run.read_completed(2) is None
  _edit(run.path / 'events.jsonl', '"total": 0.5', f'"total": {duration}')
  with pytest.raises(DamagedError, match=r'events: got line 1 .*seconds'):
    run.read_events()


def test_a_result_without_its_events_is_refused(runs):
  run, other = runs
  for each in runs:
    each.write_result({'best': {'fitness': 0.5}})
  _exchange(run.path, other.path, 'events.jsonl')
  with pytest.raises(DamagedError, match='events_sha256: got'):
    records.read_result(run.path)
  path = other.path / 'events.jsonl'
  path.write_bytes(b''.join(path.read_bytes().splitlines(keepends=True)[:2]))
  with pytest.raises(DamagedError, match='events_sha256: got'):
    records.read_result(other.path)


def test_events_under_an_edited_configuration_are_refused_and_kept(runs):
  run, _ = runs
  run.write_result({'best': 2})
  _edit(run.path / 'config.json', '"seed": 0', '"seed": 7')
  before = contents(run.path)
  edited = records.RunDirectory(run.path, make_config(seed=7))
  for read in (
    edited.read_events,
    edited.read_result,
    lambda: records.read_events(run.path),
    lambda: edited.read_weights(2),
  ):
    with pytest.raises(DamagedError, match=r'config_sha256: got .* in line 1 of'):
      read()
  assert contents(run.path) == before


def test_runs_with_equal_seeds_have_equal_digests(tmp_path):
  config = make_config(dataset__data_dir='/here')
  other = make_config(dataset__data_dir='/there', dataset__manual_dir='/there')
  locations = ('dataset.data_dir', 'dataset.manual_dir')
  digest = digests.of_config(config, locations)
  assert digest == digests.of_config(other, locations)
  assert digest != digests.of_config(make_config(seed=1), locations)
  paths = [tmp_path / 'run', tmp_path / 'other']
  for number, path in enumerate(paths):
    directory = _record(path)
    directory.write_result({'best': 2, 'seconds': number})
  one, two = (json.loads((path / 'result.json').read_text()) for path in paths)
  assert {**one, 'seconds': 1} == two


def test_a_run_that_was_started_without_digests_goes_on_without(tmp_path):
  directory = records.RunDirectory(tmp_path, make_config())
  _edit(tmp_path / 'config.json', '"format_version": 3', '"format_version": 2')
  record_all(tmp_path)
  assert not any(b'sha256' in content for content in contents(tmp_path).values())
  directory = records.RunDirectory(tmp_path, make_config())
  assert directory.read_events() == records.read_events(tmp_path) == EVENTS
  assert directory.read_result() == {'best': 2}
  assert directory.read_completed(2) == {'test_accuracy': 0.5}
  assert_same_bits(directory.read_weights(2), make_variables(2))
  assert_same_bits(directory.read_completed_weights(2), make_variables(9))


def test_a_check_before_a_write_takes_a_few_system_calls(tmp_path, monkeypatch):
  with lock.locked(tmp_path) as folder:
    directory = records.RunDirectory(tmp_path, make_config(), folder)
    directory.append_event(EVENTS[0])
    calls = []
    for name in ('open', 'stat', 'fstat', 'pread', 'read'):
      function = getattr(__import__('os'), name)
      monkeypatch.setattr(
        f'os.{name}', lambda *a, f=function, **k: (calls.append(1), f(*a, **k))[1]
      )
    folder.check()
    monkeypatch.undo()
  assert 0 < len(calls) < 10
