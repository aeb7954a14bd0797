"""A search is computed in one way, whatever its process and environment have set."""

import contextlib
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import lamarck_jax
from lamarck_jax import search
from lamarck_jax.runtime import jax_settings
from tests.conftest import ROOT, make_tiny_config, read_events

# Settings of JAX that change numbers or keys, or make correct programs fail.
_OTHERS = {
  'enable_x64': True,
  'numpy_dtype_promotion': 'strict',
  'numpy_rank_promotion': 'raise',
  'default_matmul_precision': 'bfloat16',
  'default_prng_impl': 'rbg',
  'threefry_partitionable': False,
  'enable_custom_prng': True,
  'legacy_prng_key': 'error',
  'debug_key_reuse': True,
  'disable_jit': True,
  'no_tracing': True,
  'no_execution': True,
  'debug_nans': True,
  'debug_infs': True,
  'transfer_guard': 'disallow_explicit',
}
# What a shell or a cluster may have set besides.
_ENVIRONMENT = {
  **{f'JAX_{name}'.upper(): f'{value}' for name, value in _OTHERS.items()},
  'JAX_RANDOM_SEED_OFFSET': '5',
  'JAX_NUM_CPU_DEVICES': '7',
  'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
  'JAX_OPTIMIZATION_LEVEL': 'O0',
  'XLA_FLAGS': '--xla_force_host_platform_device_count=5',
  'PJRT_NPROC': '',
  'OMP_NUM_THREADS': 'many',
  'TF_CPP_MIN_LOG_LEVEL': '9',
  'PYTHONHASHSEED': '7',
  'PYTHONOPTIMIZE': '2',
  'PYTHONWARNINGS': 'error',
  'LC_ALL': 'C',
  'PYTHONUTF8': '0',
  'PYTHONCOERCECLOCALE': '0',
  'PYTHONIOENCODING': 'ascii',
  'TZ': 'Nowhere/Odd',
  'COLUMNS': 'x',
  'HOME': '/nonexistent',
  'TMPDIR': '/nonexistent',
}


def make_short_config():
  """Returns a search of three evaluations."""
  config = make_tiny_config()
  config.budget_epochs = 3
  config.checkpoint_epochs = ()
  config.completion.enabled = False
  return config


@pytest.fixture
def short_config():
  """The search of `make_short_config`."""
  return make_short_config()


@contextlib.contextmanager
def other_settings():
  """Makes this thread's settings such that hardly any program runs."""
  with contextlib.ExitStack() as stack:
    for name, value in _OTHERS.items():
      stack.enter_context(getattr(jax, name)(value))
    yield


def current_settings() -> dict:
  names = [f'jax_{name}' for name in jax_settings.SETTINGS]
  return {name: getattr(jax.config, name) for name in names}


def test_the_settings_are_jax_s_own():
  with jax_settings.applied():
    inside = current_settings()
  # None: as 'allow'.
  assert {**inside, 'jax_transfer_guard': None} == current_settings()


def test_a_search_in_a_program_with_other_settings_is_the_same(
  short_config, undisturbed, tmp_path
):
  with other_settings():
    before = current_settings()
    search.run(short_config, tmp_path)
    assert current_settings() == before
  assert read_events(tmp_path) == read_events(undisturbed(short_config)[0])


def test_a_network_predicts_the_same_in_a_program_with_other_settings(
  short_config, undisturbed
):
  network = lamarck_jax.load(undisturbed(short_config)[0])
  images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
  expected = network(images)
  with other_settings():
    found = lamarck_jax.load(undisturbed(short_config)[0])(images)
  np.testing.assert_array_equal(found, expected)


# A configuration file.
_CONFIG = """
from tests.runtime import jax_settings_test

def get_config(setting='lamarckian'):
  return jax_settings_test.make_short_config()
"""


def run_command(path, cache, **environment: str):
  """Runs the short search by run_evolution.py; returns its process."""
  (path / 'config.py').write_text(_CONFIG)
  command = [sys.executable, str(ROOT / 'run_evolution.py')]
  command += [f'--config={path / "config.py"}', f'--workdir={path / "run"}']
  return subprocess.run(
    [*command, f'--xla_cache_dir={cache}'],
    env={**os.environ, 'PYTHONPATH': str(ROOT), **environment},
    capture_output=True,
    text=True,
    timeout=240,
  )


@pytest.mark.slow
def test_the_environment_changes_no_search(
  short_config, undisturbed, tmp_path, shared_compilation_cache
):
  path = tmp_path / 'of é and \udcff'
  path.mkdir()
  result = run_command(path, shared_compilation_cache, **_ENVIRONMENT)
  assert result.returncode == 0, result.stderr
  assert read_events(path / 'run') == read_events(undisturbed(short_config)[0])
  # It is an expert's wish, so it holds; but not in silence.
  assert 'XLA_FLAGS is set' in result.stderr


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('JAX_PLATFORMS', 'abacus'),
    ('XLA_FLAGS', '--no_such_flag=1'),
    ('JAX_ENABLE_X64', 'maybe'),
  ],
)
def test_an_environment_that_jax_refuses_is_one_line(
  tmp_path, shared_compilation_cache, name, value
):
  result = run_command(tmp_path, shared_compilation_cache, **{name: value})
  assert result.returncode == 2
  (line,) = result.stderr.strip().splitlines()
  assert line.startswith('error: ')
  assert name in line
  assert value in line
  assert not (tmp_path / 'run').exists()
