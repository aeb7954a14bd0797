"""Tests of `records`."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys

import chex
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamarck_jax import config as config_lib
from lamarck_jax import model
from lamarck_jax.errors import DamagedError, StorageError, UserError
from lamarck_jax.genotype import Block, Genotype
from lamarck_jax.run_directory import records

_EVENTS = [
  {
    'evaluation': number,
    'genotype': [[16, 3, 1]] * (number + 1),
    'lineages': list(range(number + 1)),
    'next_lineage': number + 1,
    'fitness': 0.1 + 0.2 * number,
    'epochs_used': number + 1,
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
    '{"format_version": 3, "config": {}}',
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
  assert 'format version 1 or 2' in _refusal(directory.path)


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
  event = {**_EVENTS[0], 'fitness': fitness, 'mutation': [text], 'flops': integer}
  directory.append_event(event)
  directory.append_event({**event, 'evaluation': 1})
  assert directory.read_events() == [event, {**event, 'evaluation': 1}]


def test_events_are_one_json_object_a_line_and_only_ever_appended(directory):
  path, before = directory.path / 'events.jsonl', b''
  for event in _EVENTS:
    directory.append_event(event)
    content = path.read_bytes()
    assert content.startswith(before)
    line = json.loads(content[len(before) :])
    assert line.pop('crc32')
    assert line == event
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
  directory.append_event(_EVENTS[0])
  assert directory.read_events() == [_EVENTS[0]]


def test_a_last_line_of_zeros_is_dropped_like_a_torn_one(directory):
  directory.append_event(_EVENTS[0])
  path = directory.path / 'events.jsonl'
  whole = path.read_bytes()
  for junk in (b'\0' * 50, b'\0' * 50 + b'\n', b'{}\n'):
    path.write_bytes(whole + junk)
    assert directory.read_events() == _EVENTS[:1]
    assert path.read_bytes() == whole


def test_a_damaged_earlier_line_is_named_wherever_a_bit_has_flipped(directory):
  for event in _EVENTS:
    directory.append_event(event)
  path = directory.path / 'events.jsonl'
  whole = path.read_bytes()
  first = whole.index(b'\n')
  for position in range(first):
    damaged = bytearray(whole)
    damaged[position] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DamagedError, match=r'line 1 of .*events\.jsonl'):
      directory.read_events()
    assert path.read_bytes() == damaged


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
    with pytest.raises(DamagedError):
      directory.read_weights(evaluation)
  _assert_same_bits(directory.read_completed_weights(0), _variables(1))
  directory.keep_weights([])
  names = [path.name for path in (directory.path / 'weights').iterdir()]
  assert names == ['completed_000000.safetensors']


# ------------------------------------------------------------------------------
# Completed individuals, result
# ------------------------------------------------------------------------------


def test_what_a_completion_saved_is_kept_until_it_is_done(directory):
  saved = directory.path / 'weights' / 'completing_000004.safetensors'
  directory.write_completing(4, _variables(1))
  directory.keep_weights({3})
  content = saved.read_bytes()
  directory.write_completed(4, {'test_accuracy': 0.5}, _variables(2))
  assert not saved.exists()
  saved.write_bytes(content)  # As a crash just before would leave it.
  directory.keep_weights({3})
  assert not saved.exists()
  _assert_same_bits(directory.read_completed_weights(4), _variables(2))


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
        patch.setattr(records.os, 'replace', _crash)
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
  with pytest.raises(DamagedError):
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
# Faults
# ------------------------------------------------------------------------------

# Every system call by which the recorder writes.
_SYSTEM_CALLS = ('open', 'write', 'fsync', 'replace', 'unlink', 'mkdir', 'close')


class _Faults:
  """Lets the n-th system call of the recorder fail, as a full or broken disk does."""

  def __init__(self, monkeypatch, root: pathlib.Path):
    self.count = 0
    self.failing = -1
    self.error = 0
    self._descriptors: set[int] = set()
    for name in _SYSTEM_CALLS:
      monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name), str(root)))

  def _wrapped(self, name, function, root):
    def call(target, *args, **kwargs):
      if isinstance(target, int):
        concerns = target in self._descriptors
      else:
        concerns = os.fspath(target).startswith(root)
      if concerns:
        self.count += 1
        if self.count == self.failing:
          if name == 'write':  # What a full disk still takes.
            function(target, bytes(args[0])[: len(args[0]) // 2])
          if name == 'close':  # Linux frees the descriptor all the same.
            function(target)
          raise OSError(self.error, os.strerror(self.error), str(target))
      result = function(target, *args, **kwargs)
      if name == 'open' and concerns:
        self._descriptors.add(result)
      if name == 'close':
        self._descriptors.discard(target)
      return result

    return call


def _record_all(path: pathlib.Path) -> None:
  """Records a search of three evaluations, from wherever it was left."""
  with records.locked(path):
    directory = records.RunDirectory(path, _config())
    done = len(directory.read_events())
    if done:
      directory.read_weights(done - 1)
    directory.keep_weights({done - 1})
    for number in range(done, len(_EVENTS)):
      directory.write_weights(number, _variables(number))
      directory.append_event(_EVENTS[number])
      directory.keep_weights({number})
    directory.write_completing(2, _variables(8))
    directory.write_completed(2, {'test_accuracy': 0.5}, _variables(9))
    directory.write_result({'best': 2})


def _contents(path: pathlib.Path) -> dict[str, bytes]:
  return {
    str(file.relative_to(path)): file.read_bytes()
    for file in path.rglob('*')
    if file.is_file()
  }


@pytest.mark.parametrize('error', [errno.ENOSPC, errno.EIO])
def test_whichever_system_call_fails_the_directory_goes_on_to_the_same_end(
  tmp_path, monkeypatch, error
):
  _record_all(tmp_path / 'whole')
  expected = _contents(tmp_path / 'whole')
  faults = _Faults(monkeypatch, tmp_path / 'run')
  faults.error = error
  _record_all(tmp_path / 'run0')
  num_calls = faults.count
  assert num_calls > 60
  for number in range(1, num_calls + 1):
    path = tmp_path / f'run-{number}'
    faults.count, faults.failing = 0, number
    try:
      _record_all(path)
    except (StorageError, UserError) as message:
      assert str(tmp_path) in str(message)
      assert '\n' not in str(message)
    faults.failing = -1
    _record_all(path)
    assert _contents(path) == expected, number


def test_a_filesystem_that_fills_up_stops_the_recording_and_takes_it_on_again(
  tmp_path,
):
  mount = tmp_path / 'mount'
  mount.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(mount)]
  if (
    not shutil.which('mount') or subprocess.run(command, capture_output=True).returncode
  ):
    pytest.skip('mounting a small file system needs root')
  try:
    ballast = mount / 'ballast'
    ballast.write_bytes(b'x' * 40 * 1024)
    with pytest.raises(StorageError, match='No space left'):
      for number in range(100):
        directory = records.RunDirectory(mount / 'run', _config())
        directory.write_weights(number, _variables(number))
        directory.append_event({**_EVENTS[0], 'evaluation': number})
    events = records.read_events(mount / 'run')
    assert 0 < len(events) < 100
    assert [event['evaluation'] for event in events] == list(range(len(events)))
    directory = records.RunDirectory(mount / 'run', _config())
    _assert_same_bits(directory.read_weights(0), _variables(0))
    ballast.unlink()
    directory.write_weights(len(events), _variables())
    directory.append_event({**_EVENTS[0], 'evaluation': len(events)})
    assert len(directory.read_events()) == len(events) + 1
  finally:
    subprocess.run(['umount', str(mount)], check=True)


# ------------------------------------------------------------------------------
# The lock
# ------------------------------------------------------------------------------


def test_a_second_process_is_refused_with_the_first_ones_host_and_number(tmp_path):
  with (
    records.locked(tmp_path),
    pytest.raises(UserError, match=rf'process {os.getpid()} on {socket.gethostname()}'),
    records.locked(tmp_path),
  ):
    pass
  with records.locked(tmp_path):  # Free again.
    pass
  assert not list(tmp_path.iterdir())


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path):
  program = (
    'import os, signal, sys\n'
    'from lamarck_jax import records\n'
    'with records.locked(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)'
  )
  process = subprocess.run(
    [sys.executable, '-c', program, str(tmp_path)],
    cwd=pathlib.Path(__file__).parents[2],
  )
  assert process.returncode == -signal.SIGKILL
  assert list(tmp_path.iterdir())
  with records.locked(tmp_path):
    pass


def test_the_lock_of_another_host_stays_until_it_is_known_to_be_dead(tmp_path):
  (tmp_path / '.lock').write_text('1234\nelsewhere\n')
  with (
    pytest.raises(UserError, match='process 1234 on elsewhere'),
    records.locked(tmp_path),
  ):
    pass
  records.break_lock(tmp_path)
  with records.locked(tmp_path):
    pass


# ------------------------------------------------------------------------------
# Untrusted files
# ------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_readers_of_damaged_files_raise_the_projects_error_alone(
  tmp_path_factory, data
):
  path = tmp_path_factory.mktemp('fuzz') / 'run'
  _record_all(path)
  files = sorted(file for file in path.rglob('*') if file.is_file())
  file = data.draw(st.sampled_from(files))
  content = bytearray(file.read_bytes())
  start = data.draw(st.integers(0, len(content)))
  end = data.draw(st.integers(start, min(len(content), start + 64)))
  content[start:end] = data.draw(st.binary(max_size=64))
  file.write_bytes(content)
  _read_all(path)


@settings(max_examples=150, deadline=None, derandomize=True)
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
def test_readers_of_other_peoples_files_raise_the_projects_error_alone(
  tmp_path_factory, name, content
):
  path = tmp_path_factory.mktemp('fuzz') / 'run'
  _record_all(path)
  (path / name).write_bytes(content)
  _read_all(path)


def _read_all(path: pathlib.Path) -> None:
  """Reads whatever can be read, in turn."""
  for read in (
    records.read_config,
    records.read_events,
    records.read_result,
    lambda path: records.RunDirectory(path, _config()).read_events(),
    lambda path: records.RunDirectory(path, _config()).read_weights(2),
    lambda path: records.RunDirectory(path, _config()).read_completed(2),
    lambda path: records.RunDirectory(path, _config()).read_completed_weights(2),
  ):
    with contextlib.suppress(UserError):
      read(path)


def test_damaged_weights_are_told_wherever_a_bit_has_flipped(directory):
  directory.write_weights(0, _variables())
  (path,) = (directory.path / 'weights').iterdir()
  whole = path.read_bytes()
  (header_size,) = struct.unpack('<Q', whole[:8])
  positions = [*range(8 + header_size), *range(8 + header_size, len(whole), 37)]
  unharmed = 0
  for position in positions:
    damaged = bytearray(whole)
    damaged[position] ^= 1
    path.write_bytes(damaged)
    try:
      _assert_same_bits(directory.read_weights(0), _variables())
      unharmed += 1  # As in the name of a field of no meaning.
    except DamagedError as error:
      assert '000000.safetensors' in str(error)
  assert unharmed < 8


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
