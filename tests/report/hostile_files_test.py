"""A run or a study that somebody else has made, and means ill, opened in Chromium."""

import json

import pytest

from lamarck_jax.errors import UserError
from lamarck_jax.report import html_page
from lamarck_jax.study import results
from tests import damages
from tests.report.conftest import opened, serving, write_search

TEXT = '<img src=x onerror="hacked=1"><a href="javascript:hacked=2">%{x}</a>\x1b[2J'
# What would be there if a text had become a part of the page, or had run.
_HARM = """() => [
  typeof hacked, document.querySelectorAll(
    'img[src="x"], a[href*="javascript" i], svg a, [onerror]').length]"""


def write_hostile_search(path, **fields):
  write_search(path, 9, text=TEXT, dataset={'name': TEXT}, **fields)


@pytest.fixture(scope='module')
def hostile_study(tmp_path_factory):
  """A study with hostile text wherever text may be, and a run with some elsewhere."""
  root = tmp_path_factory.mktemp('hostile') / '<img src=x onerror="hacked=1">'
  root.mkdir()
  for seed in (1, 2, 3):
    path = root / 'lamarckian' / f'seed{seed}'
    write_hostile_search(path, setting='lamarckian', seed=seed)
    html_page.write(path)
  result = json.loads((path / 'result.json').read_text())
  result['best']['genotype'] = [[TEXT, 3, 1]]
  # As one who means ill would: its own digest is right.
  (path / 'result.json').write_text(json.dumps(damages.resealed(result)))
  runs = [('lamarckian', seed) for seed in (1, 2, 3, 4)]
  results.write_plan(root, runs, {'lamarckian/seed4': TEXT})
  return root


def test_a_hostile_search_is_shown_as_text(browser, tmp_path):
  write_hostile_search(tmp_path / '<script>')
  with opened(browser, html_page.write(tmp_path / '<script>').as_uri()) as page:
    for number in (5, 3):  # A failure, and a mutation.
      page.locator(f'.node[data-evaluation="{number}"]').click(force=True)
      assert TEXT.partition('%')[0] in page.locator('.details').inner_text()
      page.evaluate(
        f"""Plotly.Fx.hover('progress-chart',
          [{{curveNumber: 0, pointNumber: {number}}}])"""
      )
      assert '<img' in page.locator('#progress-chart .hovertext').text_content()
    assert '<img' in page.locator('#time-chart .legend').text_content()
    assert page.evaluate(_HARM) == ['undefined', 0]


def test_a_hostile_study_is_shown_as_text(browser, hostile_study):
  with opened(browser, html_page.write(hostile_study).as_uri()) as page:
    text = page.locator('main').inner_text()
    # The run that was planned, and the one that cannot be read.
    assert text.count('<img src=x') > 3
    assert 'genotype' in text
    assert '\x1b' not in text
    assert page.evaluate(_HARM) == ['undefined', 0]
    page.get_by_role('link', name='report').first.click()
    page.wait_for_selector('.tree svg')
    assert page.evaluate(_HARM) == ['undefined', 0]


def test_names_that_no_study_may_have_do_no_harm_in_the_page(browser, hostile_study):
  content = html_page.collect(hostile_study)
  for setting in content['settings']:
    setting.update(name=TEXT, label=TEXT)
  for row in content['table']:
    row[TEXT] = TEXT
  path = hostile_study / 'names.html'
  path.write_text(html_page.render(content))
  with opened(browser, path.as_uri()) as page:
    page.evaluate("Plotly.Fx.hover('study-chart', [{curveNumber: 0, pointNumber: 3}])")
    assert '<img' in page.locator('#study-chart .hovertext').text_content()
    assert page.evaluate(_HARM) == ['undefined', 0]


@pytest.mark.parametrize(
  'name', ['javascript:hacked=1', '../other', '<b>', '', '.', '..', 'a/b', 'a\nb', 7]
)
def test_other_names_of_settings_are_refused_where_a_study_is_read(tmp_path, name):
  plan = {'format_version': 1, 'runs': [[name, 1]], 'failures': {}}
  (tmp_path / 'study.json').write_text(json.dumps(plan))
  with pytest.raises(UserError, match=r'want a list of .*letters, digits'):
    html_page.collect(tmp_path)


def test_a_script_that_gets_into_the_page_does_not_run(browser, hostile_study):
  for address in (html_page.write(hostile_study).as_uri(), None):
    with serving(hostile_study) as url:
      page = browser.new_page()
      page.set_default_timeout(120_000)
      messages = []
      page.on('console', lambda message, seen=messages: seen.append(message.text))
      page.goto(address or url)
      page.evaluate(
        """() => {
          const script = document.createElement('script');
          script.textContent = 'hacked = 1';
          const image = document.createElement('div');
          image.innerHTML = '<img src="data:," onerror="hacked = 2">';
          const link = document.createElement('a');
          link.href = 'javascript:hacked=3';
          const foreign = document.createElement('script');
          foreign.src = 'http://127.0.0.1:9/x.js';
          document.body.append(script, image, link, foreign);
          link.click();
        }"""
      )
      page.wait_for_timeout(300)
      assert page.evaluate('typeof hacked') == 'undefined'
      assert sum('Content Security Policy' in text for text in messages) == 4
      page.close()
