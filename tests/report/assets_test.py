"""How the page behaves in a real Chromium."""

import time

import numpy as np
import pytest

from lamarck_jax.genotype import Genotype
from lamarck_jax.report import html_page
from lamarck_jax.run_directory import records
from lamarck_jax.study import results
from tests.report.conftest import opened, serving, write_search


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
      ['7', 'no examples'],
      ['dog', '85.0 %'],
      ['<b>cat</b>', '90.0 %'],
    ]
    rows = page.locator('#confusion-table tbody tr')
    assert [row.inner_text().split('\t') for row in rows.all()] == [
      ['<b>cat</b>', '9', '1', '0'],
      ['dog', '3', '17', '0'],
      ['7', '0', '0', '0'],
    ]
    assert 'dog taken for <b>cat</b> (3)' in page.locator('main').inner_text()
    page.locator('input[name="size"]').last.check()
    front = page.evaluate("document.getElementById('size-chart').data[1].y")
    assert front == sorted(set(front))


def test_the_page_shows_the_balanced_accuracies_that_were_selected_for(
  browser, tmp_path
):
  write_search(tmp_path / 'run', 9, fitness='balanced_accuracy')
  with opened(browser, html_page.write(tmp_path / 'run').as_uri()) as page:
    # As the page has it, since its style may show text in capitals.
    tiles = page.locator('.tiles').text_content()
    assert 'best balanced validation accuracy' in tiles
    assert 'balanced test accuracy' in tiles
    chart = "document.getElementById('progress-chart').layout.yaxis.title.text"
    assert page.evaluate(chart) == 'balanced validation accuracy'
    heads = page.locator('section th').all_text_contents()
    assert heads.count('balanced validation accuracy') == 2
    assert 'validation accuracy' not in heads


def test_a_crossover_has_both_parents_in_the_tree_and_its_seam_in_the_details(
  browser, run_directory, tmp_path
):
  stored = records.read_events(run_directory)
  crossover = {'mate': 1, 'cut': [2, 1], 'r2': 0.875}
  for event in stored:
    event['generation'] = (event['evaluation'] + 3) // 4
  stored[-1] |= {'parents': [2, 1], 'crossover': crossover}
  blocks = [[8, 3, 1], [16, 3, 2], [8, 1, 1]]
  stored[-1] |= {'genotype': blocks, 'lineages': [1, 2, 3], 'next_lineage': 4}
  directory = records.RunDirectory(tmp_path / 'run', records.read_config(run_directory))
  for event in stored:
    directory.append_event(event)
  with opened(browser, html_page.write(tmp_path / 'run').as_uri()) as page:
    assert page.locator('.tree .edge').count() == len(stored)  # The first has none.
    page.locator(f'.node[data-evaluation="{len(stored) - 1}"]').click(force=True)
    details = page.locator('.details').inner_text()
    assert 'behind block 2 of the first and 1 of the second parent, R² 0.88' in details
    assert 'evaluation 2' in details
    picture = page.locator('.network')
    parts = picture.locator('g[data-parent]')
    assert [part.get_attribute('data-parent') for part in parts.all()] == [
      *'22',  # The blocks before the cut, and the block, pooling and classifier behind.
      *'111',
    ]
    assert picture.locator('.seam').text_content() == (
      'from evaluation 2from evaluation 1, R² 0.88'
    )
    row = page.locator(f'#evaluations-table tr[data-evaluation="{len(stored) - 1}"]')
    assert row.locator('td').all_inner_texts()[3:5] == ['10', '2, 1']
    page.get_by_role('radio', name='generation').check()
    assert page.locator('#progress-chart .xtitle').text_content() == 'generation'
    assert page.locator('.tree line.generation').count() == 10
    page.locator('.details button', has_text='evaluation 1').click()
    assert page.locator('.node.selected').get_attribute('data-evaluation') == '1'


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
  write_search(tmp_path, 5000)
  url = html_page.write(tmp_path).as_uri()
  start = time.monotonic()
  with opened(browser, url) as page:
    assert page.locator('.tree .node').count() == 5000
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
  # Generous limits, so that a busy machine with two cores and no GPU passes.
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
    page.locator('.node[data-evaluation="11"]').wait_for(state='attached')
    chosen = page.locator('.node.selected')
    assert chosen.get_attribute('data-evaluation') == '1'


def test_a_study_has_its_table_tests_figures_and_runs(browser, tmp_path):
  for setting, inheritance in (('lamarckian', 'lamarckian'), ('baseline_1', 'none')):
    for seed in (1, 2):
      path = tmp_path / setting / f'seed{seed}'
      write_search(path, 9, setting=setting, inheritance=inheritance, seed=seed)
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
