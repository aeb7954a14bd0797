"""Tests of `weights`."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamarck_jax.errors import DamagedError
from lamarck_jax.run_directory import weights
from tests.run_directory.conftest import assert_same_bits, make_variables


def test_weights_are_read_bit_for_bit(directory):
  variables = make_variables()
  bias = variables['params']['block_0']['conv']['bias']
  bias[:] = [np.nan, -0.0, np.inf, 1e-45]
  bias.view(np.uint32)[0] = 0x7FC12345  # A NaN with a payload.
  directory.write_weights(7, variables)
  assert_same_bits(directory.read_weights(7), variables)


def test_weights_on_a_device_or_in_another_layout_are_read_bit_for_bit(directory):
  variables = make_variables()
  directory.write_weights(0, jax.tree.map(jnp.asarray, variables))
  assert_same_bits(directory.read_weights(0), variables)
  directory.write_weights(1, jax.tree.map(np.asfortranarray, variables))
  assert_same_bits(directory.read_weights(1), variables)


def test_weights_are_plain_safetensors_without_pickle(directory):
  variables = make_variables()
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


def test_only_weights_that_are_needed_or_of_a_completion_are_kept(directory):
  for evaluation in (0, 3, 10, 123456):
    directory.write_weights(evaluation, make_variables(evaluation))
  directory.write_completed(0, {'test_accuracy': 0.5}, make_variables(1))
  directory.keep_weights({3, 123456, 77})
  for evaluation in (3, 123456):
    assert_same_bits(directory.read_weights(evaluation), make_variables(evaluation))
  for evaluation in (0, 10):
    with pytest.raises(DamagedError):
      directory.read_weights(evaluation)
  assert_same_bits(directory.read_completed_weights(0), make_variables(1))
  directory.keep_weights([])
  names = [path.name for path in (directory.path / 'weights').iterdir()]
  assert names == ['completed_000000.safetensors']


def test_a_flipped_bit_in_a_file_of_weights_is_noticed_wherever_it_is(directory):
  directory.write_weights(0, make_variables())
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
      assert_same_bits(directory.read_weights(0), make_variables())
      unharmed += 1  # In metadata that nothing reads.
    except DamagedError as error:
      assert '000000.safetensors' in str(error)
  assert unharmed < 8


@pytest.mark.parametrize(
  ('name', 'evaluation', 'stage'),
  [
    ('000123.safetensors', 123, 'search'),
    ('completing_000000.safetensors', 0, 'completing'),
    ('completed_1234567.safetensors', 1234567, 'completed'),
  ],
)
def test_the_name_of_a_file_of_weights_tells_its_evaluation_and_stage(
  name, evaluation, stage
):
  assert weights.file_name(evaluation, stage) == name
  assert weights.parse_file_name(name) == (evaluation, stage)


@pytest.mark.parametrize(
  'name', ['.000123.safetensors.tmp', '000123.json', 'other_000123.safetensors', '']
)
def test_a_file_of_another_name_holds_no_weights(name):
  assert weights.parse_file_name(name) is None
