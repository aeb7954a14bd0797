"""Tests of `events`."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from lamarck_jax.errors import DamagedError
from lamarck_jax.run_directory import records
from tests.run_directory.conftest import EVENTS, make_config


def test_events_are_read_as_they_were_appended(directory):
  for number, event in enumerate(EVENTS):
    directory.append_event(event)
    assert directory.read_events() == EVENTS[: number + 1]
  reopened = records.RunDirectory(directory.path, make_config())
  assert reopened.read_events() == EVENTS


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.floats(0, 1), st.text(), st.integers())
def test_an_event_keeps_every_bit_of_its_values(
  tmp_path_factory, fitness, text, integer
):
  directory = records.RunDirectory(tmp_path_factory.mktemp('run'), make_config())
  event = {**EVENTS[0], 'fitness': fitness, 'mutation': [text], 'flops': integer}
  directory.append_event(event)
  directory.append_event({**event, 'evaluation': 1})
  assert directory.read_events() == [event, {**event, 'evaluation': 1}]


def test_events_are_one_json_object_per_line_and_appending_keeps_earlier_lines(
  directory,
):
  path, before = directory.path / 'events.jsonl', b''
  for event in EVENTS:
    directory.append_event(event)
    content = path.read_bytes()
    assert content.startswith(before)
    line = json.loads(content[len(before) :])
    assert line.pop('crc32')
    assert len(line.pop('config_sha256')) == 64
    assert line.pop('weights_sha256') is None  # They were not kept.
    assert line == event
    assert content[len(before) :].count(b'\n') == 1
    before = content


def test_a_torn_last_line_is_dropped_wherever_it_was_torn(directory):
  path = directory.path / 'events.jsonl'
  for event in EVENTS[:2]:
    directory.append_event(event)
  whole = path.read_bytes()
  directory.append_event(EVENTS[2])
  longer = path.read_bytes()
  for length in range(len(whole), len(longer)):
    path.write_bytes(longer[:length])
    assert directory.read_events() == EVENTS[:2]
    assert path.read_bytes() == whole
  directory.append_event(EVENTS[2])
  assert path.read_bytes() == longer


def test_a_torn_only_line_leaves_no_events(directory):
  directory.append_event(EVENTS[0])
  path = directory.path / 'events.jsonl'
  path.write_bytes(path.read_bytes()[:-1])
  assert directory.read_events() == []
  directory.append_event(EVENTS[0])
  assert directory.read_events() == [EVENTS[0]]


def test_a_last_line_of_zeros_is_dropped_like_a_torn_one(directory):
  directory.append_event(EVENTS[0])
  path = directory.path / 'events.jsonl'
  whole = path.read_bytes()
  for junk in (b'\0' * 50, b'\0' * 50 + b'\n', b'{}\n'):
    path.write_bytes(whole + junk)
    assert directory.read_events() == EVENTS[:1]
    assert path.read_bytes() == whole


def test_a_flipped_bit_in_an_earlier_line_is_an_error_that_names_the_line(directory):
  for event in EVENTS:
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
