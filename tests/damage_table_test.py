"""Every file of a run, a study and an export, damaged in every way, and every program.

A program ends as if nothing had happened, or with one line and exit status 1 or 2;
nothing of value is overwritten or removed either way. A sample of the table is in the
default run, the whole is slow.
"""

import json
import os
import pathlib
import re
import shutil
import stat
from typing import Any

import pytest

from tests import damages, undisturbed
from tests.programs import check_end
from tests.undisturbed import (
  BEFORE_TRAINING,
  EXPORT,
  FIGURES,
  REPORT,
  SEARCH,
  SEED,
  STUDY,
  TABLES,
  Whole,
  study_flags,
)

# The files by kind: what follows them is the pattern of their names.
RUN = {
  'config.json': 'config.json',
  'events.jsonl': 'events.jsonl',
  'weights': 'weights/[0-9]*',
  'completing': 'weights/completing_*',
  'completed weights': 'weights/completed_*',
  'outcome': 'completed/*',
  'dataset.json': 'dataset.json',
  'environment.json': 'environment.json',
  'result.json': 'result.json',
  '.lock': '.lock',
  'report.html': 'report.html',
}
FINISHED = tuple(kind for kind in RUN if kind != 'completing')
EXPORTED = ('network.json', 'network.stablehlo', 'weights.safetensors', 'README.md')
STUDIED = ('study.json', 'results.json', 'table.txt', 'table.csv', 'report.html')
OF_STUDY = ('config.json', 'events.jsonl', 'completed weights', 'result.json', '.lock')


@pytest.fixture(scope='module')
def whole(tmp_path_factory, shared_compilation_cache, programs):
  root = tmp_path_factory.mktemp('whole')
  return undisturbed.make(programs, root, shared_compilation_cache)


@pytest.fixture(scope='module')
def quick(tmp_path_factory, shared_compilation_cache, programs):
  root = tmp_path_factory.mktemp('quick')
  return undisturbed.make_quick(programs, root, shared_compilation_cache)


Contents = dict[str, bytes | str]

# ------------------------------------------------------------------------------
# What is compared
# ------------------------------------------------------------------------------


def contents(root: pathlib.Path) -> Contents:
  """Returns what a folder contains: the bytes of a file, or what else it is."""
  found: Contents = {}
  for path in sorted(root.rglob('*')):
    mode = path.lstat().st_mode
    if stat.S_ISREG(mode):
      content: bytes | str = path.read_bytes()
    elif stat.S_ISLNK(mode):
      content = f'link to {os.readlink(path)}'
    else:
      content = stat.filemode(mode)
    found[str(path.relative_to(root))] = content
  return found


def within(folder: str, files: Contents) -> Contents:
  """Returns those of some files that are in a folder."""
  return {
    name.removeprefix(folder): content
    for name, content in files.items()
    if name.startswith(folder)
  }


def comparable(name: str, content: bytes | str | None) -> Any:
  """Returns the content of a file without what differs between equal runs."""
  if isinstance(content, bytes) and not name.endswith('.safetensors'):
    if name.endswith('report.html'):
      return content.endswith(b'</html>\n')
    if name.endswith('environment.json'):
      return json.loads(content)['dataset']
    if name.endswith('.jsonl'):
      return [_without_seconds(json.loads(line)) for line in content.splitlines()]
    if name.endswith('.json'):
      return _without_seconds(json.loads(content))
  return content


def _without_seconds(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _without_seconds(v) for k, v in value.items() if k != 'seconds'}
  return [_without_seconds(v) for v in value] if isinstance(value, list) else value


def network(path: pathlib.Path) -> list[Any]:
  """Returns what an export has of its network; programs name source lines."""
  description = json.loads((path / 'network.json').read_text())
  names = ('weights.safetensors', 'README.md')
  return [
    {k: v for k, v in description.items() if k not in ('files', 'sha256')},
    *((path / name).read_bytes() for name in names),
    (path / 'network.stablehlo').stat().st_size > 0,
  ]


def changes(before: Contents, after: Contents) -> set[str]:
  """Returns the names of what has been changed, added or removed."""
  return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def check_kept(before: Contents, after: Contents, finished: Contents) -> None:
  """Checks that a run has what the undisturbed one has.

  Args:
    before: The files with the damaged one.
    after: The same when the program has ended.
    finished: Those of the undisturbed run.
  """
  for name, content in finished.items():
    if name != '.lock' and (name not in before or after.get(name) != before[name]):
      assert comparable(name, after.get(name)) == comparable(name, content), name
  for name in before.keys() - after.keys():
    moved = any(other.endswith(f'/{name}') for other in after)
    assert moved or name == '.lock' or 'completing_' in name, name


# ------------------------------------------------------------------------------
# The programs
# ------------------------------------------------------------------------------


def damaged(
  whole: Whole,
  name: str,
  pattern: str,
  damage: damages.Damage,
  tmp_path: pathlib.Path,
) -> pathlib.Path:
  """Returns a copy of a folder with a damaged file."""
  path = tmp_path / name
  if path.exists():
    shutil.rmtree(path)
  shutil.copytree((whole.root / name).resolve(), path, symlinks=True)
  found, others = (
    sorted(folder.glob(pattern)) for folder in (path, whole.root / f'other_{name}')
  )
  damage(found[-1], others[-1])
  return path


def try_search(whole: Whole, state: str, kind: str, damage, tmp_path) -> None:
  path = damaged(whole, state, RUN[kind], damage, tmp_path)
  before = contents(path)
  outcome = whole.programs.run(SEARCH, *whole.flags, f'--workdir={path}')
  check_end(outcome)
  after = contents(path)
  if outcome.status:
    changed = changes(before, after)
    assert changed <= {'.lock', 'environment.json'}, (changed, outcome)
    return
  finished = contents((whole.root / 'finished').resolve())
  check_kept(before, after, finished)
  name = 'result.json'
  assert comparable(name, after[name]) == comparable(name, finished[name])


def try_export(whole: Whole, state: str, kind: str, damage, tmp_path) -> None:
  path = damaged(whole, state, RUN[kind], damage, tmp_path)
  before, out = contents(path), tmp_path / 'out'
  shutil.rmtree(out, ignore_errors=True)
  outcome = whole.programs.run(EXPORT, path, f'--out={out}')
  check_end(outcome, (0, 2))
  assert contents(path) == before
  if outcome.status:
    assert not out.exists()
  else:
    assert network(out) == network(whole.root / 'export')


def try_report(whole: Whole, state: str, kind: str, damage, tmp_path) -> None:
  path = damaged(whole, state, RUN.get(kind, kind), damage, tmp_path)
  before = contents(path)
  outcome = whole.programs.run(REPORT, path)
  check_end(outcome)
  after = contents(path)
  assert changes(before, after) <= {'report.html'}
  if outcome.status:
    assert after == before
  else:
    assert comparable('report.html', after['report.html'])


def try_study(whole: Whole, program: str, pattern: str, damage, tmp_path) -> None:
  path = damaged(whole, 'study', pattern, damage, tmp_path)
  before = contents(path)
  argv: list[Any] = [program, path]
  if program == STUDY:
    argv = [program, *study_flags(path), *whole.flags]
  outcome = whole.programs.run(*argv)
  check_end(outcome)
  after = contents(path)
  if outcome.status == 2:
    assert after == before
  elif program == STUDY:
    finished, name = contents(whole.root / 'study'), 'results.json'
    # An exchanged plan lists the settings in another order.
    found, wanted = (
      sorted(comparable(name, files[name])['settings'], key=lambda s: s['name'])
      for files in (after, finished)
    )
    assert found == wanted or before[name] in after.values()
    for setting in ('lamarckian', 'baseline_1'):
      run = f'{setting}/seed{SEED}/'
      check_kept(*(within(run, files) for files in (before, after, finished)))
  else:
    changed = changes(before, after)
    assert all(re.search(r'table\.|\.(png|pdf)$', name) for name in changed), changed


def try_exported(whole: Whole, program: str, kind: str, damage, tmp_path) -> None:
  path = damaged(whole, 'export', kind, damage, tmp_path)
  before = contents(path)
  if program == EXPORT:
    argv: tuple[Any, ...] = (EXPORT, whole.root / 'finished', f'--out={path}')
  else:
    argv = (whole.root / 'load.py', path)
  outcome = whole.programs.run(*argv)
  check_end(outcome)
  after = contents(path)
  if program == EXPORT and not outcome.status:
    assert network(path) == network(whole.root / 'export')
    if kind == 'README.md':
      assert before[kind] in after.values()
  else:
    assert after == before
    if not outcome.status:
      assert outcome.stdout == whole.loaded


_IN_PROGRESS = tuple(kind for kind in RUN if kind != 'result.json')
_OF_STUDY = (*STUDIED, *(f'lamarckian/seed{SEED}/{RUN[kind]}' for kind in OF_STUDY))
# How to try -> what is tried: states of a run, programs, and files.
TABLE = {
  'search in progress': (try_search, ('completing',), _IN_PROGRESS),
  'search': (try_search, ('finished',), FINISHED),
  'export': (try_export, ('finished',), FINISHED),
  'exported': (try_exported, (EXPORT, 'load'), EXPORTED),
  'report in progress': (try_report, ('completing',), _IN_PROGRESS),
  'report': (try_report, ('finished',), FINISHED),
  'report of a study': (try_report, ('study',), _OF_STUDY),
  'study': (try_study, (TABLES, BEFORE_TRAINING, STUDY), _OF_STUDY),
  # The report of a study draws the same.
  'figures': (try_study, (FIGURES,), ('study.json', 'results.json')),
}
CASES = [
  (name, part, kind, damage)
  for name, (_, parts, kinds) in TABLE.items()
  for part in parts
  for kind in kinds
  for damage in damages.ALL
]


def attempt(whole: Whole, case: tuple, tmp_path: pathlib.Path) -> None:
  name, part, kind, damage = case
  TABLE[name][0](whole, part, kind, damage, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
  'case', CASES, ids=lambda case: '-'.join([*case[:3], case[3].__name__])
)
def test_a_damaged_file_changes_no_result_or_is_named_in_one_line(
  whole, case, tmp_path
):
  attempt(whole, case, tmp_path)


def test_a_sample_of_the_table(quick, tmp_path):
  """One test, so that the undisturbed runs are made in one process."""
  cases = [
    case
    for case in CASES
    if case[0] != 'report of a study' and case[1] not in ('completing', STUDY, FIGURES)
  ]
  # It is prime to the number of damages, so each has its turn.
  for case in cases[::43]:
    attempt(quick, case, tmp_path)
