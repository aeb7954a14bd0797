"""What a worker reports of errors that are not the end of its pipe."""

import multiprocessing

import pytest

from lamarck_jax.workers import local
from lamarck_jax.workers.pool import Kind


class _Full:
  """An evaluator that can open no file."""

  def __init__(self, config, xla_cache_dir):
    raise OSError(24, 'Too many open files')


@pytest.fixture(autouse=True)
def full(monkeypatch):
  monkeypatch.setattr(local, 'Evaluator', _Full)


def test_an_os_error_is_reported_with_its_traceback():
  ours, theirs = multiprocessing.Pipe()

  local._serve(theirs, None, None)

  kind, error = ours.recv()
  assert kind is Kind.ERROR
  assert isinstance(error, OSError) and error.errno == 24
  assert 'os_error_test.py' in error.__notes__[0]


def test_nothing_is_raised_where_the_search_has_ended():
  ours, theirs = multiprocessing.Pipe()
  ours.close()

  local._serve(theirs, None, None)
