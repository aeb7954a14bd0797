"""README, docs and notes agree with the code: links, commands, examples, names."""

import pathlib
import pkgutil
import re

import pytest

from lamarck_jax import config

_ROOT = pathlib.Path(__file__).parents[1]
_GENERATED = {'_build', 'reference', 'jupyter_execute', 'runs'}
_PAGES = [
  _ROOT / 'README.md',
  _ROOT / 'BUILD_NOTES.md',
  *(
    path
    for path in sorted((_ROOT / 'docs').rglob('*.md'))
    if not _GENERATED & set(path.relative_to(_ROOT / 'docs').parts)
  ),
]
_README = _PAGES[0].read_text()

each_page = pytest.mark.parametrize(
  'page', _PAGES, ids=lambda page: str(page.relative_to(_ROOT))
)


def _code_blocks(text: str, language: str) -> list[str]:
  return re.findall(rf'^```{language}\n(.*?)^```', text, re.DOTALL | re.MULTILINE)


def _prose(text: str) -> str:
  return re.sub(r'^```.*?^```', '', text, flags=re.DOTALL | re.MULTILINE)


def _anchors(text: str) -> set[str]:
  """The anchors of a page's headings, as GitHub and MyST name them."""
  headings = re.findall(r'^#+ +(.*)$', _prose(text), re.MULTILINE)
  return {
    re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings
  }


@each_page
def test_every_link_leads_somewhere(page):
  for link in re.findall(r'\]\(([^)\s]+)\)', _prose(page.read_text())):
    if re.match(r'https?:', link):
      continue
    name, _, anchor = link.partition('#')
    target = page.parent / name if name else page
    assert target.exists(), link
    if anchor:
      assert anchor in _anchors(target.read_text()), link


@each_page
def test_every_command_names_files_and_modules_that_exist(page):
  text = page.read_text()
  for module in re.findall(r'python -m ((?:lamarck_jax|benchmarks)[.\w]*\w)', text):
    path = _ROOT / module.replace('.', '/')
    assert path.with_suffix('.py').exists() or (path / '__main__.py').exists(), module
  for name in re.findall(r'--config=([\w/]+\.py)', text):
    assert (_ROOT / name).exists(), name


@each_page
def test_every_search_with_other_fields_has_a_directory_of_its_own(page):
  # The default directory is that of config file, setting and seed.
  text = page.read_text().replace('\\\n', ' ')
  for command in re.findall(r'python run_evolution\.py[^\n`]*', text):
    fields = {*re.findall(r'--(config\.[\w.]+|tensorboard_dir)', command)}
    if fields - {'config.seed'}:
      assert '--workdir=' in command, command


def test_the_readme_is_short():
  assert 600 <= len(_README.split()) <= 900


def test_the_python_of_the_readme_is_a_search_that_ends():
  _, block = _code_blocks(_README, 'python')  # The notebook runs what the first shows.
  names = {}
  exec(block, names)
  assert names['state'].done
  assert names['state'].best.fitness > 0.1  # Better than guessing.


def test_the_readmes_map_names_every_file_of_the_paper():
  section = _README.split('## The paper in nine files')[1].split('\n## ')[0]
  names = re.findall(r'^\| \[`(\w+)`\]', section, re.MULTILINE)
  assert len(names) == 9
  for name in names:
    assert f'](lamarck_jax/{name}.py)' in section


def test_ci_runs_the_test_command_of_the_readme():
  (command,) = (block for block in _code_blocks(_README, 'bash') if 'pytest' in block)
  assert command in (_ROOT / '.ci' / 'run').read_text()


def test_the_user_guide_has_every_field_of_the_configuration():
  guide = (_ROOT / 'docs' / 'user_guide.md').read_text()
  for name in config.field_names(config.get_config()):
    assert f'| `{name}` |' in guide, name


def _paper_map() -> list[list[str]]:
  """The rows of the table in the notes: sentence, code, test."""
  notes = (_ROOT / 'BUILD_NOTES.md').read_text()
  section = notes.split('## The paper, sentence by sentence')[1].split('\n## ')[0]
  lines = [line.strip('|') for line in section.splitlines() if line.startswith('| ')]
  return [line.split(' | ') for line in lines[1:]]


def test_the_code_for_every_sentence_of_the_paper_exists():
  rows = _paper_map()
  assert len(rows) > 30
  for sentence, code, _ in rows:
    names = re.findall(r'`([\w./*]+)`', code)
    assert names, sentence
    for name in names:
      if '/' in name:
        assert list(_ROOT.glob(name)), name
      else:
        pkgutil.resolve_name(f'lamarck_jax.{name}')


def test_the_test_for_every_sentence_of_the_paper_exists():
  tests = ''.join(path.read_text() for path in (_ROOT / 'tests').rglob('*_test.py'))
  for sentence, _, test in _paper_map():
    names = re.findall(r'`(\w+)`', test)
    assert names, sentence
    for name in names:
      assert f'\ndef {name}(' in tests, name


def test_the_reference_has_every_package():
  reference = (_ROOT / 'docs' / 'reference.md').read_text()
  for path in (_ROOT / 'lamarck_jax').glob('*/__init__.py'):
    assert f'\nreference/{path.parent.name}\n' in reference
