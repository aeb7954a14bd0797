"""Tests of `report`: what the page holds, and how it behaves in a real Chromium."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from lamarck_jax import evolution, mutation, search
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Genotype
from lamarck_jax.report import html_page
from lamarck_jax.run_directory import records
from lamarck_jax.study import results
from tests.conftest import make_tiny_config

_CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


def write_search(path, num_evaluations, finished=True):
  """Writes a search of random fitness; returns how many evaluations there are."""
  config = make_tiny_config()
  config.budget_epochs = num_evaluations
  config.checkpoint_epochs = (num_evaluations,)
  config.search_space.filters = (4, 8, 16, 32)
  directory = records.RunDirectory(path, config.to_dict())
  directory.write_start({'class_names': ['<b>cat</b>', 'dog']}, {'cores': 2})
  rng = np.random.default_rng(0)
  state = search.initial_state(config)
  while not state.evolution.done:
    number, parent = state.evolution.num_evaluations, state.evolution.parent
    niche = state.evolution.niche
    key = search.random_key(config.seed, number, search.Purpose.MUTATION)
    child = evolution.ask(key, state.evolution)
    failed = number % 7 == 5
    fitness = None if failed else float(rng.uniform(0.2, 0.4) + number / 1e4)
    state = state.tell(child, fitness)
    directory.append_event(
      {
        'evaluation': number,
        **child.to_json(),
        'parent': parent.evaluation if parent else None,
        'mutation': mutation.describe(parent.genotype, child) if parent else [],
        'fitness_at_birth': None if failed else 0.1,
        'fitness': fitness or 0.0,
        'failure': 'out of <memory>' if failed else None,
        'accepted': not failed and (parent is None or fitness > parent.fitness),
        'niche': niche.origin.evaluation if niche else None,
        'epochs_used': state.evolution.epochs_used,
        'flops': 10,
        'seconds': {'compile': 0.5, 'train': 1.0, 'total': 1.5},
        'best_fitness': state.evolution.best.fitness,
      }
    )
  best = state.evolution.best
  if finished:
    directory.write_result(
      {
        'best': {'evaluation': best.evaluation, 'fitness': best.fitness},
        'checkpoints': [
          {
            'epochs': num_evaluations,
            **best.genotype.to_json(),
            'test_accuracy': 0.875,
            'test_accuracy_by_class': {'<b>cat</b>': 0.9, 'dog': 0.85, 'none': None},
          }
        ],
      }
    )
  return state.evolution.num_evaluations


@pytest.fixture(scope='module')
def run_directory(tmp_path_factory):
  path = tmp_path_factory.mktemp('report') / 'a <run>'
  write_search(path, 40)
  return path


def data_of(page: str) -> dict:
  found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page)
  assert found
  return json.loads(found.group(1))


# ------------------------------------------------------------------------------
# The file
# ------------------------------------------------------------------------------


def test_the_page_holds_every_event_and_needs_no_other_file(run_directory):
  path = html_page.write(run_directory)
  page = path.read_text(encoding='utf-8')
  data = data_of(page)
  assert data['events'] == records.read_events(run_directory)
  assert data['environment']['dataset']['class_names'] == ['<b>cat</b>', 'dog']
  assert data['environment']['starts'] == [{'cores': 2}]
  assert '<title>a &lt;run&gt;</title>' in page
  assert not re.search(r'<(script|link|img)[^>]*(src|href)="(?!data:)', page)


def test_a_search_that_runs_still_has_a_report(tmp_path):
  write_search(tmp_path / 'run', 5, finished=False)
  assert data_of(html_page.write(tmp_path / 'run').read_text())['result'] is None


def test_a_search_that_has_just_begun_has_one_too(tmp_path):
  records.RunDirectory(tmp_path, make_tiny_config().to_dict())
  data = data_of(html_page.write(tmp_path).read_text())
  assert data['events'] == []
  assert data['environment'] == {}


def test_other_directories_are_refused_in_one_line(tmp_path):
  process = subprocess.run(
    [sys.executable, '-m', 'lamarck_jax.report', str(tmp_path)],
    capture_output=True,
    text=True,
  )
  assert process.returncode == 2
  assert re.fullmatch(r'error: report: got .*, want the directory .*\n', process.stderr)


def test_a_report_that_cannot_be_made_is_a_warning_after_a_search(tmp_path, caplog):
  assert html_page.write_if_possible(tmp_path) is None
  assert 'no report' in caplog.text


def test_a_report_newer_than_the_results_is_left_as_it_is(tmp_path):
  write_search(tmp_path, 2)
  path = html_page.write_if_possible(tmp_path)
  path.write_text('seen')
  assert html_page.write_if_possible(tmp_path) == path
  assert path.read_text() == 'seen'
  later = path.stat().st_mtime + 1
  os.utime(tmp_path / 'result.json', (later, later))
  html_page.write_if_possible(tmp_path)
  assert len(data_of(path.read_text())['events']) == 2


def test_nan_becomes_null():
  page = html_page.render(
    {'title': 'x', 'a': [float('nan'), {'b': float('inf')}], 'c': 1}
  )
  assert data_of(page) == {'title': 'x', 'a': [None, {'b': None}], 'c': 1}


# ------------------------------------------------------------------------------
# Serving
# ------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(path):
  with html_page.make_server(str(path)) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
      yield f'http://127.0.0.1:{server.server_port}'
    finally:
      server.shutdown()
      thread.join()


def test_the_server_shows_the_present_state_and_no_other_file(tmp_path):
  write_search(tmp_path, 6, finished=False)
  with serving(tmp_path) as url:
    with urllib.request.urlopen(f'{url}/') as response:
      assert len(data_of(response.read().decode())['events']) == 6
    events = (tmp_path / 'events.jsonl').read_text().splitlines(keepends=True)
    (tmp_path / 'events.jsonl').write_text(''.join(events[:4]))
    with urllib.request.urlopen(f'{url}/data.json') as response:
      assert len(json.load(response)['events']) == 4
    for path in ('/config.json', '/../../etc/passwd'):
      with pytest.raises(urllib.error.HTTPError, match='404'):
        urllib.request.urlopen(url + path)


def test_a_port_in_use_is_refused(tmp_path):
  write_search(tmp_path, 2)
  with html_page.make_server(str(tmp_path)) as server:
    assert server.server_address[0] == '127.0.0.1'
    with pytest.raises(UserError, match='port: got'):
      html_page.make_server(str(tmp_path), port=server.server_port)


# ------------------------------------------------------------------------------
# In a browser
# ------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def browser():
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
  messages = []
  page.on('console', lambda message: messages.append(message.text))
  page.on('pageerror', lambda error: messages.append(str(error)))
  if url.startswith('file:'):
    context.set_offline(True)
  page.goto(url)
  yield page
  context.close()
  assert messages == []


def test_the_tree_has_a_node_per_event_and_a_click_shows_the_network(
  browser, run_directory
):
  events = records.read_events(run_directory)
  with opened(browser, html_page.write(run_directory).as_uri()) as page:
    nodes = page.locator('.tree .node')
    assert nodes.count() == len(events)
    assert page.locator('.tree .edge').count() == len(events) - 1
    for event in (events[3], events[5], events[-1]):
      page.locator(f'.node[data-evaluation="{event["evaluation"]}"]').click(force=True)
      details = page.locator('.details')
      genotype = str(Genotype.from_json(event))
      assert details.locator('dd').first.inner_text() == genotype
      assert details.locator('.network .block').count() == len(event['genotype'])
      if event['failure']:
        assert 'failed: out of <memory>' in details.inner_text()
    assert '87.5 %' in page.locator('.tiles').inner_text()
    assert '<b>cat</b>, dog' in page.locator('main').inner_text()
    rows = page.locator('#classes-table tbody tr')
    assert [row.inner_text().split('\t')[:2] for row in rows.all()] == [
      ['none', 'no examples'],
      ['dog', '85.0 %'],
      ['<b>cat</b>', '90.0 %'],
    ]


def test_the_keyboard_is_enough(browser, run_directory):
  events = records.read_events(run_directory)
  with opened(browser, html_page.write(run_directory).as_uri()) as page:
    page.locator('.node[tabindex="0"]').focus()
    page.keyboard.press('End')
    last = events[-1]
    chosen = page.locator('.node.selected')
    assert chosen.get_attribute('data-evaluation') == str(last['evaluation'])
    page.keyboard.press('ArrowUp')
    assert chosen.get_attribute('data-evaluation') == str(last['parent'])
    page.keyboard.press('ArrowLeft')
    before = last['parent'] - 1
    assert chosen.get_attribute('data-evaluation') == str(before)
    assert page.evaluate('document.activeElement.dataset.evaluation') == str(before)
    # A heading sorts, and keeps the focus.
    page.locator('th button', has_text='accuracy').focus()
    page.keyboard.press('Enter')
    page.keyboard.press('Enter')
    first = page.locator('#evaluations-table tbody tr').first
    best = max(events, key=lambda event: event['fitness'])
    assert first.get_attribute('data-evaluation') == str(best['evaluation'])
    page.get_by_label('wall-clock time').check()
    title = page.locator('#progress-chart .xtitle')
    assert title.text_content() == 'time, minutes'


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_stands_out_on_a_phone_in_both_schemes(browser, run_directory, scheme):
  options = {'viewport': {'width': 390, 'height': 844}, 'color_scheme': scheme}
  with opened(browser, html_page.write(run_directory).as_uri(), **options) as page:
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    colors = page.evaluate(
      """() => {
        const style = getComputedStyle(document.body);
        return [style.color, style.backgroundColor].map(
          (color) => color.match(/[0-9.]+/g).slice(0, 3).map(Number));
      }"""
    )

    def luminance(color):
      parts = [value / 255 for value in color]
      linear = [p / 12.92 if p <= 0.04 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
      return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    low, high = sorted(map(luminance, colors))
    assert (high + 0.05) / (low + 0.05) > 7
    assert (luminance(colors[1]) < 0.5) == (scheme == 'dark')


def test_five_thousand_evaluations_stay_smooth(browser, tmp_path):
  count = write_search(tmp_path, 5000)
  url = html_page.write(tmp_path).as_uri()
  start = time.monotonic()
  with opened(browser, url) as page:
    assert page.locator('.tree .node').count() == count == 5000
    opening = time.monotonic() - start
    # Medians, in milliseconds, until the next frame is drawn.
    medians = page.evaluate(
      """async () => {
        const frame = () => new Promise((done) => requestAnimationFrame(() =>
          setTimeout(done, 0)));
        const median = async (action) => {
          const times = [];
          for (let i = 0; i < 9; i++) {
            const start = performance.now();
            action(i);
            await frame();
            times.push(performance.now() - start);
          }
          return times.sort((a, b) => a - b)[4];
        };
        const buttons = document.querySelectorAll('th button');
        const tree = document.querySelector('.tree');
        return {
          select: await median((i) => view.select(500 * i)),
          scroll: await median((i) => { tree.scrollLeft = 3000 * i; }),
          sort: await median((i) => {
            document.querySelectorAll('th button')[i % 9].click();
          }),
        };
      }"""
    )
  # Generous on purpose: a busy machine with two cores and no GPU must pass.
  assert opening < 30
  assert medians['select'] < 250
  assert medians['scroll'] < 250
  assert medians['sort'] < 500


def test_a_served_page_grows_with_the_search(browser, tmp_path):
  write_search(tmp_path, 12, finished=False)
  whole = (tmp_path / 'events.jsonl').read_text().splitlines(keepends=True)
  (tmp_path / 'events.jsonl').write_text(''.join(whole[:5]))
  with serving(tmp_path) as url, opened(browser, url) as page:
    assert page.locator('.tree .node').count() == 5
    page.locator('.node[data-evaluation="1"]').click(force=True)
    (tmp_path / 'events.jsonl').write_text(''.join(whole))
    page.wait_for_function(
      'document.querySelectorAll(".node[data-evaluation]").length == 12'
    )
    chosen = page.locator('.node.selected')
    assert chosen.get_attribute('data-evaluation') == '1'


def test_a_study_has_its_table_tests_figures_and_runs(browser, tmp_path):
  for setting, inheritance in (('lamarckian', 'lamarckian'), ('baseline_1', 'none')):
    for seed in (1, 2):
      path = tmp_path / setting / f'seed{seed}'
      write_study_run(path, setting, inheritance, seed)
      html_page.write(path)
  runs = [(name, seed) for name in ('lamarckian', 'baseline_1') for seed in (1, 2, 3)]
  results.write_plan(tmp_path, runs, {'baseline_1/seed3': 'its worker died'})
  with opened(browser, html_page.write(tmp_path).as_uri()) as page:
    text = page.locator('main').inner_text()
    assert 'its worker died' in text
    assert 'Mann-Whitney' in text
    assert page.locator('.figures img').count() == 3
    for image in page.locator('.figures img').all():
      assert image.evaluate('(image) => image.naturalWidth') > 300
    assert page.get_by_role('link', name='report').count() == 4
    page.get_by_role('link', name='report').first.click()
    page.wait_for_selector('.tree svg')
    assert page.locator('.tree .node').count() > 0


def write_study_run(path, setting, inheritance, seed):
  """Writes a finished run of a study."""
  write_search(path, 9)
  config = json.loads((path / 'config.json').read_text())
  config['config'].update(setting=setting, inheritance=inheritance, seed=seed)
  (path / 'config.json').write_text(json.dumps(config))
  result = json.loads((path / 'result.json').read_text())
  best = records.read_events(path)[result['best']['evaluation']]
  result.update(flops=10, seconds=2.0)
  result['best']['genotype'] = best['genotype']
  (path / 'result.json').write_text(json.dumps(result))
