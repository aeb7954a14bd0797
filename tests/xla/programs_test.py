"""The cache of programs forgets what it must."""

import jax
import pytest

from lamarck_jax import training
from lamarck_jax.genotype import Genotype
from lamarck_jax.xla import programs


@pytest.fixture
def trainer(tiny_dataset):
  return training.Trainer(tiny_dataset, batch_size=16)


def test_programs_used_long_ago_are_dropped_and_compiled_again(trainer):
  first = Genotype.parse('4c1')
  trainer.compile(first)
  kinds = [
    Genotype.parse(f'{n}c1') for n in range(5, 5 + programs.MAX_BLOCKS_IN_MEMORY)
  ]
  for genotype in kinds:
    trainer.compile(genotype)
  count = trainer.programs.num_compiled
  trainer.compile(kinds[-1])
  assert trainer.programs.num_compiled == count
  trainer.compile(first)
  assert trainer.programs.num_compiled > count


def test_jaxs_own_caches_do_not_grow_with_every_block_ever_compiled(trainer):
  # The number of traces that JAX keeps of a function is that of its distinct inputs.
  function = jax.jit(lambda x: x + 1)
  function(1.0)
  for n in range(3, 3 + programs.MAX_BLOCKS_IN_MEMORY // 2):
    trainer.compile(Genotype.parse(f'{n}c1'))  # A block and a classifier.
  assert function._cache_size() == 0


def test_programs_in_flight_are_bounded_and_waited_for_in_order():
  in_flight = programs.InFlight()
  waited = []

  class Output:
    """An array of which is known when it was waited for."""

    def __init__(self, index):
      self.index = index

    def block_until_ready(self):
      waited.append(self.index)

  for index in range(programs.MAX_IN_FLIGHT + 3):
    in_flight.add(Output(index))
  assert waited == [0, 1, 2]
