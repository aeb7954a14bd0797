"""Tests of `records`."""

import json
import pathlib
import struct

import chex
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamarck_jax import config as config_lib
from lamarck_jax import model, records
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Block, Genotype

_EVENTS = [
  {
    'evaluation': number,
    'genotype': [[16, 3, 1]] * (number + 1),
    'fitness': 0.1 + 0.2 * number,
    'niche': None,
    'accepted': number != 1,
    'mutation': ['add_block'],
  }
  for number in range(3)
]


def _config(**fields: object) -> dict:
  """Returns a configuration; fields have `__` for the dot."""
  config = config_lib.get_config()
  config.dataset.name = 'digits'
  for field, value in fields.items():
    *path, last = field.split('__')
    section = config
    for part in path:
      section = section[part]
    section[last] = value
  return config.to_dict()


@pytest.fixture(name='directory')
def _directory(tmp_path: pathlib.Path) -> records.RunDirectory:
  return records.RunDirectory(tmp_path / 'run', _config())


def _variables(seed: int = 0) -> dict:
  genotype = Genotype.parse('4c3 8c1s2')
  return model.init_variables(jax.random.key(seed), genotype, 3, 10)


def _assert_same_bits(tree: dict, other: dict) -> None:
  chex.assert_trees_all_equal_structs(tree, other)
  for leaf, other_leaf in zip(jax.tree.leaves(tree), jax.tree.leaves(other)):
    leaf, other_leaf = np.asarray(leaf), np.asarray(other_leaf)
    assert leaf.dtype == other_leaf.dtype
    assert leaf.shape == other_leaf.shape
    assert leaf.tobytes() == other_leaf.tobytes()


def _refusal(path: pathlib.Path, config: dict | None = None) -> str:
  """Returns the one line that a directory is refused with."""
  with pytest.raises(UserError) as error:
    records.RunDirectory(path, _config() if config is None else config)
  assert '\n' not in str(error.value)
  return str(error.value)


# ------------------------------------------------------------------------------
# Opening
# ------------------------------------------------------------------------------


def test_a_new_directory_is_made_with_its_parents_and_opens_again(tmp_path):
  path = tmp_path / 'a' / 'b'
  directory = records.RunDirectory(path, _config())
  assert directory.read_events() == []
  assert directory.read_result() is None
  directory.append_event(_EVENTS[0])
  assert records.RunDirectory(str(path), _config()).read_events() == _EVENTS[:1]


def test_an_empty_directory_becomes_a_run_directory(tmp_path):
  records.RunDirectory(tmp_path, _config())
  assert (tmp_path / 'config.json').exists()


def test_the_config_is_written_as_json_with_a_format_version(directory):
  content = json.loads((directory.path / 'config.json').read_text())
  assert content['format_version'] == records.FORMAT_VERSION
  assert content['config'] == json.loads(json.dumps(_config()))


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
def test_another_config_is_refused_by_the_names_of_its_fields(directory, fields, names):
  message = _refusal(directory.path, _config(**fields))
  assert sorted(message.partition('differs in ')[2].split(', ')) == sorted(names)
  assert str(directory.path) in message


def test_a_refused_config_changes_nothing_in_the_directory(directory):
  before = (directory.path / 'config.json').read_bytes()
  _refusal(directory.path, _config(seed=1))
  assert (directory.path / 'config.json').read_bytes() == before


def test_a_run_goes_on_where_its_data_have_moved(directory):
  records.RunDirectory(
    directory.path, _config(dataset__data_dir='/a', dataset__manual_dir='/b')
  )
  names = config_lib.differing_fields(
    _config(dataset__data_dir='/a', seed=1), _config(dataset__data_dir='/c')
  )
  assert names == ['seed']


def test_a_field_that_the_stored_config_lacks_differs(directory):
  path = directory.path / 'config.json'
  content = json.loads(path.read_text())
  del content['config']['niching']['rate']
  path.write_text(json.dumps(content))
  assert _refusal(directory.path).endswith('niching.rate')


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
    '{"format_version": 2, "config": {}}',
    '{"format_version": "1", "config": {}}',
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
  assert 'format version 1' in _refusal(directory.path)


# ------------------------------------------------------------------------------
# Events
# ------------------------------------------------------------------------------


def test_events_are_read_as_they_were_appended(directory):
  for number, event in enumerate(_EVENTS):
    directory.append_event(event)
    assert directory.read_events() == _EVENTS[: number + 1]
  reopened = records.RunDirectory(directory.path, _config())
  assert reopened.read_events() == _EVENTS


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.floats(0, 1), st.text(), st.integers())
def test_an_event_keeps_every_bit_of_its_values(
  tmp_path_factory, fitness, text, integer
):
  directory = records.RunDirectory(tmp_path_factory.mktemp('run'), _config())
  event = {'fitness': fitness, 'mutation': [text], 'evaluation': integer}
  directory.append_event(event)
  directory.append_event(event)
  assert directory.read_events() == [event, event]


def test_events_are_one_json_object_a_line_and_only_ever_appended(directory):
  path, before = directory.path / 'events.jsonl', b''
  for event in _EVENTS:
    directory.append_event(event)
    content = path.read_bytes()
    assert content.startswith(before)
    assert json.loads(content[len(before) :]) == event
    assert content[len(before) :].count(b'\n') == 1
    before = content


def test_a_torn_last_line_is_dropped_wherever_it_was_torn(directory):
  path = directory.path / 'events.jsonl'
  for event in _EVENTS[:2]:
    directory.append_event(event)
  whole = path.read_bytes()
  directory.append_event(_EVENTS[2])
  longer = path.read_bytes()
  for length in range(len(whole), len(longer)):
    path.write_bytes(longer[:length])
    assert directory.read_events() == _EVENTS[:2]
    assert path.read_bytes() == whole
  directory.append_event(_EVENTS[2])
  assert path.read_bytes() == longer


def test_a_torn_only_line_leaves_no_events(directory):
  directory.append_event(_EVENTS[0])
  path = directory.path / 'events.jsonl'
  path.write_bytes(path.read_bytes()[:-1])
  assert directory.read_events() == []
  directory.append_event(_EVENTS[1])
  assert directory.read_events() == [_EVENTS[1]]


# ------------------------------------------------------------------------------
# Weights
# ------------------------------------------------------------------------------


def test_weights_are_read_bit_for_bit(directory):
  variables = _variables()
  bias = variables['params']['block_0']['conv']['bias']
  bias[:] = [np.nan, -0.0, np.inf, 1e-45]
  bias.view(np.uint32)[0] = 0x7FC12345  # A NaN with a payload.
  directory.write_weights(7, variables)
  _assert_same_bits(directory.read_weights(7), variables)


def test_weights_on_a_device_or_in_another_layout_are_read_bit_for_bit(directory):
  variables = _variables()
  directory.write_weights(0, jax.tree.map(jnp.asarray, variables))
  _assert_same_bits(directory.read_weights(0), variables)
  directory.write_weights(1, jax.tree.map(np.asfortranarray, variables))
  _assert_same_bits(directory.read_weights(1), variables)


def test_weights_are_plain_safetensors_without_pickle(directory):
  variables = _variables()
  directory.write_weights(12, variables)
  (path,) = (directory.path / 'weights').iterdir()
  assert path.name == '000012.safetensors'
  content = path.read_bytes()
  (header_size,) = struct.unpack('<Q', content[:8])
  header = json.loads(content[8 : 8 + header_size])
  header.pop('__metadata__', None)
  data = content[8 + header_size :]
  name = 'params/block_0/conv/kernel'
  assert len(header) == len(jax.tree.leaves(variables))
  assert header[name]['dtype'] == 'F32'
  assert header[name]['shape'] == [3, 3, 3, 4]
  start, end = header[name]['data_offsets']
  kernel = variables['params']['block_0']['conv']['kernel']
  assert data[start:end] == kernel.tobytes()
  assert len(data) == sum(leaf.nbytes for leaf in jax.tree.leaves(variables))


def test_weights_that_are_not_needed_go_and_the_others_stay(directory):
  for evaluation in (0, 3, 10, 123456):
    directory.write_weights(evaluation, _variables(evaluation))
  directory.write_completed(0, {'test_accuracy': 0.5}, _variables(1))
  directory.keep_weights({3, 123456, 77})
  for evaluation in (3, 123456):
    _assert_same_bits(directory.read_weights(evaluation), _variables(evaluation))
  for evaluation in (0, 10):
    with pytest.raises(FileNotFoundError):
      directory.read_weights(evaluation)
  _assert_same_bits(directory.read_completed_weights(0), _variables(1))
  directory.keep_weights([])
  names = [path.name for path in (directory.path / 'weights').iterdir()]
  assert names == ['completed_000000.safetensors']


# ------------------------------------------------------------------------------
# Completed individuals, result
# ------------------------------------------------------------------------------


def test_a_completed_individual_is_read_as_it_was_written(directory):
  outcome = {'evaluation': 4, 'test_accuracy': 0.1 + 0.2, 'seconds': {'total': 1.5}}
  assert directory.read_completed(4) is None
  directory.write_weights(4, _variables(0))
  directory.write_completed(4, outcome, _variables(1))
  assert directory.read_completed(4) == outcome
  assert directory.read_completed(3) is None
  _assert_same_bits(directory.read_completed_weights(4), _variables(1))
  _assert_same_bits(directory.read_weights(4), _variables(0))


def test_a_result_is_read_as_it_was_written(directory):
  result = {'best': {'fitness': 0.1 + 0.2}, 'checkpoints': [], 'epochs_used': 512}
  assert directory.read_result() is None
  directory.write_result(result)
  assert directory.read_result() == result
  assert records.RunDirectory(directory.path, _config()).read_result() == result


# ------------------------------------------------------------------------------
# Crashes
# ------------------------------------------------------------------------------


class _Crash(Exception):
  pass


def _crash(*args: object) -> None:
  raise _Crash


# A process can end before the content is on disk, or before the file is replaced.
_MOMENTS = ['fsync', 'replace']


@pytest.fixture(name='crashing', params=_MOMENTS)
def _crashing(request, monkeypatch):
  """Returns a function that calls another one, and crashes in it."""

  def crashing(function, *args):
    with monkeypatch.context() as patch:
      if request.param == 'fsync':
        patch.setattr(records.os, 'fsync', _crash)
      else:
        patch.setattr(pathlib.Path, 'replace', _crash)
      with pytest.raises(_Crash):
        function(*args)

  return crashing


def test_a_crash_while_weights_are_written_leaves_the_old_and_does_no_harm(
  directory, crashing
):
  directory.write_weights(0, _variables(0))
  crashing(directory.write_weights, 0, _variables(1))
  crashing(directory.write_weights, 1, _variables(1))
  reopened = records.RunDirectory(directory.path, _config())
  _assert_same_bits(reopened.read_weights(0), _variables(0))
  with pytest.raises(FileNotFoundError):
    reopened.read_weights(1)
  reopened.keep_weights({0, 1})
  assert [path.name for path in (directory.path / 'weights').iterdir()] == [
    '000000.safetensors'
  ]
  reopened.write_weights(1, _variables(1))
  _assert_same_bits(reopened.read_weights(1), _variables(1))


def test_a_crash_while_the_result_is_written_leaves_none_and_does_no_harm(
  directory, crashing
):
  crashing(directory.write_result, {'best': 1})
  assert directory.read_result() is None
  directory.write_result({'best': 2})
  crashing(directory.write_result, {'best': 3})
  assert records.RunDirectory(directory.path, _config()).read_result() == {'best': 2}


def test_a_crash_while_a_completion_is_written_leaves_it_undone(directory, crashing):
  crashing(directory.write_completed, 4, {'test_accuracy': 0.5}, _variables())
  assert directory.read_completed(4) is None
  directory.write_completed(4, {'test_accuracy': 0.6}, _variables())
  assert directory.read_completed(4) == {'test_accuracy': 0.6}


def test_a_crash_while_the_directory_is_made_leaves_one_that_can_be_opened(
  tmp_path, crashing
):
  crashing(records.RunDirectory, tmp_path / 'run', _config())
  directory = records.RunDirectory(tmp_path / 'run', _config())
  directory.write_weights(0, _variables())
  directory.append_event(_EVENTS[0])
  assert records.RunDirectory(tmp_path / 'run', _config()).read_events() == _EVENTS[:1]


# ------------------------------------------------------------------------------
# Genotypes
# ------------------------------------------------------------------------------

_triples = st.tuples(st.integers(1, 300), st.integers(1, 7), st.integers(1, 3))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.dictionaries(st.integers(0, 99), _triples, min_size=1), st.integers(0, 200))
def test_a_genotype_comes_back_from_json_with_its_lineages(blocks, next_lineage):
  genotype = Genotype(
    tuple(Block(f, k, s, number) for number, (f, k, s) in blocks.items()),
    next_lineage=next_lineage,
  )
  fields = json.loads(json.dumps(records.genotype_to_json(genotype)))
  assert fields['genotype'] == [list(integers) for integers in blocks.values()]
  back = records.genotype_from_json({**fields, 'fitness': 0.5})
  assert back == genotype
  assert [block.lineage for block in back.blocks] == list(blocks)
  assert back.next_lineage == genotype.next_lineage
