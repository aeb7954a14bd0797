"""The experiment on crossover: its paired births, and what its tables say of them."""

import jax
import pytest

from benchmarks import crossover_births, crossover_states
from lamarck_jax import crossover
from lamarck_jax.crossover import Cut
from lamarck_jax.evolution import Individual
from lamarck_jax.genotype import Genotype, SearchSpace
from lamarck_jax.population import Offspring

_SPACE = SearchSpace(filters=(6, 8, 12))


@pytest.fixture(scope='module')
def trainer():
  return crossover_births.make_trainer(tiny=True)


@pytest.fixture(scope='module')
def births(tmp_path_factory, trainer):
  """Three states of tiny searches, from a run that was killed while writing."""
  out = tmp_path_factory.mktemp('births') / 'births.jsonl'
  crossover_births.run(out, 1, trainer, tiny=True)
  first = out.read_bytes()
  out.write_bytes(first + b'{"seed": 1, "gener')
  crossover_births.run(out, 3, trainer, tiny=True)
  assert out.read_bytes().startswith(first)
  return out


def test_interrupted_births_are_those_of_one_run(births, tmp_path, trainer):
  out = tmp_path / 'births.jsonl'
  crossover_births.run(out, 3, trainer, tiny=True)
  assert out.read_bytes() == births.read_bytes()


def test_arms_of_a_state_differ_as_they_should(births):
  for index, record in enumerate(crossover_births.read(births)):
    arms = record['arms']
    assert list(arms) == list(crossover_births.ARMS)
    stitched = arms['stitched']
    assert stitched['genotype'] == arms['leaf_rule']['genotype']
    assert stitched['genotype'] == arms['fresh']['genotype']
    assert arms['mutant']['genotype'] == arms['mutant_net2net']['genotype']
    assert stitched['r2'] <= 1 + 1e-5
    assert arms['fresh']['r2'] is None
    assert all(len(arm['accuracies']) == 2 for arm in arms.values() if arm)
    assert stitched['losses'] != arms['fresh']['losses']
    first, second = record['parents']
    assert record['distance'] >= 1
    assert first != second
    assert ('completions' in record) == (index % 5 == 0)
  completed = crossover_births.read(births)[0]['completions']
  assert list(completed) == list(crossover_births.COMPLETED)


def test_relatives_are_as_far_apart_as_the_steps_by_their_nearest_ancestor():
  parents = {0: (), 1: (0,), 2: (1,), 3: (1,), 4: (2, 0), 5: (3,)}
  assert crossover_states.distance(parents, 2, 3) == 2
  assert crossover_states.distance(parents, 1, 2) == 1
  assert crossover_states.distance(parents, 4, 5) == 4  # By 2, 1 and 3, or by 0.
  assert crossover_states.distance(parents, 4, 1) == 2


def test_an_unrelated_mate_is_cut_at_the_same_resolution_and_shares_no_block():
  first = Individual(Genotype.parse('6c3 8c3s2 8c3'), 0.5, 3)
  second = Individual(Genotype.parse('6c3 8c3s2 12c3 6c1'), 0.5, 4)
  child = crossover.child_at(first.genotype, second.genotype, Cut(2, 2))
  related = Offspring(child, (first, second), Cut(2, 2), second)
  too_wide = Individual(Genotype.parse('6c3 8c3'), 0.5, 5)
  mate = Individual(Genotype.parse('8c1s2 6c3 12c3 8c3 12c1s2'), 0.7, 6)
  found = crossover_states.unrelated_child(
    jax.random.key(0), related, [too_wide, mate], _SPACE
  )
  # Two blocks behind the cut, as `second` has.
  assert str(found.genotype) == '6c3 8c3s2 8c3 12c1s2'
  assert found.cut == Cut(2, 3)
  assert not {b.lineage for b in found.parents[1].genotype.blocks} & {
    b.lineage for b in first.genotype.blocks
  }
  args = jax.random.key(0), related, [too_wide], _SPACE
  assert crossover_states.unrelated_child(*args) is None
