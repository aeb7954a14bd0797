"""Data that change behind a run are refused in one line, and cost it nothing.

The programs run as users run them, in forks of one process that has imported what they
need.
"""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

import lamarck_jax
from tests.conftest import ROOT, read_events

# Reads a command a line: program and flags, folder, log, and the number of events
# after which the process is killed, or null. Answers with the exit status.
_DRIVER = """
import json, os, runpy, signal, sys, time
import jax
from lamarck_jax import export, search
from lamarck_jax.report import html_page, tensorboard
for line in sys.stdin:
  arguments, folder, log, events, kill_after = json.loads(line)
  child = os.fork()
  if not child:
    os.chdir(folder)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = arguments
    status = 70
    try:
      if arguments[0].endswith('.py'):
        runpy.run_path(arguments[0], run_name='__main__')
      else:
        sys.modules.pop(arguments[0], None)
        runpy.run_module(arguments[0], run_name='__main__', alter_sys=True)
    except SystemExit as error:
      status = error.code or 0
    except BaseException:
      import traceback
      traceback.print_exc()
    os._exit(status)
  while kill_after is not None:
    found = os.path.exists(events) and open(events, 'rb').read().count(b'\\n')
    if found >= kill_after:
      os.kill(child, signal.SIGKILL)
      break
    if os.waitpid(child, os.WNOHANG)[0]:
      print('ended too early', flush=True)
      break
    time.sleep(0.005)
  else:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    continue
  os.waitpid(child, 0)
  print('killed', flush=True)
"""
_FLAGS = (
  f'--config={ROOT}/configs/digits.py',
  '--config.dataset.num_validation=30',
  '--config.budget_epochs=5',
  '--config.epochs_per_evaluation=1',
  '--config.batch_size=32',
  '--config.search_space.filters=(4,)',
  '--config.search_space.kernel_sizes=(1,3)',
  '--config.search_space.strides=(1,)',
  '--config.checkpoint_epochs=()',
  '--config.completion.epochs=(1,)',
  '--config.completion.learning_rates=(1e-3,)',
)


class Programs:
  """Runs programs of the project in the folder that holds the data and the run."""

  def __init__(self, cache: pathlib.Path, folder: pathlib.Path):
    self.cache, self.folder = cache, folder
    self._process = subprocess.Popen(
      [sys.executable, '-c', _DRIVER],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=ROOT,
    )

  def run(
    self, *arguments: str, folder: pathlib.Path | None = None, kill_after: int = 0
  ) -> tuple[str, str]:
    """Returns the exit status and what was printed."""
    log = self.folder / 'log'
    events = self.folder / 'run' / 'events.jsonl'
    command = [arguments, folder or self.folder, log, events, kill_after or None]
    assert self._process.stdin
    assert self._process.stdout
    print(json.dumps(command, default=str), file=self._process.stdin, flush=True)
    return self._process.stdout.readline().strip(), log.read_text()

  def search(self, name: str, **options) -> tuple[str, str]:
    return self.run(
      str(ROOT / 'run_evolution.py'),
      *_FLAGS,
      f'--config.dataset.name={name}',
      f'--workdir={self.folder}/run',
      f'--xla_cache_dir={self.cache}',
      **options,
    )

  def close(self) -> None:
    assert self._process.stdin
    self._process.stdin.close()
    self._process.wait(timeout=60)
    assert self._process.stdout
    self._process.stdout.close()


@pytest.fixture(scope='module')
def programs(shared_compilation_cache, tmp_path_factory):
  found = Programs(shared_compilation_cache, tmp_path_factory.mktemp('programs'))
  yield found
  found.close()


def images_of(labels: np.ndarray) -> np.ndarray:
  """Returns images that tell the labels apart, by the row that is bright."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 100, (len(labels), 8, 8, 1))
  images[np.arange(len(labels)), 2 * labels] += 150
  return images.astype(np.uint8)


def contents(path: pathlib.Path) -> dict[str, bytes]:
  return {str(p): p.read_bytes() for p in path.rglob('*') if p.is_file()}


def refused(programs: Programs, name: str, words: str) -> None:
  before = contents(programs.folder / 'run')
  status, printed = programs.search(name)
  assert (status, len(printed.splitlines())) == ('2', 1), printed
  assert printed.startswith('error: dataset: got ')
  assert words in printed
  assert contents(programs.folder / 'run') == before


def test_labels_reordered_between_kill_and_resume_are_refused(programs):
  labels = np.arange(150) % 3
  good = {'x_train': images_of(labels), 'y_train': labels}
  photos = programs.folder / 'photos.npz'
  np.savez(photos, **good)
  assert programs.search('npz:photos.npz', kill_after=1)[0] == 'killed'
  recorded = read_events(programs.folder / 'run')
  assert 1 <= len(recorded) < 5
  np.savez(photos, **{**good, 'y_train': (labels + 1) % 3})
  refused(programs, 'npz:photos.npz', 'in train, validation, test')
  # With the data as they were the search goes on, from another folder too.
  np.savez(photos, **good)
  (programs.folder / 'elsewhere').mkdir()
  status, printed = programs.search(
    'npz:photos.npz', folder=programs.folder / 'elsewhere'
  )
  assert status == '0', printed
  events = read_events(programs.folder / 'run')
  assert events[: len(recorded)] == recorded
  assert len(events) == 5
  shutil.rmtree(programs.folder / 'run')
  photos.unlink()


def test_a_class_added_is_refused_and_the_finished_run_exports_without_its_data(
  programs,
):
  for label, name in enumerate(['ant', 'bee', 'cat']):
    folder = programs.folder / 'photos' / 'train' / name
    folder.mkdir(parents=True)
    for index, image in enumerate(images_of(np.full(50, label))):
      Image.fromarray(image[..., 0]).save(folder / f'{index}.png')
  assert programs.search('folder:photos', kill_after=1)[0] == 'killed'
  added = programs.folder / 'photos' / 'train' / 'bat'
  shutil.copytree(programs.folder / 'photos' / 'train' / 'ant', added)
  refused(programs, 'folder:photos', "class 'bat' added")
  shutil.rmtree(added)
  status, printed = programs.search('folder:photos')
  assert status == '0', printed
  assert not list((programs.folder / 'run').glob('cut-*'))

  # Classes renamed, then all of them gone: the run knows better.
  result = json.loads((programs.folder / 'run' / 'result.json').read_text())
  elsewhere = programs.folder / 'elsewhere'
  elsewhere.mkdir(exist_ok=True)
  shutil.move(programs.folder / 'photos' / 'train' / 'ant', added)
  for _ in range(2):
    status, printed = programs.run(
      'lamarck_jax.export', '../run', '--out=network', folder=elsewhere
    )
    assert status == '0', printed
    network = lamarck_jax.load(elsewhere / 'network')
    assert network.class_names == ('ant', 'bee', 'cat')
    assert network.test_accuracy == result['checkpoints'][-1]['test_accuracy']
    assert lamarck_jax.load(programs.folder / 'run').mean == network.mean
    shutil.rmtree(programs.folder / 'photos', ignore_errors=True)
  assert programs.search('folder:photos')[0] == '0'
  report = (programs.folder / 'run' / 'report.html').read_text()
  assert '"class_names": ["ant", "bee", "cat"]' in report
