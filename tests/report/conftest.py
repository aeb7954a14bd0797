"""What the tests of the page, of its server and of its scripts share."""

from collections.abc import Iterator
import contextlib
import json
import pathlib
import re
import shutil
import threading
from typing import Any

import jax
import numpy as np
import pytest

from lamarck_jax import evolution, mutation
from lamarck_jax.genotype import SearchSpace
from lamarck_jax.report import server
from lamarck_jax.run_directory import records
from tests.conftest import make_tiny_config

_CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


def write_search(
  path: pathlib.Path,
  num_evaluations: int,
  finished: bool = True,
  text: str = '',
  **fields: Any,
) -> None:
  """Writes a run directory whose evaluations have random fitness, or fail.

  Args:
    path: The run directory.
    num_evaluations: Number of evaluations, of an epoch each.
    finished: Whether to write the result.
    text: It is added to every name and message that a search records.
    **fields: Values for fields of the configuration.
  """
  config = make_tiny_config()
  config.update(budget_epochs=num_evaluations, checkpoint_epochs=(num_evaluations,))
  config.update(fields)
  directory = records.RunDirectory(path, config.to_dict())
  directory.write_start({'class_names': [f'<b>cat</b>{text}', 'dog']}, {'cores': 2})
  rng = np.random.default_rng(0)
  state = evolution.init(
    SearchSpace((4, 8, 16, 32), (1, 3)),
    budget_epochs=num_evaluations,
    epochs_per_evaluation=1,
    niching_rate=0.5,
    niching_iterations=2,
  )
  while not state.done:
    ask_key, tell_key = jax.random.split(jax.random.key(state.num_evaluations))
    child = evolution.ask(ask_key, state)
    failed = state.num_evaluations % 7 == 5
    fitness = float(rng.uniform(0.2, 0.4) + state.num_evaluations / 1e4)
    after = evolution.tell(tell_key, state, child, None if failed else fitness)
    event = _event(state, after, child, None if failed else fitness)
    directory.append_event(_with_text(event, text))
    state = after
  if finished:
    directory.write_result(_result(state, text))


def _event(before, after, child, fitness):
  parent, niche, failed = before.parent, before.niche, fitness is None
  return {
    'evaluation': before.num_evaluations,
    **child.to_json(),
    'parent': parent.evaluation if parent else None,
    'mutation': mutation.describe(parent.genotype, child) if parent else [],
    'fitness_at_birth': None if failed else 0.1,
    'fitness': fitness or 0.0,
    'failure': 'out of <memory>' if failed else None,
    'accepted': not failed and (parent is None or fitness > parent.fitness),
    'niche': niche.origin.evaluation if niche else None,
    'epochs_used': after.epochs_used,
    'flops': 10,
    'seconds': {'compile': 0.5, 'train': 1.0, 'total': 1.5},
    'best_fitness': after.best.fitness,
  }


def _with_text(event, text):
  """An event to whose texts another is added."""
  return {
    **event,
    'mutation': [name + text for name in event['mutation']],
    'failure': event['failure'] and event['failure'] + text,
    'seconds': {
      name if name == 'total' else name + text: value
      for name, value in event['seconds'].items()
    },
  }


def _result(state, text):
  best = state.best
  genotype = best.genotype.to_json()
  return {
    'flops': 10,
    'seconds': 2.0,
    'best': {'evaluation': best.evaluation, 'fitness': best.fitness, **genotype},
    'checkpoints': [
      {
        'epochs': state.epochs_used,
        **genotype,
        'test_accuracy': 0.875,
        'test_accuracy_by_class': {f'<b>cat</b>{text}': 0.9, 'dog': 0.85, '7': None},
        'test_confusion': [[9, 1, 0], [3, 17, 0], [0, 0, 0]],
      }
    ],
  }


def data_of(page: str) -> dict[str, Any]:
  """Returns the content that a page embeds as JSON."""
  found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page)
  assert found
  return json.loads(found.group(1))


@pytest.fixture(scope='module')
def run_directory(tmp_path_factory):
  """A finished search, in a folder whose name HTML must escape."""
  path = tmp_path_factory.mktemp('report') / 'a <run>'
  write_search(path, 40)
  return path


@contextlib.contextmanager
def serving(path: pathlib.Path, **options: Any) -> Iterator[str]:
  """Serves the report of a directory; yields its URL."""
  with server.make_server(str(path), **options) as running:
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    try:
      yield f'http://127.0.0.1:{running.server_port}'
    finally:
      running.shutdown()
      thread.join()


@pytest.fixture(scope='session')
def browser():
  """A real Chromium."""
  playwright = pytest.importorskip(
    'playwright.sync_api', reason='playwright is not installed'
  )
  if not _CHROMIUM:
    pytest.skip('there is no Chromium')
  with playwright.sync_playwright() as driver:
    # Containers run as root, where Chromium has no sandbox.
    browser = driver.chromium.launch(
      executable_path=_CHROMIUM, args=['--no-sandbox', '--disable-dev-shm-usage']
    )
    yield browser
    browser.close()


@contextlib.contextmanager
def opened(browser, url, **options):
  """Opens a page without a network; fails on any message of its console."""
  context = browser.new_context(**options)
  page = context.new_page()
  page.set_default_timeout(120_000)  # Milliseconds; a busy machine loads for long.
  messages = []
  page.on('console', lambda message: messages.append(message.text))
  page.on('pageerror', lambda error: messages.append(str(error)))
  if url.startswith('file:'):
    context.set_offline(True)
  page.goto(url)
  yield page
  context.close()
  assert messages == []
