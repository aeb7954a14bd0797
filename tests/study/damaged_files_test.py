"""Studies of which some files are damaged, or were made by somebody who means ill."""

import concurrent.futures
import json
import pathlib
import re
import shutil

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from lamarck_jax.errors import UserError
from lamarck_jax.report import html_page
from lamarck_jax.run_directory import records
from lamarck_jax.study import before_training, figures, results, runner, tables
from tests import damages
from tests.conftest import read_events
from tests.report.conftest import write_search
from tests.study.conftest import make_tasks

RUN_FILES = ('config.json', 'events.jsonl', 'result.json')


def garbage_line(path, other):
  path.write_text('garbage\n' + path.read_text())


DAMAGES = (
  damages.empty,
  damages.truncate,
  damages.exchange,
  damages.wrong_form,
  garbage_line,
  damages.nesting,
  damages.pipe,
  damages.directory,
)
# What leaves a whole file: as after a crash, or one that belongs to the same network.
HARMLESS = {
  ('events.jsonl', damages.empty),
  ('events.jsonl', damages.truncate),
  ('events.jsonl', damages.exchange),
  ('events.jsonl', damages.nesting),
  ('events.jsonl', damages.wrong_form),
  ('result.json', damages.exchange),
}


@pytest.fixture(scope='module')
def whole_study(tmp_path_factory):
  """A study of two settings with three runs each."""
  root = tmp_path_factory.mktemp('whole')
  names = ('lamarckian', 'baseline_1')
  for setting in names:
    for seed in (1, 2, 3):
      path = root / setting / f'seed{seed}'
      write_search(path, 6, setting=setting, inheritance='none', seed=seed)
  results.write_plan(root, [(name, seed) for seed in (1, 2, 3) for name in names])
  return root


@pytest.fixture
def study_directory(whole_study, tmp_path):
  shutil.copytree(whole_study, tmp_path / 'study')
  return tmp_path / 'study'


@pytest.mark.parametrize('damage', DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize('name', RUN_FILES)
def test_a_run_that_cannot_be_read_is_named_and_missing(study_directory, name, damage):
  path = study_directory / 'lamarckian' / 'seed2' / name
  damage(path, study_directory / 'lamarckian' / 'seed3' / name)
  lamarckian, baseline = results.load(study_directory).settings
  assert [run.seed for run in baseline.runs] == [1, 2, 3]
  if lamarckian.missing:
    assert [run.seed for run in lamarckian.runs] == [1, 3]
    assert path.parent.name in lamarckian.missing[2]
  else:
    assert (name, damage) in HARMLESS
  before_training.collect(study_directory)
  # Its own report is written, or refused in one line.
  try:
    html_page.to_json(html_page.collect(path.parent))
  except UserError as error:
    assert '\n' not in str(error)


def test_a_setting_without_a_run_that_can_be_read_is_named(study_directory, caplog):
  for seed in (1, 2, 3):
    (study_directory / 'lamarckian' / f'seed{seed}' / 'config.json').write_text('{')
  (setting,) = results.load(study_directory).settings
  assert setting.name == 'baseline_1'
  assert len(re.findall('lamarckian/seed. is missing', caplog.text)) == 3


@pytest.mark.parametrize('name', ['study.json', 'results.json'])
@pytest.mark.parametrize('damage', DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_of_a_study_is_refused_in_one_line(
  study_directory, name, damage
):
  results.write(results.load(study_directory), study_directory / 'results.json')
  if name == 'results.json':
    (study_directory / 'study.json').unlink()
  if damage is damages.exchange:
    (study_directory / 'other').write_text('[1]')
  damage(study_directory / name, study_directory / 'other')
  with pytest.raises(UserError, match=f'got .*{name}') as caught:
    results.load(study_directory)
  assert '\n' not in str(caught.value)


def test_a_run_planned_twice_counts_once(study_directory):
  path = study_directory / 'study.json'
  plan = json.loads(path.read_text())
  path.write_text(json.dumps(damages.resealed({**plan, 'runs': plan['runs'] * 2})))
  assert [len(setting.runs) for setting in results.load(study_directory).settings] == [
    3,
    3,
  ]


def test_reasons_and_names_do_not_control_the_terminal_latex_or_markdown(
  study_directory,
):
  plan = json.loads((study_directory / 'study.json').read_text())
  plan['runs'].append(['lamarckian', 4])
  plan['failures'] = {'lamarckian/seed4': 'a\x1b[2J\nb'}
  (study_directory / 'study.json').write_text(json.dumps(damages.resealed(plan)))
  for path in study_directory.glob('*/seed*/config.json'):
    config = json.loads(path.read_text())
    config['config']['dataset']['name'] = '\\input{x}|y'
    path.write_text(json.dumps(config))
  study = results.load(study_directory)
  report = tables.report(study)
  assert r'seed 4 (a\x1b[2J\nb)' in report
  assert r'\input{x}\|y' in report
  assert r'\textbackslash{}input\{x\}|y' in tables.to_latex(study)


# ------------------------------------------------------------------------------
# Anything at all
# ------------------------------------------------------------------------------

_FUZZ = settings(max_examples=50, deadline=None, derandomize=True)


def use(study):
  """Makes of a study what takes no second, as the tests and figures do."""
  tables.to_csv(study)
  tables.to_latex(study)


@_FUZZ
@given(st.data())
def test_any_run_is_read_or_missing(whole_study, tmp_path_factory, data):
  root = tmp_path_factory.mktemp('fuzz')
  for name in ('lamarckian', 'baseline_1'):
    shutil.copytree(whole_study / name / 'seed1', root / name / 'seed1')
  results.write_plan(root, [('lamarckian', 1), ('baseline_1', 1)])
  path = root / 'lamarckian' / 'seed1'
  kind = data.draw(st.sampled_from(RUN_FILES))
  if kind == 'events.jsonl':
    events = [
      {**event, 'seconds': {'total': 1.0}, 'crc32': None} for event in read_events(path)
    ]
    (path / kind).unlink()
    changed = data.draw(damages.mutated({'events': events})).get('events')
    config = json.loads((path / 'config.json').read_text())['config']
    run = records.RunDirectory(path, config)
    for event in changed if isinstance(changed, list) else []:
      if isinstance(event, dict) and 'evaluation' in event:
        event.pop('crc32', None)
        run.append_event(event)
  else:
    content = json.loads((path / kind).read_text())
    (path / kind).write_text(json.dumps(data.draw(damages.mutated(content))))
  use(results.load(root))
  try:
    html_page.to_json(html_page.collect(path))
  except UserError as error:
    assert '\n' not in str(error)
  shutil.rmtree(root)


@_FUZZ
@given(st.data())
def test_any_plan_and_any_results_are_read_or_refused(
  whole_study, tmp_path_factory, data
):
  root = tmp_path_factory.mktemp('fuzz')
  study = results.load(whole_study)
  if data.draw(st.booleans()):
    results.write(study, root / 'results.json')
    path = root / 'results.json'
  else:
    for name in ('lamarckian', 'baseline_1'):
      (root / name).symlink_to(whole_study / name)
    path = root / 'study.json'
    shutil.copyfile(whole_study / 'study.json', path)
  content = damages.resealed(data.draw(damages.mutated(json.loads(path.read_text()))))
  path.write_text(json.dumps(content))
  try:
    use(results.load(root))
  except UserError as error:
    assert '\n' not in str(error)
  shutil.rmtree(root)


# ------------------------------------------------------------------------------
# The command
# ------------------------------------------------------------------------------


class Recorder:
  """An executor that starts nothing, and remembers what it was given."""

  num_workers = 1

  def __init__(self):
    self.names = []

  def submit(self, task):
    self.names.append(task.name)
    future = concurrent.futures.Future()
    future.set_result('could not be read')
    return future

  def close(self):
    pass


@pytest.mark.parametrize('name', RUN_FILES)
def test_the_study_goes_on_and_starts_the_damaged_runs_alone(
  whole_study, tmp_path, name
):
  for number, task in enumerate(make_tasks(tmp_path, '', num_seeds=len(DAMAGES))):
    shutil.copytree(whole_study / 'lamarckian' / 'seed1', task.workdir)
    content = {'format_version': 2, 'config': task.config.to_dict()}
    (task.workdir / 'config.json').write_text(json.dumps(content))
    DAMAGES[number](task.workdir / name, pathlib.Path(__file__))
  tasks = make_tasks(tmp_path, '', num_seeds=len(DAMAGES))
  executor = Recorder()
  progress = runner.Progress(tasks)
  failures = runner.run(tasks, executor, progress.ended, progress.update)
  progress.close()
  names = [task.name for task in failures]
  assert executor.names == names
  # A result counts without its events where nothing binds it to them.
  assert len(names) == (0 if name == 'events.jsonl' else len(DAMAGES))


def test_the_figures_of_a_full_disk_leave_no_file_behind(study, tmp_path):
  (tmp_path / 'accuracy.png').mkdir()
  with pytest.raises(Exception, match=r'accuracy\.png'):
    figures.write_figures(study, tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['accuracy.png']
