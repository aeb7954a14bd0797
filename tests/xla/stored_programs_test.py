"""Programs from disk are the compiled ones, and are found by all they depend on."""

import contextlib
import pickle
import shutil
import zlib

import jax
import numpy as np
import pytest

from lamarck_jax import model, training
from lamarck_jax.data.augmentation import Augmentation
from lamarck_jax.genotype import Genotype
from lamarck_jax.runtime import compilation_cache
from lamarck_jax.xla import programs, stored_programs
from tests.conftest import ROOT, run_program

KEY = jax.random.key(0)
GENOTYPE = Genotype.parse('4c3s2 8c1')


@pytest.fixture
def traced(monkeypatch, tmp_path, shared_compilation_cache):
  """Gives JAX an empty cache; the kinds of what is traced from now on."""
  compilation_cache.enable(str(tmp_path / 'xla'))
  kinds: list[str] = []

  def count(name):
    function = getattr(programs, name)

    def counting(*arguments):
      kinds.append(name)
      return function(*arguments)

    monkeypatch.setattr(programs, name, counting)

  count('compile_block')
  count('compile_head')
  yield kinds
  compilation_cache.enable(str(shared_compilation_cache))


def trained(dataset, **settings):
  """Returns variables and confusion matrix after two epochs in a new trainer."""
  trainer = training.Trainer(dataset, batch_size=24, **settings)
  variables = model.init_variables(KEY, GENOTYPE, 1, 3)
  variables = trainer.train(KEY, GENOTYPE, variables, [1e-2] * 2)
  return variables, trainer.confusion(GENOTYPE, variables, 'validation')


def assert_equal(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def entries(tmp_path):
  return sorted((tmp_path / 'xla').glob('lamarck_jax-*'))


@pytest.mark.parametrize(
  'settings',
  [
    {},
    {'augmentation': Augmentation(flip=True, shift=1)},
    {'class_weights': 'balanced'},
    {'compute_dtype': 'bfloat16'},
  ],
  ids=str,
)
def test_a_second_trainer_traces_nothing_and_computes_the_same(
  tiny_dataset, traced, settings
):
  want = trained(tiny_dataset, **settings)
  assert sorted(traced) == ['compile_block'] * 2 + ['compile_head']
  assert_equal(trained(tiny_dataset, **settings), want)
  assert len(traced) == 3


def test_what_a_program_depends_on_finds_another_one(tiny_dataset, traced):
  trained(tiny_dataset)
  for settings, num_blocks, num_heads in (
    ({'augmentation': Augmentation(flip=True)}, 1, 0),
    ({'augmentation': Augmentation(shift=1)}, 1, 0),
    ({'class_weights': 'balanced'}, 0, 1),
    ({'compute_dtype': 'bfloat16'}, 2, 1),
  ):
    traced.clear()
    trained(tiny_dataset, **settings)
    expected = ['compile_block'] * num_blocks + ['compile_head'] * num_heads
    assert sorted(traced) == expected, settings


def test_another_option_of_jax_or_another_source_finds_another_one(
  tiny_dataset, traced, monkeypatch
):
  trained(tiny_dataset)
  monkeypatch.setattr(stored_programs, '_digest_of_sources', lambda: 'another')
  trained(tiny_dataset)
  assert len(traced) == 6
  before = jax.config.values['jax_memory_fitting_level']
  try:
    jax.config.update('jax_memory_fitting_level', 'O1')
    trained(tiny_dataset)
  finally:
    jax.config.update('jax_memory_fitting_level', before)
  assert len(traced) == 9


@pytest.mark.parametrize(
  ('option', 'value'),
  [('jax_logging_level', 'ERROR'), ('jax_cpu_enable_async_dispatch', False)],
)
def test_options_that_change_no_program_find_the_same(
  tiny_dataset, traced, option, value
):
  before = jax.config.values[option]
  trained(tiny_dataset)
  try:
    jax.config.update(option, value)
    trained(tiny_dataset)
  finally:
    jax.config.update(option, before)
  assert len(traced) == 3


def test_programs_that_jax_has_in_its_own_cache_are_stored_whole(
  tiny_dataset, traced, monkeypatch
):
  # A loaded program would be serialised without its functions.
  with monkeypatch.context() as context:
    context.setattr(compilation_cache, 'current', lambda: None)
    want = trained(tiny_dataset)
  trained(tiny_dataset)
  assert_equal(trained(tiny_dataset), want)
  assert len(traced) == 6


def test_a_loaded_program_leaves_the_state_that_it_is_given(tiny_dataset, traced):
  trained(tiny_dataset)
  trainer = training.Trainer(tiny_dataset, batch_size=24)
  variables = model.init_variables(KEY, GENOTYPE, 1, 3)
  state = trainer.initial_state(GENOTYPE, variables)
  first, second = (trainer.train_epoch(KEY, GENOTYPE, state, 0, 1e-2) for _ in range(2))
  assert_equal(first, second)
  assert_equal(trainer.variables(GENOTYPE, state), variables)
  assert len(traced) == 3


@pytest.mark.parametrize(
  'content',
  [b'', b'no program', zlib.compress(pickle.dumps([(b'no program', 0, 0)] * 3))],
  ids=['empty', 'other', 'unknown'],
)
def test_what_cannot_be_loaded_is_compiled_and_replaced(
  tiny_dataset, traced, tmp_path, content, caplog
):
  want = trained(tiny_dataset)
  cache = compilation_cache.current()
  for path in entries(tmp_path):
    cache.put(path.stem, content)
  assert_equal(trained(tiny_dataset), want)
  assert len(traced) == 6
  assert len(caplog.messages) == 1, caplog.messages
  assert_equal(trained(tiny_dataset), want)
  assert len(traced) == 6


def test_without_jaxs_cache_nothing_is_stored(tiny_dataset, traced, tmp_path):
  with contextlib.ExitStack() as stack:
    jax.config.update('jax_enable_compilation_cache', False)
    stack.callback(jax.config.update, 'jax_enable_compilation_cache', True)
    trained(tiny_dataset)
    trained(tiny_dataset)
  assert len(traced) == 6
  assert not entries(tmp_path)


def test_programs_are_stored_under_the_sources_that_were_imported(tmp_path):
  shutil.copytree(
    ROOT / 'lamarck_jax',
    tmp_path / 'lamarck_jax',
    ignore=shutil.ignore_patterns('__pycache__'),
  )
  program = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from lamarck_jax.xla import stored_programs
changed = pathlib.Path(sys.argv[1], 'lamarck_jax', 'model.py')
changed.write_text(changed.read_text() + '# Another version.')
digest = stored_programs._digest_of_sources
print(digest(), digest.__wrapped__())
"""
  imported, changed = run_program(program, str(tmp_path)).split()
  assert imported != changed
