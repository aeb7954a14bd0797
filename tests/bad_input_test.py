"""Bad input ends a program with one line that names it, status 2, and no new files.

The programs run as users run them, but a process that has imported what they need forks
for each input, so that a hundred inputs take seconds.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import pytest

from tests.conftest import ROOT

STORED = ROOT / 'tests' / 'testdata' / 'run_format_2'

# Runs each program of a list in a forked process.
_DRIVER = """
import json, os, runpy, sys
import jax, matplotlib.figure, scipy.stats, tensorflow_datasets
from lamarck_jax.data import datasets
from lamarck_jax import search
for arguments, log in json.load(sys.stdin):
  child = os.fork()
  if not child:
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = arguments
    status = 70
    try:
      if arguments[0].endswith('.py'):
        runpy.run_path(arguments[0], run_name='__main__')
      else:
        runpy.run_module(arguments[0], run_name='__main__', alter_sys=True)
    except SystemExit as error:
      status = error.code or 0
    except BaseException:
      import traceback
      traceback.print_exc()
    os._exit(status)
  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

# Program, flags, and what the error must name. DIR is the case's own directory.
_SEARCH, _STUDY = 'run_evolution.py', 'lamarck_jax.study'
_FIELDS = {
  'setting': [''],
  'seed': ['-1', '1.5', 'abc', '99999999999'],
  'budget_epochs': ['0', 'None', '1e3'],
  'epochs_per_evaluation': ['0', '65'],
  'batch_size': ['1', '-5', '1.5'],
  'learning_rate': ['0', '-0.1', 'nan', 'fast'],
  'inheritance': ['darwin', ''],
  'init_from': ['', 'nowhere', '64x3', '3c3', 'gs://bucket/run'],
  'inheritance_noise': ['-1'],
  'inheritance_shrink': ['0', '1.5'],
  'learning_rate_schedule': ['linear'],
  'parsimony': ['-1', '11', 'small'],
  'compute_dtype': ['float64'],
  'max_parameters': ['0', 'many'],
  'max_flops': ['-1'],
  'max_seconds_per_evaluation': ['0', '-2'],
  'niching.rate': ['2', '-0.5', 'nan'],
  'niching.iterations': ['0'],
  'search_space.filters': ['()', '(32,16)', '(0,8)', '(8,8)'],
  'search_space.kernel_sizes': ['(2,)', '()'],
  'search_space.strides': ['(2,)'],
  'search_space.max_downsampling': ['-1'],
  'dataset.name': ['', 'no_such_data_set'],
  'dataset.num_train': ['0', '5', '1000000'],
  'dataset.num_validation': ['0', '1000000'],
  'dataset.image_size': ['0', '-3'],
  'augmentation.flip': ['maybe'],
  'augmentation.shift': ['-1', '0.5', '8'],  # The digits have sides of 8 pixels.
  'checkpoint_epochs': ['(0,)', '(64,32)'],
  'completion.enabled': ['maybe'],
  'completion.epochs': ['()', '(20,10)'],
  'completion.learning_rates': ['(1e-3,)', '(0,0,0)'],
  'completion.shrink': ['0'],
}
_CASES = [
  (_SEARCH, [f'--config.{field}={value}'], field.split('.')[-1])
  for field, values in _FIELDS.items()
  for value in values
]
_CASES += [
  (_SEARCH, ['--unknown=1'], 'unknown'),
  (_SEARCH, ['stray'], 'stray'),
  (_SEARCH, ['--config=nowhere.py'], "config: got 'nowhere.py', which does not exist"),
  (_SEARCH, ['--config=DIR/broken.py'], 'broken.py'),
  (_SEARCH, ['--config=DIR/empty.py'], 'get_config'),
  (_SEARCH, ['--config=configs/digits.py:baseline_3'], 'baseline_3'),
  (_SEARCH, ['--config.seeed=1'], 'seeed'),
  (_SEARCH, ['--config.niching=3'], 'niching.rate'),
  (_SEARCH, ['--config.zzz=1'], "config: got unknown field 'zzz', want one of algo"),
  (_SEARCH, ['--config.dataset.nam=x'], 'want a field such as dataset.name'),
  (_SEARCH, ['--config=configs/fashon.py'], 'configs/fashion_mnist.py'),
  (_SEARCH, ['--config.dataset.name=folder:DIR'], 'no folder train in it'),
  (_SEARCH, ['--config.dataset.name=folder:DIR', '--config.dataset.image_size=7'], '8'),
  (
    _SEARCH,
    ['--config=configs/own_images.py'],
    'images: got no such folder, want one with train/<class>/ in it, given by'
    ' --config.dataset.name=folder:',
  ),
  (_SEARCH, ['--config.dataset.name=DIR/data'], 'want folder:DIR/data'),
  (_SEARCH, ['--workdir=DIR/file'], 'DIR/file'),
  (_SEARCH, ['--workdir=DIR/file/below'], 'DIR/file'),
  (_SEARCH, ['--workdir=/proc/run'], '/proc/run'),
  (_SEARCH, ['--workdir=DIR/other_files'], 'DIR/other_files'),
  (_SEARCH, ['--workdir=DIR/stored'], 'budget_epochs'),
  (_SEARCH, ['--workdir=DIR/future'], 'DIR/future/config.json'),
  (_SEARCH, ['--workdir=DIR/no_json'], 'DIR/no_json/config.json'),
  (_SEARCH, ['--workdir=DIR/locked'], 'process 1234 on elsewhere'),
  (
    _SEARCH,
    ['--config=configs/fashion_mnist.py', '--config.dataset.data_dir=DIR/data']
    + ['--config.dataset.manual_dir=DIR/nowhere'],
    'DIR/nowhere',
  ),
  (
    _SEARCH,
    ['--config=configs/fashion_mnist.py', '--config.dataset.data_dir=DIR/data']
    + ['--config.dataset.manual_dir=DIR/archives'],
    'DIR/archives',
  ),
  (
    _SEARCH,
    ['--config=configs/cifar10.py', '--config.dataset.data_dir=DIR/data']
    + ['--config.dataset.manual_dir=DIR/archives'],
    'cifar-10-binary.tar.gz',
  ),
  # A program reads and writes the file system alone.
  (_SEARCH, ['--workdir=gs://bucket/run'], "workdir: got 'gs://bucket/run'"),
  (_SEARCH, ['--workdir=gs:/bucket/run'], 'file system'),
  (_SEARCH, ['--workdir=memory:run'], 'file system'),
  (_SEARCH, ['--workdir=~nobody_of_this_name/run'], 'home folder'),
  (_SEARCH, ['--tensorboard_dir=s3://bucket'], 'tensorboard_dir'),
  (_SEARCH, ['--xla_cache_dir=file:///cache'], 'xla_cache_dir'),
  (_SEARCH, ['--config=https://host/digits.py'], 'https://host/digits.py'),
  (_SEARCH, ['--config.dataset.name=npz:gs://bucket/x.npz'], 'dataset.name'),
  (_SEARCH, ['--config.dataset.name=folder:s3://bucket'], 'dataset.name'),
  (_SEARCH, ['--config.dataset.data_dir=gs://bucket'], 'dataset.data_dir'),
  (_SEARCH, ['--config.dataset.manual_dir=http://host'], 'dataset.manual_dir'),
  (_STUDY, ['--config=configs/digits.py', '--workdir=gs://bucket'], 'workdir'),
  ('lamarck_jax.export', ['DIR/stored', '--out=gs://bucket'], 'out'),
  ('lamarck_jax.export', ['hdfs://host/run', '--out=DIR/out'], 'hdfs://host/run'),
  ('lamarck_jax.report', ['gs://bucket/run'], 'gs://bucket/run'),
  ('lamarck_jax.study.tables', ['gs://bucket/study'], 'gs://bucket/study'),
  # Values that are possible, but would have no effect.
  (_SEARCH, ['--config.checkpoint_epochs=(100000,)'], 'at most budget_epochs'),
  (_SEARCH, ['--config.inheritance_noise=0.5'], "inheritance 'net2net'"),
  (_SEARCH, ['--config.random_search.max_blocks=3'], "'random_search'"),
  (_SEARCH, ['--config.dataset.data_dir=DIR/data'], 'tensorflow-datasets'),
  *(
    (_SEARCH, [f'--config=configs/digits.py:{setting}', flag], flag[9:].split('=')[0])
    for setting, flag in [
      ('random_search', '--config.niching.rate=0.5'),
      ('baseline_1', '--config.inheritance_shrink=0.5'),
    ]
  ),
  (
    _STUDY,
    ['--config=configs/digits.py', '--workdir=DIR/study']
    + ['--config.checkpoint_epochs=(100000,)'],
    'checkpoint_epochs',
  ),
  *(
    (_STUDY, ['--config=configs/digits.py', '--workdir=DIR/study', flag], 'engine=ray')
    for flag in ('--ray_address=auto', '--cpus_per_run=2', '--gpus_per_run=1')
  ),
  (_SEARCH, ['--num_workers=2'], 'num_workers: got 2'),
  (_SEARCH, ['--engine=ray'], 'want --num_workers'),
  (_SEARCH, ['--config.population.cores_per_child=2'], "algorithm 'population'"),
  (_SEARCH, ['--config.population.size=2'], "algorithm 'population'"),
  *(
    (_SEARCH, ['--config.algorithm=population', '--num_workers=2', flag], 'engine=ray')
    for flag in ('--ray_address=auto', '--cpus_per_worker=2', '--gpus_per_worker=1')
  ),
  *(
    (_SEARCH, ['--config.algorithm=population', *flags], named)
    for flags, named in [
      (['--num_workers=0'], 'num_workers: got 0'),
      (['--num_workers=5'], 'population.children, 4'),
      (['--num_workers=1', '--config.population.children=1'], 'several children'),
      (['--num_workers=2', '--engine=mpi'], "engine: got 'mpi'"),
      (['--num_workers=2', '--engine=ray', '--cpus_per_worker=0'], 'cpus_per_worker'),
      (['--num_workers=2', '--engine=ray', '--gpus_per_worker=-1'], 'gpus_per_worker'),
    ]
  ),
  ('lamarck_jax.report', ['DIR/stored', '--port=80'], '--serve'),
  ('lamarck_jax.report', ['DIR/stored', '--serve', '--port=99999'], 'port'),
  ('lamarck_jax.report', ['DIR/stored', '--serve', '--host='], 'host: got nothing'),
  ('lamarck_jax.export', ['DIR/stored', '--out=DIR/out', '--onnx_opset=18'], '--onnx'),
  (_SEARCH, ['--workdir='], 'workdir: got an empty path'),
  (_SEARCH, ['--config.setting=baseline_1'], 'as by --config=FILE:baseline_1'),
  (
    _SEARCH,
    ['--config.checkpoint_epochs=(128,512)', '--config.budget_epochs=64'],
    'at most budget_epochs',
  ),
  (_STUDY, ['--config=configs/digits.py', '--workdir='], 'workdir'),
  (_STUDY, ['--workdir=DIR/study'], 'config'),
  (_STUDY, ['--config=configs/digits.py:net2net', '--workdir=DIR/s'], 'a file alone'),
  (_STUDY, ['--config=configs/digits.py', '--workdir=DIR/no_json'], 'no study.json'),
  (_STUDY, ['--config=configs/digits.py', '--workdir=DIR/stored'], 'no study.json'),
  (_STUDY, ['--config=configs/digits.py', '--workdir=DIR/file'], 'DIR/file'),
  *(
    (_STUDY, ['--config=configs/digits.py', '--workdir=DIR/study', flag], named)
    for flag, named in [
      ('--num_seeds=0', 'num_seeds'),
      ('--num_workers=0', 'num_workers'),
      ('--engine=mpi', 'engine'),
      ('--settings=lamarckian,baseline_9', 'baseline_9'),
      ('--settings=', 'settings'),
      ('--cpus_per_run=0', 'cpus_per_run'),
      ('--slurm_parameters=partition=gpu', '--engine=slurm'),
      ('--slurm_cluster=local', '--engine=slurm'),
      ('--settings=lamarckian,x=lamarckian+population.size=7', 'population.size'),
      ('--config.inheritance=none', 'lamarckian and baseline_1, which are the same'),
      ('--config.batch_size=0', 'config.batch_size'),
      ('--config.setting=mine', 'config.setting'),
    ]
  ),
  ('lamarck_jax.study.tables', [], 'arguments'),
  ('lamarck_jax.study.tables', ['DIR/nowhere'], 'DIR/nowhere'),
  ('lamarck_jax.study.figures', ['DIR/other_files'], 'DIR/other_files'),
  ('lamarck_jax.study.figures', ['DIR/no_json'], 'DIR/no_json'),
]


def _prepare(path: pathlib.Path) -> None:
  """Makes the files that the cases name."""
  for name in ('other_files', 'no_json', 'archives', 'data', 'locked'):
    (path / name).mkdir(parents=True)
  (path / 'file').write_text('')
  (path / 'other_files' / 'thesis.tex').write_text('')
  (path / 'broken.py').write_text('def get_config(:\n')
  (path / 'empty.py').write_text('')
  (path / 'no_json' / 'config.json').write_text('{')
  (path / 'no_json' / 'results.json').write_text('[')
  for name in ('stored', 'future'):
    shutil.copytree(STORED, path / name)
    (path / name / 'result.json').unlink()
  content = json.loads((path / 'future' / 'config.json').read_text())
  (path / 'future' / 'config.json').write_text(
    json.dumps({**content, 'format_version': 99})
  )
  (path / 'locked' / '.lock').write_text('1234\nelsewhere\n')
  for name in ('train-images', 'train-labels', 't10k-images', 't10k-labels'):
    dimensions = 'idx3' if 'images' in name else 'idx1'
    idx = path / 'archives' / f'{name}-{dimensions}-ubyte.gz'
    idx.write_bytes(b'not a gzip file')
  with tarfile.open(path / 'archives' / 'cifar-10-binary.tar.gz', 'w:gz') as archive:
    archive.add(path / 'file', '../outside')


def _files(path: pathlib.Path) -> dict[str, bytes]:
  return {
    str(file.relative_to(path)): file.read_bytes()
    for file in path.rglob('*')
    if file.is_file()
  }


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory):
  """Directory, exit status, output, and files before and after, of every case."""
  root = tmp_path_factory.mktemp('bad')
  programs, before = [], []
  for index, (program, flags, _) in enumerate(_CASES):
    path = root / str(index)
    _prepare(path)
    before.append(_files(path))
    arguments = [flag.replace('DIR', str(path)) for flag in flags]
    if program == _SEARCH and not any('--workdir' in flag for flag in flags):
      arguments.append(f'--workdir={path / "run"}')
    programs.append(([program, *arguments], str(root / f'{index}.log')))
  driver = subprocess.run(
    [sys.executable, '-c', _DRIVER],
    input=json.dumps(programs),
    cwd=ROOT,
    # Otherwise Python writes the bytecode of a configuration file beside it.
    env={**os.environ, 'PYTHONDONTWRITEBYTECODE': '1'},
    capture_output=True,
    text=True,
    timeout=400,
    check=True,
  )
  statuses = list(map(int, driver.stdout.split()))
  assert len(statuses) == len(_CASES)
  return [
    (root / str(index), status, (root / f'{index}.log').read_text(), before[index])
    for index, status in enumerate(statuses)
  ]


def test_there_are_at_least_sixty_bad_inputs():
  assert len(_CASES) >= 60


@pytest.mark.parametrize(
  'index',
  range(len(_CASES)),
  ids=[' '.join([program, *flags]) for program, flags, _ in _CASES],
)
def test_a_bad_input_is_refused_in_one_line(outcomes, index):
  path, status, output, before = outcomes[index]
  named = _CASES[index][2].replace('DIR', str(path))
  assert status == 2, output
  assert 'Traceback' not in output
  assert len(output.strip().splitlines()) == 1, output
  assert named in output
  assert _files(path) == before
