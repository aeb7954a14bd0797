"""Scalars of a search, read back from TensorBoard's event files."""

import struct
import sys

import pytest

from lamarck_jax.errors import UserError
from lamarck_jax.report import tensorboard

EVENT = {
  'fitness': 0.25,
  'best_fitness': 0.5,
  'fitness_at_birth': 0.125,
  'genotype': [[8, 3, 1], [8, 1, 1]],
  'flops': 10,
  'epochs_used': 4,
  'accepted': False,
  'seconds': {'train': 1.5, 'total': 2.0},
}


def read_scalars(directory):
  """Returns (tag, step) to value of all event files, TFRecord by TFRecord."""
  event_pb2 = pytest.importorskip('tensorboardX.proto.event_pb2')
  scalars = {}
  for path in sorted(directory.iterdir()):
    content = path.read_bytes()
    while content:
      (length,) = struct.unpack('<Q', content[:8])
      event = event_pb2.Event.FromString(content[12 : 12 + length])
      content = content[16 + length :]
      for value in event.summary.value:
        scalars[value.tag, event.step] = value.simple_value
  return scalars


def test_a_resumed_search_keeps_the_scalars_of_every_evaluation(tmp_path):
  pytest.importorskip('tensorboardX', reason='tensorboardX is not installed')
  with tensorboard.Scalars(tmp_path) as write:
    write({**EVENT, 'evaluation': 0, 'fitness_at_birth': None})
  with tensorboard.Scalars(tmp_path) as write:
    write({**EVENT, 'evaluation': 1})
  scalars = read_scalars(tmp_path)
  assert scalars['accuracy/best', 0] == scalars['accuracy/best', 1] == 0.5
  assert scalars['accuracy/evaluation', 1] == 0.25
  assert scalars['network/blocks', 1] == 2
  assert scalars['seconds/train', 0] == 1.5
  assert ('accuracy/before_training', 0) not in scalars
  assert scalars['accuracy/before_training', 1] == 0.125


def test_without_tensorboardx_the_error_names_what_to_install(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  with pytest.raises(UserError, match='pip install'):
    tensorboard.Scalars(tmp_path)
