"""Tests of `history`: how far a search has come, where events are lost."""

import dataclasses
import os

import pytest

from lamarck_jax.run_directory import history, lock, records
from tests.run_directory.conftest import (
  EVENTS,
  assert_same_bits,
  contents,
  make_config,
  make_variables,
)


@dataclasses.dataclass(frozen=True)
class Walk:
  """A search in which each child descends from the one before."""

  count: int = 0

  @property
  def needed(self) -> set[int]:
    return {self.count - 1} if self.count else set()

  living = needed

  def tell(
    self, child: object, fitness: float | None, correct: object = None
  ) -> 'Walk':
    return Walk(self.count + 1)


@pytest.mark.parametrize('lines', [None, 0, 1])
def test_weights_whose_events_are_lost_are_kept_in_a_folder(tmp_path, caplog, lines):
  """As an older copy of events.jsonl leaves them."""
  directory = records.RunDirectory(tmp_path, make_config())
  for number, event in enumerate(EVENTS):
    directory.write_weights(number, make_variables(number))
    directory.append_event(event)
  path = tmp_path / 'events.jsonl'
  written, before = path.read_bytes().splitlines(keepends=True), contents(tmp_path)
  if lines is None:
    os.unlink(path)
  else:
    path.write_bytes(b''.join(written[:lines]))
  with lock.locked(tmp_path) as folder:
    directory = records.RunDirectory(tmp_path, make_config(), folder)
    state, living = history.restore(directory, Walk(), lambda _: make_variables())
  assert state.count == len(living) == (lines or 0)
  assert 'want that of 000002.safetensors' in caplog.text
  assert 'cut-1 keeps' in caplog.text
  for number in range(lines or 0, 3):
    name = f'weights/{number:06d}.safetensors'
    assert (tmp_path / 'cut-1' / name).read_bytes() == before[name]
  for number, variables in living.items():
    assert_same_bits(dict(variables), make_variables(number))


def test_the_weights_of_an_evaluation_that_a_crash_has_torn_are_no_damage(
  tmp_path, caplog
):
  directory = records.RunDirectory(tmp_path, make_config())
  directory.write_weights(0, make_variables())
  directory.append_event(EVENTS[0])
  directory.write_weights(1, make_variables(1))
  state, _ = history.restore(directory, Walk(), lambda _: make_variables())
  assert state.count == 1
  assert not caplog.text
  assert [path.name for path in (tmp_path / 'weights').iterdir()] == [
    '000000.safetensors'
  ]
