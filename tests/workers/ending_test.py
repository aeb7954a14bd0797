"""Given workers are closed however a search ends; pipes that fail say so."""

import queue

import pytest

from lamarck_jax import search
from lamarck_jax.errors import UserError
from lamarck_jax.workers import local
from lamarck_jax.workers.pool import Kind


class _Workers:
  """Workers that can do nothing but end."""

  closed = 0

  def close(self):
    self.closed += 1


def test_workers_are_closed_where_the_configuration_is_refused(tiny_config, tmp_path):
  tiny_config.batch_size = 0
  workers = _Workers()
  with pytest.raises(UserError, match='batch_size'):
    search.run(tiny_config, tmp_path, workers=workers)
  assert workers.closed


def test_workers_are_closed_where_the_search_has_ended_before(
  tiny_config, tmp_path, undisturbed
):
  workdir, _ = undisturbed(tiny_config)
  workers = _Workers()
  search.run(tiny_config, workdir, workers=workers)
  assert workers.closed


class _Connection:
  """A pipe for which there is too little memory."""

  def send(self, message):
    raise MemoryError('for a copy')

  def recv(self):
    raise MemoryError('for a copy')


@pytest.mark.parametrize('thread', ['_send', '_receive'])
def test_an_error_in_the_thread_of_a_pipe_reaches_the_search(thread):
  worker = object.__new__(local.LocalWorker)
  reports = []
  worker._report = reports.append
  worker._connection = _Connection()
  worker._outbox = queue.SimpleQueue()
  worker._outbox.put('a data set')
  getattr(worker, thread)()
  (report,) = reports
  assert report.kind is Kind.ERROR
  assert isinstance(report.value, MemoryError)
