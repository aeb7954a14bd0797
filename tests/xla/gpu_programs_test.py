"""Programs compiled for an H100: the bytes that they move, and XLA's options."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.xla import compile_for_h100, hlo_bytes

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec('jax_cuda13_plugin') is None,
  reason='needs jax-cuda13-pjrt and jax-cuda13-plugin',
)


@pytest.fixture(scope='module')
def dump(tmp_path_factory) -> pathlib.Path:
  """Folder with what XLA writes of every program compiled for an H100."""
  directory = tmp_path_factory.mktemp('dump')
  flags = f'--xla_dump_to={directory} --xla_dump_hlo_as_text'
  process = subprocess.run(
    [sys.executable, '-m', 'tests.xla.compile_for_h100'],
    env={**os.environ, 'XLA_FLAGS': flags},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert process.returncode == 0, process.stderr[-3000:]
  return directory


def programs(dump: pathlib.Path, function: str = '*') -> list[pathlib.Path]:
  """Optimised programs of a function, in the order in which they were compiled."""
  paths = dump.glob(f'module_*.jit_{function}.*gpu_after_optimizations.txt')
  return sorted(paths, key=lambda path: int(re.findall(r'\d+', path.name)[0]))


@pytest.mark.parametrize(
  ('block', 'megabytes'),
  [
    ((64, 3, 1, 16, 32, 'float32'), 430),
    ((64, 3, 1, 16, 32, 'bfloat16'), 215),
    ((32, 5, 2, 32, 256, 'float32'), 2000),
    ((32, 5, 2, 32, 256, 'bfloat16'), 1000),
  ],
  ids=str,
)
def test_a_training_step_of_a_block_moves_few_bytes(dump, block, megabytes):
  index = compile_for_h100.BLOCKS.index(block)
  moved = sum(
    hlo_bytes.bytes_moved(programs(dump, function)[index].read_text())
    for function in ('_forward_with_residuals', '_backward_of_residuals')
  )
  assert 0.8 * megabytes * 1e6 < moved <= megabytes * 1e6


def test_the_head_neither_scatters_nor_sorts(dump):
  for function in ('_train_head', '_infer_head'):
    (path,) = programs(dump, function)
    assert not re.search(r'\b(scatter|sort)\(', path.read_text())


def test_no_program_is_timed_on_the_card(dump):
  paths = programs(dump)
  # Two a block, and two of the head.
  assert len(paths) == 2 * len(compile_for_h100.BLOCKS) + 2
  for path in paths:
    module = re.match(r'module_\d+\.jit_\w+', path.name)[0]
    options = (dump / f'{module}.debug_options').read_text()
    assert 'xla_gpu_exclude_nondeterministic_ops: true' in options
