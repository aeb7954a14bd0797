"""Tests of `records`."""

import contextlib
import json
import os
import pathlib
import struct

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from lamarck_jax import config as config_lib
from lamarck_jax.errors import UserError
from lamarck_jax.run_directory import records
from tests.run_directory.conftest import (
  EVENTS,
  assert_same_bits,
  make_config,
  make_variables,
  record_all,
)


def _refusal(path: pathlib.Path, config: dict | None = None) -> str:
  """Returns the one-line message with which a directory is refused."""
  with pytest.raises(UserError) as error:
    records.RunDirectory(path, make_config() if config is None else config)
  assert '\n' not in str(error.value)
  return str(error.value)


# ------------------------------------------------------------------------------
# Opening
# ------------------------------------------------------------------------------


def test_a_new_directory_is_made_with_its_parents_and_opens_again(tmp_path):
  path = tmp_path / 'a' / 'b'
  directory = records.RunDirectory(path, make_config())
  assert directory.read_events() == []
  assert directory.read_result() is None
  directory.append_event(EVENTS[0])
  assert records.RunDirectory(str(path), make_config()).read_events() == EVENTS[:1]


def test_an_empty_directory_becomes_a_run_directory(tmp_path):
  records.RunDirectory(tmp_path, make_config())
  assert (tmp_path / 'config.json').exists()


def test_the_config_is_written_as_json_with_a_format_version(directory):
  content = json.loads((directory.path / 'config.json').read_text())
  assert content['format_version'] == records.FORMAT_VERSION
  assert content['config'] == json.loads(json.dumps(make_config()))


@pytest.mark.parametrize(
  ('fields', 'names'),
  [
    ({'seed': 1}, ['seed']),
    ({'niching__rate': 0.2}, ['niching.rate']),
    ({'search_space__filters': (16, 32)}, ['search_space.filters']),
    ({'dataset__num_train': 1000}, ['dataset.num_train']),
    (
      {'budget_epochs': 8, 'dataset__name': 'mnist', 'niching__iterations': 3},
      ['budget_epochs', 'dataset.name', 'niching.iterations'],
    ),
  ],
  ids=lambda value: '-'.join(value),
)
def test_another_config_is_refused_with_the_names_of_the_fields_that_differ(
  directory, fields, names
):
  message = _refusal(directory.path, make_config(**fields))
  assert sorted(
    message.partition('differs in ')[2].split(';')[0].split(', ')
  ) == sorted(names)
  assert str(directory.path) in message


def test_a_refused_config_changes_nothing_in_the_directory(directory):
  before = (directory.path / 'config.json').read_bytes()
  _refusal(directory.path, make_config(seed=1))
  assert (directory.path / 'config.json').read_bytes() == before


def test_a_run_resumes_after_its_data_have_moved(directory):
  records.RunDirectory(
    directory.path, make_config(dataset__data_dir='/a', dataset__manual_dir='/b')
  )
  names = config_lib.differing_fields(
    make_config(dataset__data_dir='/a', seed=1), make_config(dataset__data_dir='/c')
  )
  assert names == ['seed']


def test_a_field_that_the_stored_config_lacks_has_its_default(directory):
  path = directory.path / 'config.json'
  content = json.loads(path.read_text())
  del content['config']['niching']['rate'], content['config']['augmentation']
  path.write_text(json.dumps(content))
  records.check(directory.path, make_config())
  message = _refusal(
    directory.path, make_config(niching__rate=0.2, augmentation__shift=1)
  )
  names = message.partition('differs in ')[2].split(';')[0].split(', ')
  assert sorted(names) == ['augmentation.shift', 'niching.rate']


def test_a_directory_of_other_files_is_refused_and_left_alone(tmp_path):
  (tmp_path / 'thesis.tex').write_text('x')
  assert str(tmp_path) in _refusal(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_a_file_is_refused_as_a_run_directory(tmp_path):
  (tmp_path / 'file').write_text('x')
  assert str(tmp_path / 'file') in _refusal(tmp_path / 'file')
  assert str(tmp_path / 'file') in _refusal(tmp_path / 'file' / 'below')


@pytest.mark.parametrize(
  'content',
  [
    '{"format_version": 1, "config": {}}',
    '{"format_version": 4, "config": {}}',
    '{"format_version": "2", "config": {}}',
    '{"format_version": 2, "config": []}',
    '{"config": {}}',
    '[]',
    'null',
    '"config"',
    'not JSON',
    '',
  ],
)
def test_a_config_of_an_unknown_format_is_refused(directory, content):
  (directory.path / 'config.json').write_text(content)
  assert 'format version 2 or 3' in _refusal(directory.path)


# ------------------------------------------------------------------------------
# Completed individuals, result
# ------------------------------------------------------------------------------


def test_the_state_of_a_completion_is_kept_until_its_outcome_is_written(directory):
  saved = directory.path / 'weights' / 'completing_000004.safetensors'
  directory.write_completing(4, make_variables(1))
  directory.keep_weights({3})
  content = saved.read_bytes()
  directory.write_completed(4, {'test_accuracy': 0.5}, make_variables(2))
  assert not saved.exists()
  saved.write_bytes(content)  # As a crash just before would leave it.
  directory.keep_weights({3})
  assert not saved.exists()
  assert_same_bits(directory.read_completed_weights(4), make_variables(2))


def test_a_completed_individual_is_read_as_it_was_written(directory):
  outcome = {'evaluation': 4, 'test_accuracy': 0.1 + 0.2, 'seconds': {'total': 1.5}}
  assert directory.read_completed(4) is None
  directory.write_weights(4, make_variables(0))
  directory.write_completed(4, outcome, make_variables(1))
  assert directory.read_completed(4) == outcome
  assert directory.read_completed(3) is None
  assert_same_bits(directory.read_completed_weights(4), make_variables(1))
  assert_same_bits(directory.read_weights(4), make_variables(0))


def test_a_folder_with_the_name_of_a_file_is_renamed_for_it(directory):
  directory.write_weights(4, make_variables(0))
  names = ('weights/completing_000004.safetensors',)
  names += ('weights/completed_000004.safetensors', 'completed/000004.json')
  for name in names:
    (directory.path / name).mkdir()
    (directory.path / name / 'notes').write_text('mine')
  assert directory.read_completed(4) is None
  directory.write_completing(4, make_variables(1))
  assert_same_bits(directory.read_completing(4), make_variables(1))
  directory.write_completed(4, {'test_accuracy': 0.5}, make_variables(2))
  assert directory.read_completed(4) == {'test_accuracy': 0.5}
  for name in names:
    assert (directory.path / f'{name}.old-1' / 'notes').read_text() == 'mine'


@pytest.mark.parametrize('target', ['nowhere', 'events.jsonl'])
def test_events_that_are_a_link_without_a_file_are_refused(directory, target):
  (directory.path / 'events.jsonl').symlink_to(target)
  for read in (directory.read_events, lambda: records.read_events(directory.path)):
    with pytest.raises(UserError, match=r'got .*events.jsonl, a link without a file'):
      read()
  assert os.readlink(directory.path / 'events.jsonl') == target


def test_a_result_is_read_as_it_was_written(directory):
  result = {'best': {'fitness': 0.1 + 0.2}, 'checkpoints': [], 'epochs_used': 512}
  assert directory.read_result() is None
  directory.write_result(result)
  assert directory.read_result() == result
  assert records.RunDirectory(directory.path, make_config()).read_result() == result


# ------------------------------------------------------------------------------
# What is kept
# ------------------------------------------------------------------------------


def test_files_of_other_names_are_left_alone(directory):
  directory.write_weights(0, make_variables())
  for folder in ('weights', 'completed'):
    (directory.path / folder / '.ipynb_checkpoints').mkdir()
    (directory.path / folder / '.ipynb_checkpoints' / 'a').write_text('mine')
    for name in ('notes.txt', '.notes.tmp', 'best.safetensors'):
      (directory.path / folder / name).write_text('mine')
  (directory.path / 'weights' / '000009.safetensors').mkdir()
  directory.append_event(EVENTS[0])
  directory.keep_weights([])
  directory.cut_back(0)
  for folder in ('weights', 'completed'):
    left = [file for file in (directory.path / folder).rglob('*') if file.is_file()]
    assert len(left) == 4
    assert {file.read_text() for file in left} == {'mine'}


def test_what_is_cut_away_is_kept_under_a_name_of_its_own_each_time(directory):
  for number, event in enumerate(EVENTS):
    directory.write_weights(number, make_variables(number))
    directory.write_completed(number, {'evaluation': number}, make_variables(9))
    directory.append_event(event)
  events = (directory.path / 'events.jsonl').read_bytes()
  assert directory.cut_back(1).name == 'cut-1'
  assert directory.read_events() == EVENTS[:1]
  assert directory.read_completed(1) is None
  assert_same_bits(directory.read_weights(0), make_variables(0))
  directory.write_weights(1, make_variables(5))
  directory.append_event(EVENTS[1])
  assert directory.cut_back(0).name == 'cut-2'
  # Each folder is what a run directory has, so files can be moved back.
  first = directory.path / 'cut-1'
  assert (first / 'events.jsonl').read_bytes() == events
  (directory.path / 'cut-2' / 'config.json').write_bytes(
    (directory.path / 'config.json').read_bytes()
  )
  second = records.RunDirectory(directory.path / 'cut-2', make_config())
  assert second.read_events() == EVENTS[:2]
  assert_same_bits(second.read_weights(1), make_variables(5))
  assert second.read_completed(0) == {'evaluation': 0}
  names = sorted(str(file.relative_to(first)) for file in first.rglob('*.*'))
  assert names == [
    'completed/000001.json',
    'completed/000002.json',
    'events.jsonl',
    'weights/000001.safetensors',
    'weights/000002.safetensors',
    'weights/completed_000001.safetensors',
    'weights/completed_000002.safetensors',
  ]


def test_a_damaged_environment_is_kept_beside_the_new_one(directory):
  path = directory.path / 'environment.json'
  directory.write_start({'class_names': ['a']}, {'cores': 1})
  directory.write_start({'class_names': ['a']}, {'cores': 2})
  assert [start['cores'] for start in records.read_environment(path.parent)['starts']]
  for number, damaged in enumerate(('{', '{"starts": 3}'), 1):
    path.write_text(damaged)
    directory.write_start({'class_names': ['a']}, {'cores': 3})
    assert path.with_name(f'environment.json.old-{number}').read_text() == damaged
    assert records.read_environment(path.parent)['starts'] == [{'cores': 3}]


# ------------------------------------------------------------------------------
# Untrusted files
# ------------------------------------------------------------------------------


@settings(max_examples=75, deadline=None, derandomize=True)
@given(st.data())
def test_readers_of_damaged_files_raise_only_the_errors_of_the_project(
  tmp_path_factory, data
):
  path = tmp_path_factory.mktemp('fuzz') / 'run'
  record_all(path)
  files = sorted(file for file in path.rglob('*') if file.is_file())
  file = data.draw(st.sampled_from(files))
  content = bytearray(file.read_bytes())
  start = data.draw(st.integers(0, len(content)))
  end = data.draw(st.integers(start, min(len(content), start + 64)))
  content[start:end] = data.draw(st.binary(max_size=64))
  file.write_bytes(content)
  _read_all(path)


@settings(max_examples=75, deadline=None, derandomize=True)
@given(
  st.sampled_from(
    ['config.json', 'events.jsonl', 'result.json', 'weights/000002.safetensors']
  ),
  st.one_of(
    st.binary(max_size=300),
    st.recursive(
      st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
      lambda leaf: st.lists(leaf) | st.dictionaries(st.text(), leaf),
    ).map(lambda tree: json.dumps(tree).encode() + b'\n'),
    st.integers(1, 30000).map(lambda depth: b'[' * depth),
    st.integers(0, 2**64 - 1).map(lambda size: struct.pack('<Q', size) + b'{}' * 9),
  ),
)
def test_readers_of_hostile_files_raise_only_the_errors_of_the_project(
  tmp_path_factory, name, content
):
  path = tmp_path_factory.mktemp('fuzz') / 'run'
  record_all(path)
  (path / name).write_bytes(content)
  _read_all(path)


def _read_all(path: pathlib.Path) -> None:
  """Calls every reader; a `UserError` is what a damaged file should raise."""
  for read in (
    records.read_config,
    records.read_events,
    records.read_result,
    lambda path: records.RunDirectory(path, make_config()).read_events(),
    lambda path: records.RunDirectory(path, make_config()).read_weights(2),
    lambda path: records.RunDirectory(path, make_config()).read_completed(2),
    lambda path: records.RunDirectory(path, make_config()).read_completed_weights(2),
  ):
    with contextlib.suppress(UserError):
      read(path)
