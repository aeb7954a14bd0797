"""Files of which any value is another: every program ends in order.

Their digests are those of what they contain now, as somebody who means ill would write
them, or there are none, as in runs and exports of older formats.
"""

import hashlib
import json
import pathlib
import shutil
from typing import Any
import zlib

import hypothesis
from hypothesis import strategies as st
import pytest

from lamarck_jax.study import results
from tests import damages
from tests.bad_input_test import STORED
from tests.programs import Programs, check_end
from tests.undisturbed import LOAD

_FLAGS = (
  '--config.seed=1',
  '--config.dataset.num_train=96',
  '--config.dataset.num_validation=50',
  '--config.budget_epochs=4',
  '--config.epochs_per_evaluation=1',
  '--config.niching.rate=0.1',
  '--config.niching.iterations=5',
  '--config.search_space.filters=(4,8)',
  '--config.search_space.kernel_sizes=(1,3)',
  '--config.checkpoint_epochs=(2,)',
  '--config.completion.epochs=(1,)',
  '--config.completion.learning_rates=(1e-3,)',
  '--xla_cache_dir=',
)


@pytest.fixture(scope='module')
def whole(tmp_path_factory, programs):
  """Returns what runs programs, and a folder with a run, an export and a study."""
  root = tmp_path_factory.mktemp('whole')

  def run(*argv: Any) -> None:
    outcome = programs.run(*argv)
    assert outcome.status == 0, outcome

  shutil.copytree(STORED, root / 'run')
  (root / 'run' / 'result.json').unlink()
  run('run_evolution.py', *_FLAGS, f'--workdir={root / "run"}')
  run('lamarck_jax.export', root / 'run', f'--out={root / "export"}')
  path = root / 'export' / 'network.json'
  content = json.loads(path.read_text())
  del content['files'], content['sha256']
  path.write_text(json.dumps({**content, 'format_version': 1}))
  for name in ('lamarckian', 'baseline_1'):
    shutil.copytree(root / 'run', root / 'study' / name / 'seed1')
  results.write_plan(root / 'study', [('lamarckian', 1), ('baseline_1', 1)])
  (root / 'load.py').write_text(LOAD)
  return programs, root


# ------------------------------------------------------------------------------
# Changing a file
# ------------------------------------------------------------------------------


def _change(data: st.DataObject, path: pathlib.Path) -> None:
  """Changes values of a file, and makes its digests fit."""
  if path.name == 'events.jsonl':
    lines = path.read_bytes().splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    event = data.draw(damages.mutated(json.loads(lines[number])))
    event.pop('crc32', None)
    summed = {name: value for name, value in event.items() if name != 'seconds'}
    event['crc32'] = f'{zlib.crc32(json.dumps(summed).encode()):08x}'
    lines[number] = json.dumps(event).encode()
    path.write_bytes(b'\n'.join(lines) + b'\n')
    return
  content = data.draw(damages.mutated(json.loads(path.read_text())))
  if path.name == 'dataset.json':
    content.pop('sha256', None)
    text = json.dumps(content, sort_keys=True)
    content['sha256'] = hashlib.sha256(text.encode()).hexdigest()
  elif path.name == 'study.json' and data.draw(st.booleans()):
    content = damages.resealed(content)
  path.write_text(json.dumps(content))


_RUN = ('config.json', 'events.jsonl', 'result.json', 'dataset.json')
_STATE = ('environment.json', 'completed/000000.json')
# Program -> the folder that it takes, and the files that are changed.
TARGETS = {
  'run_evolution.py': ('run', _RUN),
  'run_evolution.py resumed': ('run', ('events.jsonl', 'dataset.json', *_STATE)),
  'lamarck_jax.export': ('run', (*_RUN, *_STATE)),
  'load.py of a run': ('run', (*_RUN, *_STATE)),
  'load.py': ('export', ('network.json',)),
  'lamarck_jax.report': ('run', (*_RUN, *_STATE)),
  'lamarck_jax.study.tables': (
    'study',
    ('study.json', *(f'lamarckian/seed1/{name}' for name in _RUN)),
  ),
  'lamarck_jax.study.before_training': (
    'study',
    ('lamarckian/seed1/config.json', 'lamarckian/seed1/events.jsonl'),
  ),
}


def try_one(
  programs: Programs,
  root: pathlib.Path,
  target: str,
  path: pathlib.Path,
  data: st.DataObject,
) -> None:
  """Changes a file of a copy in `path`, and runs a program on it."""
  name, files = TARGETS[target]
  shutil.rmtree(path, ignore_errors=True)
  shutil.copytree(root / name, path / name)
  _change(data, path / name / data.draw(st.sampled_from(files)))
  program, argv = target.split()[0], [str(path / name)]
  if program == 'run_evolution.py':
    argv = [*_FLAGS, f'--workdir={path / name}']
  if target.endswith('resumed'):
    (path / name / 'result.json').unlink()
  if program == 'lamarck_jax.export':
    argv.append(f'--out={path / "out"}')
  if program == 'load.py':
    program = str(root / program)
  check_end(programs.run(program, *argv))


@pytest.mark.parametrize('max_examples', [8, pytest.param(150, marks=pytest.mark.slow)])
@pytest.mark.parametrize('target', TARGETS)
def test_a_program_ends_in_order_whatever_a_file_says(
  whole, tmp_path, target, max_examples
):
  programs, root = whole

  # Nothing is shrunk: an attempt takes a while.
  @hypothesis.settings(
    max_examples=max_examples,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(st.data())
  def attempt(data):
    try_one(programs, root, target, tmp_path / 'copy', data)

  attempt()
