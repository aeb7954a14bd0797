"""Tests of `mutation.mutate`."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st
import jax

from lamarck_jax import genotype as genotype_lib
from lamarck_jax import mutation
from lamarck_jax.genotype import Genotype, SearchSpace
from tests import mutation_outcomes as enumeration
from tests.mutation_outcomes import PARENT, SPACE, Architecture, Distribution

_BOUNDED = settings(max_examples=25, deadline=None, derandomize=True)

# ------------------------------------------------------------------------------
# Mutate
# ------------------------------------------------------------------------------


def test_operators_have_the_relative_frequencies_of_the_paper():
  expected: Distribution = defaultdict(Fraction)
  parent = enumeration.architecture(PARENT)
  for (name, _), probability in enumeration.neighbourhood(parent, SPACE).items():
    expected[name] += probability
  counts = Counter(
    enumeration.operator_between(parent, enumeration.architecture(child))
    for child in enumeration.mutants(2000)
  )
  assert sum(expected.values()) == 1
  enumeration.assert_distributed(counts, expected)


def test_mutate_draws_every_neighbour_with_its_probability():
  expected: Distribution = defaultdict(Fraction)
  for (_, child), probability in enumeration.neighbourhood(
    enumeration.architecture(PARENT), SPACE
  ).items():
    expected[child] += probability
  enumeration.assert_distributed(
    Counter(map(enumeration.architecture, enumeration.mutants(2000))), expected
  )


def test_mutate_renormalises_over_what_the_history_leaves():
  parent = enumeration.architecture(PARENT)
  neighbours = {child for _, child in enumeration.neighbourhood(parent, SPACE)}
  # All of the additions but those of 64 filters, and every second other one.
  evaluated = {
    child
    for index, child in enumerate(sorted(neighbours))
    if (len(child) > len(parent) and Counter(child)[64, 3, 1] == 0)
    or (len(child) <= len(parent) and index % 2)
  }
  history = {Genotype.parse(enumeration.text_of(child)) for child in evaluated}
  expected: Distribution = defaultdict(Fraction)
  for (_, child), probability in enumeration.neighbourhood(
    parent, SPACE, evaluated
  ).items():
    expected[child] += probability
  counts = Counter(
    enumeration.architecture(mutation.mutate(key, PARENT, SPACE, history))
    for key in enumeration.keys(400)
  )
  enumeration.assert_distributed(counts, expected)


def test_mutate_never_returns_the_parent_even_if_no_history_holds_it():
  # Half of the draws and more leave this parent as it is, or do not apply.
  space = SearchSpace(filters=(16,), kernel_sizes=(1, 3), strides=(1,))
  parent = Genotype.parse('16c1')
  children = {str(mutation.mutate(key, parent, space)) for key in enumeration.keys(100)}
  assert children == {'16c3', '16c1 16c1', '16c1 16c3', '16c3 16c1'}


def test_mutate_is_pure():
  history = frozenset(enumeration.mutants(50))
  before, history_before = repr(PARENT), {repr(g) for g in history}
  for key in enumeration.keys(20):
    child = mutation.mutate(key, PARENT, SPACE, history)
    assert repr(mutation.mutate(key, PARENT, SPACE, history)) == repr(child)
  assert repr(PARENT) == before
  assert {repr(g) for g in history} == history_before


def test_other_keys_give_other_mutants():
  assert len(set(enumeration.mutants(100))) > 30


_spaces = st.builds(
  SearchSpace,
  filters=st.sampled_from([(16,), (8, 16, 64), SPACE.filters]),
  kernel_sizes=st.sampled_from([(1,), (1, 3, 5), (3, 7)]),
  strides=st.sampled_from([(1,), (1, 2), (1, 2, 4)]),
  max_downsampling=st.integers(0, 3),
)


@_BOUNDED
@given(st.integers(0, 2**31 - 1), _spaces)
def test_a_chain_of_mutants_stays_in_the_space_and_repeats_nothing(seed, space):
  key = jax.random.key(seed)
  genotype = genotype_lib.random_genotype(key, space)
  history = {genotype}
  for step in range(12):
    child = mutation.mutate(jax.random.fold_in(key, step), genotype, space, history)
    assert child in space
    assert child not in history
    history.add(child)
    if step % 2:  # Now and then a child does not replace its parent.
      genotype = child


# ------------------------------------------------------------------------------
# Exhausted neighbourhoods
# ------------------------------------------------------------------------------


def test_mutate_ends_where_the_whole_neighbourhood_is_evaluated():
  space = SearchSpace(filters=(16, 32), kernel_sizes=(3,), strides=(1,))
  parent = Genotype.parse('16c3')
  neighbours = {
    Genotype.parse(enumeration.text_of(child))
    for _, child in enumeration.neighbourhood(enumeration.architecture(parent), space)
  }
  assert neighbours == set(
    map(Genotype.parse, ['32c3', '16c3 16c3', '16c3 32c3', '32c3 16c3'])
  )
  history = {parent} | neighbours
  for key in enumeration.keys(10):
    child = mutation.mutate(key, parent, space, history)
    assert child in space
    assert child not in history


def test_mutate_ends_in_a_space_of_nothing_but_lengths():
  space = SearchSpace(filters=(16,), kernel_sizes=(1,), strides=(1,))
  history = {Genotype.parse(' '.join(['16c1'] * length)) for length in range(1, 7)}
  for key in enumeration.keys(5):
    child = mutation.mutate(key, Genotype.parse('16c1 16c1'), space, history)
    assert len(child) == 7


def test_mutations_do_not_pile_up_while_the_neighbourhood_has_something_new():
  parent = enumeration.architecture(PARENT)
  neighbours = enumeration.neighbourhood(parent, SPACE)
  # Only changes of filters are new: 4 in 13 draws at most.
  history = {
    Genotype.parse(enumeration.text_of(child))
    for name, child in neighbours
    if name not in ('add_filters', 'remove_filters')
  }
  for key in enumeration.keys(100):
    child = mutation.mutate(key, PARENT, SPACE, history)
    assert enumeration.operator_between(
      parent, enumeration.architecture(child)
    ).endswith('_filters')


def test_mutations_pile_up_on_the_last_draw_after_100_fruitless_ones(monkeypatch):
  starts = []

  def grow(key, genotype, space):
    starts.append(len(genotype))
    return Genotype.parse(f'{genotype} 16c3')

  monkeypatch.setattr(mutation, 'OPERATORS', {grow: 1})
  history = {Genotype.parse(' '.join(['16c3'] * length)) for length in range(1, 5)}
  child = mutation.mutate(jax.random.key(0), Genotype.parse('16c3'), SPACE, history)
  assert len(child) == 5
  assert starts == [1] * 100 + [2, 3, 4]


class _EverythingEvaluated(Collection):
  """A history that holds all but what is asked for last."""

  def __init__(self, num_questions: int):
    self.asked: list[Architecture] = []
    self._num_questions = num_questions

  def __contains__(self, genotype: object) -> bool:
    assert isinstance(genotype, Genotype)
    self.asked.append(enumeration.architecture(genotype))
    return len(self.asked) < self._num_questions

  def __iter__(self) -> Iterator:
    raise AssertionError('mutate asks the history, and does not go through it')

  def __len__(self) -> int:
    return self._num_questions


def test_piled_up_mutations_are_a_walk_of_single_steps():
  for key in enumeration.keys(3):
    history = _EverythingEvaluated(130)
    child = mutation.mutate(key, PARENT, SPACE, history)
    assert enumeration.architecture(child) == history.asked[-1]
    parent = enumeration.architecture(PARENT)
    near = {
      architecture for _, architecture in enumeration.neighbourhood(parent, SPACE)
    }
    far = [index for index, a in enumerate(history.asked) if a not in near]
    # Draws that changed nothing do not ask, so these are fewer than 100.
    assert far[0] > 50
    for before, after in zip(history.asked[far[0] - 1 :], history.asked[far[0] :]):
      steps = {
        architecture for _, architecture in enumeration.neighbourhood(before, SPACE)
      }
      if parent in steps:  # A step back to the parent is taken without asking.
        steps |= near
      assert after == before or after in steps
