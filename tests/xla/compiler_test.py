"""XLA's options: known ones are used, unknown ones left out."""

import jax
import pytest

from lamarck_jax.xla import compiler


def test_this_xla_knows_options_to_compile_blocks_quickly():
  assert compiler.block_options('cpu') is not None


def test_no_program_on_a_gpu_is_timed_on_it():
  for options in (compiler.options('gpu'), compiler.block_options('gpu')):
    assert options is not None
    assert options['xla_gpu_exclude_nondeterministic_ops'] is True
  assert compiler.options('cpu') is None


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason="the options are the CPU's")
def test_a_program_compiled_with_them_computes_the_same():
  lowered = jax.jit(lambda x: x * 2 + 1).lower(3.0)
  assert float(lowered.compile(compiler.block_options('cpu'))(3.0)) == 7


@pytest.mark.parametrize(
  ('candidates', 'expected'),
  [
    ([{'xla_no_such_option': True}], None),
    (
      [{'xla_no_such_option': True}, {'xla_backend_optimization_level': '2'}],
      {'xla_backend_optimization_level': '2'},
    ),
  ],
)
def test_options_that_xla_does_not_know_are_left_out(candidates, expected):
  assert compiler.first_known(candidates) == expected
