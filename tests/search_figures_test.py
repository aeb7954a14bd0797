"""The figures of a search from its events."""

import pytest

from benchmarks import search_figures


def make_event(index, failure=None):
  seconds = {'total': 2.0} if failure else {'total': 3.0, 'train': 1.0}
  return {
    'epochs_used': 4 * (index + 1),
    'failure': failure,
    'fitness': 0.0 if failure else 0.5,
    'flops': 0 if failure else 10**12,
    'seconds': seconds,
  }


def test_a_failed_candidate_has_no_training_time_and_ends_nothing():
  events = [make_event(0), make_event(1, 'out of memory'), make_event(2)]

  figures = search_figures.summarize(events, seconds=10.0)

  assert figures['evaluations'] == 3
  assert figures['phases'] == {'total': 8.0, 'train': 2.0}
  assert figures['outside_evaluations_seconds'] == 2.0
  assert figures['train_tflops_per_second'] == pytest.approx(3.0)
  assert figures['extrapolation']['evaluations_left'] > 0


def test_without_a_trained_candidate_there_is_no_extrapolation():
  figures = search_figures.summarize([make_event(0, 'out of memory')], seconds=3.0)

  assert 'extrapolation' not in figures
