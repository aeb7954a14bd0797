"""Tests of `mutation`.

What operators and `mutate` should draw is derived here by enumeration, on plain
tuples, from Section 3.2 of the paper.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from fractions import Fraction
import functools
import itertools
import pathlib
import subprocess
import sys
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import pytest
from scipy import stats

from lamarck_jax import genotype as genotype_lib
from lamarck_jax import mutation
from lamarck_jax.genotype import Genotype, SearchSpace

_BOUNDED = settings(max_examples=25, deadline=None, derandomize=True)
_SPACE = SearchSpace()
_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# Every operator is recognisable and has draws that are rejected: the ends of F,
# present kernel sizes and strides, three blocks of stride two.
_PARENT = Genotype.parse('16c1 256c3s2 64c5 96c3s2 16c3 128c1s2 256c5')

# Blocks of stride two all, so that a new block is seen wherever it is.
_DOWNSAMPLING = Genotype.parse('16c3s2 64c5s2 256c1s2')

Architecture = tuple[tuple[int, int, int], ...]
Distribution = dict[Any, Fraction]


def _architecture(genotype: Genotype) -> Architecture:
  return tuple((b.filters, b.kernel_size, b.stride) for b in genotype.blocks)


def _outcomes(parent: Architecture, space: SearchSpace) -> dict[str, Distribution]:
  """Returns the probabilities of every operator's outcomes, by enumeration.

  What is missing to one is the probability that the operator cannot apply.
  """
  n = len(parent)
  outcomes: dict[str, Distribution] = {
    name: defaultdict(Fraction) for name in _FREQUENCIES
  }

  def replaced(position: int, filters: int, kernel: int, stride: int) -> Architecture:
    block = (filters, kernel, stride)
    return (*parent[:position], block, *parent[position + 1 :])

  num_new = (n + 1) * len(space.filters) * len(space.kernel_sizes)
  for position in range(n + 1):
    for filters in space.filters:
      for kernel_size in space.kernel_sizes:
        block = (filters, kernel_size, 1)
        child = (*parent[:position], block, *parent[position:])
        outcomes['add_block'][child] += Fraction(1, num_new)
  for position, (filters, kernel_size, stride) in enumerate(parent):
    if n > 1:
      child = parent[:position] + parent[position + 1 :]
      outcomes['remove_block'][child] += Fraction(1, n)
    rank = space.filters.index(filters)
    if rank + 1 < len(space.filters):
      child = replaced(position, space.filters[rank + 1], kernel_size, stride)
      outcomes['add_filters'][child] += Fraction(1, n)
    if rank > 0:
      child = replaced(position, space.filters[rank - 1], kernel_size, stride)
      outcomes['remove_filters'][child] += Fraction(1, n)
    for value in space.kernel_sizes:
      child = replaced(position, filters, value, stride)
      probability = Fraction(1, n * len(space.kernel_sizes))
      outcomes['change_kernel_size'][child] += probability
    for value in space.strides:
      child = replaced(position, filters, kernel_size, value)
      if sum(block[2] > 1 for block in child) <= space.max_downsampling:
        outcomes['change_stride'][child] += Fraction(1, n * len(space.strides))
  return outcomes


# Section 3.2.
_FREQUENCIES = {
  'add_block': 3,
  'remove_block': 3,
  'add_filters': 2,
  'remove_filters': 2,
  'change_kernel_size': 2,
  'change_stride': 1,
}


def _neighbourhood(
  parent: Architecture,
  space: SearchSpace,
  history: Collection[Architecture] = (),
) -> dict[tuple[str, Architecture], Fraction]:
  """Returns the probabilities of the (operator, child) that `mutate` may return."""
  weights = {
    (name, child): _FREQUENCIES[name] * probability
    for name, outcomes in _outcomes(parent, space).items()
    for child, probability in outcomes.items()
    if child != parent and child not in history
  }
  total = sum(weights.values(), Fraction())
  return {outcome: weight / total for outcome, weight in weights.items()}


def _operator_between(parent: Architecture, child: Architecture) -> str:
  """Names the operator that leads from a parent to a child, one step away."""
  if len(child) != len(parent):
    return 'add_block' if len(child) > len(parent) else 'remove_block'
  changed = [
    (property_, new > old)
    for before, after in zip(parent, child)
    for property_, old, new in zip(('filters', 'kernel', 'stride'), before, after)
    if old != new
  ]
  assert len(changed) == 1
  property_, grown = changed[0]
  if property_ == 'filters':
    return 'add_filters' if grown else 'remove_filters'
  return {'kernel': 'change_kernel_size', 'stride': 'change_stride'}[property_]


@functools.cache
def _keys(num_keys: int) -> list[jax.Array]:
  return [jax.random.key(seed) for seed in range(num_keys)]


@functools.cache
def _draws(
  operator: mutation.Operator, parent: Genotype, num_draws: int
) -> list[Genotype | None]:
  """Returns what an operator makes of a parent for many keys."""
  children: list[Genotype | None] = []
  for key in _keys(num_draws):
    try:
      children.append(operator(key, parent, _SPACE))
    except mutation.NotApplicable:
      children.append(None)
  return children


@functools.cache
def _mutants(num_draws: int) -> list[Genotype]:
  return [mutation.mutate(key, _PARENT, _SPACE) for key in _keys(num_draws)]


def _assert_distributed(counts: Counter, probabilities: Mapping) -> None:
  """Checks by chi-square that counts come from a distribution."""
  num_draws = sum(counts.values())
  assert set(counts) <= set(probabilities), 'drew the impossible'
  observed: list[int] = []
  expected: list[float] = []
  rare_observed, rare_expected = 0, 0.0
  for outcome, probability in probabilities.items():
    if num_draws * probability < 5:
      rare_observed += counts[outcome]
      rare_expected += float(num_draws * probability)
    else:
      observed.append(counts[outcome])
      expected.append(float(num_draws * probability))
  if rare_expected:
    observed.append(rare_observed)
    expected.append(rare_expected)
  assert len(observed) > 1
  assert stats.chisquare(observed, expected).pvalue > 0.001


# ------------------------------------------------------------------------------
# The operators
# ------------------------------------------------------------------------------

_CASES = [
  (operator, parent)
  for operator in mutation.OPERATORS
  for parent in (_PARENT, _DOWNSAMPLING)
]


@pytest.mark.parametrize(
  ('operator', 'parent'),
  _CASES,
  ids=[f'{operator.__name__}-{len(parent)}_blocks' for operator, parent in _CASES],
)
def test_an_operator_draws_uniformly_from_exactly_its_outcomes(operator, parent):
  outcomes = _outcomes(_architecture(parent), _SPACE)[operator.__name__]
  not_applicable = 1 - sum(outcomes.values(), Fraction())
  probabilities = dict(outcomes)
  if not_applicable:
    probabilities[None] = not_applicable
  counts = Counter(
    None if child is None else _architecture(child)
    for child in _draws(operator, parent, 2000)
  )
  _assert_distributed(counts, probabilities)


def test_add_block_draws_position_filters_and_kernel_size_uniformly():
  positions: Counter[int] = Counter()
  filters: Counter[int] = Counter()
  kernel_sizes: Counter[int] = Counter()
  for child in _draws(mutation.add_block, _DOWNSAMPLING, 2000):
    assert child is not None
    (position,) = (i for i, block in enumerate(child.blocks) if block.stride == 1)
    positions[position] += 1
    filters[child.blocks[position].filters] += 1
    kernel_sizes[child.blocks[position].kernel_size] += 1
  for counts, values in (
    (positions, range(4)),
    (filters, _SPACE.filters),
    (kernel_sizes, _SPACE.kernel_sizes),
  ):
    _assert_distributed(counts, {value: Fraction(1, len(values)) for value in values})


def test_change_kernel_size_draws_position_and_value_independently():
  # Each block has a kernel size of its own, so no change is seen in one of three.
  parent = Genotype.parse('16c1 16c3 16c5')
  counts: Counter = Counter()
  for child in _draws(mutation.change_kernel_size, parent, 2000):
    assert child is not None
    changed = [
      (index, after.kernel_size)
      for index, (before, after) in enumerate(zip(parent.blocks, child.blocks))
      if after != before
    ]
    assert len(changed) <= 1
    counts[changed[0] if changed else None] += 1
  changes = [(i, k) for i in range(3) for k in (1, 3, 5) if k != (1, 3, 5)[i]]
  expected: dict = dict.fromkeys(changes, Fraction(1, 9))
  _assert_distributed(counts, {**expected, None: Fraction(1, 3)})


def test_add_filters_goes_to_the_next_greater_count():
  counts = (16, 32, 64, 96, 128, 192, 256)
  for filters, greater in itertools.pairwise(counts):
    parent = Genotype.parse(f'{filters}c3s2')
    child = mutation.add_filters(jax.random.key(0), parent, _SPACE)
    assert str(child) == f'{greater}c3s2'
    assert mutation.remove_filters(jax.random.key(0), child, _SPACE) == parent


_NOT_APPLICABLE = [
  (mutation.remove_block, '64c3', _SPACE),
  (mutation.add_filters, '256c3 256c1s2', _SPACE),
  (mutation.add_filters, '8c3', SearchSpace(filters=(8,))),
  (mutation.remove_filters, '16c3 16c1s2', _SPACE),
  (mutation.remove_filters, '8c3', SearchSpace(filters=(8,))),
]


@pytest.mark.parametrize(
  ('operator', 'text', 'space'),
  _NOT_APPLICABLE,
  ids=[f'{operator.__name__}-{text}' for operator, text, _ in _NOT_APPLICABLE],
)
def test_an_operator_says_where_it_cannot_apply(operator, text, space):
  for key in _keys(20):
    with pytest.raises(mutation.NotApplicable, match=operator.__name__):
      operator(key, Genotype.parse(text), space)


def test_change_stride_makes_no_fourth_downsampling_block():
  parent, children = Genotype.parse('16c3s2 16c3s2 16c3s2 16c3'), set()
  refused = 0
  for key in _keys(200):
    try:
      children.add(str(mutation.change_stride(key, parent, _SPACE)))
    except mutation.NotApplicable:
      refused += 1
  assert refused > 0
  assert children == {
    '16c3s2 16c3s2 16c3s2 16c3',
    '16c3 16c3s2 16c3s2 16c3',
    '16c3s2 16c3 16c3s2 16c3',
    '16c3s2 16c3s2 16c3 16c3',
  }


def test_change_stride_never_downsamples_where_that_is_forbidden():
  space, refused = SearchSpace(max_downsampling=0), 0
  for key in _keys(20):
    try:
      assert str(mutation.change_stride(key, Genotype.parse('16c3'), space)) == '16c3'
    except mutation.NotApplicable:
      refused += 1
  assert 0 < refused < 20


@pytest.mark.parametrize('operator', mutation.OPERATORS, ids=lambda o: o.__name__)
def test_an_operator_is_pure(operator):
  parent = Genotype.parse('64c3 96c3s2 32c1')
  before = repr(parent)
  for key in _keys(10):
    child = operator(key, parent, _SPACE)
    assert repr(operator(key, parent, _SPACE)) == repr(child)
    assert repr(parent) == before


# ------------------------------------------------------------------------------
# Mutate
# ------------------------------------------------------------------------------


def test_operators_have_the_relative_frequencies_of_the_paper():
  expected: Distribution = defaultdict(Fraction)
  parent = _architecture(_PARENT)
  for (name, _), probability in _neighbourhood(parent, _SPACE).items():
    expected[name] += probability
  counts = Counter(
    _operator_between(parent, _architecture(child)) for child in _mutants(2000)
  )
  assert sum(expected.values()) == 1
  _assert_distributed(counts, expected)


def test_mutate_draws_every_neighbour_with_its_probability():
  expected: Distribution = defaultdict(Fraction)
  for (_, child), probability in _neighbourhood(_architecture(_PARENT), _SPACE).items():
    expected[child] += probability
  _assert_distributed(Counter(map(_architecture, _mutants(2000))), expected)


def test_mutate_renormalises_over_what_the_history_leaves():
  parent = _architecture(_PARENT)
  neighbours = {child for _, child in _neighbourhood(parent, _SPACE)}
  # All of the additions but those of 64 filters, and every second other one.
  evaluated = {
    child
    for index, child in enumerate(sorted(neighbours))
    if (len(child) > len(parent) and Counter(child)[64, 3, 1] == 0)
    or (len(child) <= len(parent) and index % 2)
  }
  history = {Genotype.parse(_text(child)) for child in evaluated}
  expected: Distribution = defaultdict(Fraction)
  for (_, child), probability in _neighbourhood(parent, _SPACE, evaluated).items():
    expected[child] += probability
  counts = Counter(
    _architecture(mutation.mutate(key, _PARENT, _SPACE, history)) for key in _keys(400)
  )
  _assert_distributed(counts, expected)


def _text(architecture: Architecture) -> str:
  return ' '.join(f'{f}c{k}s{s}' for f, k, s in architecture)


def test_mutate_never_returns_the_parent_even_if_no_history_holds_it():
  # Half of the draws and more leave this parent as it is, or do not apply.
  space = SearchSpace(filters=(16,), kernel_sizes=(1, 3), strides=(1,))
  parent = Genotype.parse('16c1')
  children = {str(mutation.mutate(key, parent, space)) for key in _keys(100)}
  assert children == {'16c3', '16c1 16c1', '16c1 16c3', '16c3 16c1'}


def test_mutate_is_pure():
  history = frozenset(_mutants(50))
  before, history_before = repr(_PARENT), {repr(g) for g in history}
  for key in _keys(20):
    child = mutation.mutate(key, _PARENT, _SPACE, history)
    assert repr(mutation.mutate(key, _PARENT, _SPACE, history)) == repr(child)
  assert repr(_PARENT) == before
  assert {repr(g) for g in history} == history_before


def test_other_keys_give_other_mutants():
  assert len(set(_mutants(100))) > 30


_spaces = st.builds(
  SearchSpace,
  filters=st.sampled_from([(16,), (8, 16, 64), _SPACE.filters]),
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
    Genotype.parse(_text(child))
    for _, child in _neighbourhood(_architecture(parent), space)
  }
  assert neighbours == set(
    map(Genotype.parse, ['32c3', '16c3 16c3', '16c3 32c3', '32c3 16c3'])
  )
  history = {parent} | neighbours
  for key in _keys(10):
    child = mutation.mutate(key, parent, space, history)
    assert child in space
    assert child not in history


def test_mutate_ends_in_a_space_of_nothing_but_lengths():
  space = SearchSpace(filters=(16,), kernel_sizes=(1,), strides=(1,))
  history = {Genotype.parse(' '.join(['16c1'] * length)) for length in range(1, 7)}
  for key in _keys(5):
    child = mutation.mutate(key, Genotype.parse('16c1 16c1'), space, history)
    assert len(child) == 7


def test_mutations_do_not_pile_up_while_the_neighbourhood_has_something_new():
  parent = _architecture(_PARENT)
  neighbours = _neighbourhood(parent, _SPACE)
  # Only changes of filters are new: 4 in 13 draws at most.
  history = {
    Genotype.parse(_text(child))
    for name, child in neighbours
    if name not in ('add_filters', 'remove_filters')
  }
  for key in _keys(100):
    child = mutation.mutate(key, _PARENT, _SPACE, history)
    assert _operator_between(parent, _architecture(child)).endswith('_filters')


def test_mutations_pile_up_on_the_last_draw_after_100_fruitless_ones(monkeypatch):
  starts = []

  def grow(key, genotype, space):
    starts.append(len(genotype))
    return Genotype.parse(f'{genotype} 16c3')

  monkeypatch.setattr(mutation, 'OPERATORS', {grow: 1})
  history = {Genotype.parse(' '.join(['16c3'] * length)) for length in range(1, 5)}
  child = mutation.mutate(jax.random.key(0), Genotype.parse('16c3'), _SPACE, history)
  assert len(child) == 5
  assert starts == [1] * 100 + [2, 3, 4]


class _EverythingEvaluated(Collection):
  """A history that holds all but what is asked for last."""

  def __init__(self, num_questions: int):
    self.asked: list[Architecture] = []
    self._num_questions = num_questions

  def __contains__(self, genotype: object) -> bool:
    assert isinstance(genotype, Genotype)
    self.asked.append(_architecture(genotype))
    return len(self.asked) < self._num_questions

  def __iter__(self) -> Iterator:
    raise AssertionError('mutate asks the history, and does not go through it')

  def __len__(self) -> int:
    return self._num_questions


def test_piled_up_mutations_are_a_walk_of_single_steps():
  for key in _keys(3):
    history = _EverythingEvaluated(130)
    child = mutation.mutate(key, _PARENT, _SPACE, history)
    assert _architecture(child) == history.asked[-1]
    parent = _architecture(_PARENT)
    near = {architecture for _, architecture in _neighbourhood(parent, _SPACE)}
    far = [index for index, a in enumerate(history.asked) if a not in near]
    # Draws that changed nothing asked nothing: so many, not quite 100.
    assert far[0] > 50
    for before, after in zip(history.asked[far[0] - 1 :], history.asked[far[0] :]):
      steps = {architecture for _, architecture in _neighbourhood(before, _SPACE)}
      if parent in steps:  # A step back to the parent is taken without asking.
        steps |= near
      assert after == before or after in steps


# ------------------------------------------------------------------------------
# Lineages, names
# ------------------------------------------------------------------------------


@pytest.mark.parametrize('operator', mutation.OPERATORS, ids=lambda o: o.__name__)
def test_describe_names_the_operator(operator):
  parent = Genotype.parse('64c3 96c3s2 32c1')
  seen = set()
  for key in _keys(20):
    child = operator(key, parent, _SPACE)
    seen.add(tuple(mutation.describe(parent, child)))
    assert (mutation.describe(parent, child) == []) == (child == parent)
  assert seen - {()} == {(operator.__name__,)}


def test_describe_names_what_mutate_did():
  for child in _mutants(300):
    name = _operator_between(_architecture(_PARENT), _architecture(child))
    assert mutation.describe(_PARENT, child) == [name]


def test_describe_names_every_piled_up_operator():
  parent = Genotype.parse('64c3 96c3s2')
  key = jax.random.key(0)
  shorter = mutation.remove_block(key, parent, _SPACE)
  longer = mutation.add_block(key, shorter, _SPACE)
  child = mutation.add_filters(jax.random.key(1), longer, _SPACE)
  names = mutation.describe(parent, child)
  assert {'add_block', 'remove_block'} <= set(names) <= {*_FREQUENCIES}
  assert names == sorted(names)


def test_describe_tells_a_new_block_from_an_old_one_of_the_same_integers():
  parent = Genotype.parse('64c3')
  child = Genotype(Genotype.parse('64c3 64c3').blocks[1:], next_lineage=2)
  assert child == parent
  assert mutation.describe(parent, child) == ['add_block', 'remove_block']


def test_blocks_keep_their_lineage_and_order_through_mutations():
  lineages = [block.lineage for block in _PARENT.blocks]
  for child in _mutants(300):
    numbers = [block.lineage for block in child.blocks]
    new = [number for number in numbers if number not in lineages]
    kept = [number for number in numbers if number in lineages]
    assert kept == [number for number in lineages if number in kept]
    assert len(new) == (len(child) > len(_PARENT))
    assert all(number >= _PARENT.next_lineage for number in new)
    assert len(kept) == len(_PARENT) - (len(child) < len(_PARENT))
    assert child.next_lineage >= max(_PARENT.next_lineage, *(n + 1 for n in numbers))
    parents = {block.lineage: block for block in _PARENT.blocks}
    unchanged = sum(parents.get(block.lineage) == block for block in child.blocks)
    assert unchanged == len(kept) - (len(child) == len(_PARENT))


def test_a_removed_lineage_is_not_given_again():
  genotype, given = Genotype.parse('16c1'), {0}
  for key in _keys(60):
    child = mutation.mutate(key, genotype, _SPACE, {genotype})
    new = {b.lineage for b in child.blocks} - {b.lineage for b in genotype.blocks}
    assert not new & given
    given |= new
    genotype = child
  assert len(given) > 10


# ------------------------------------------------------------------------------
# Imports
# ------------------------------------------------------------------------------


def test_importing_mutation_loads_no_network_library_and_no_data_sets():
  program = (
    'import sys; import lamarck_jax.mutation\n'
    'print(*sorted({name.split(".")[0] for name in sys.modules}))\n'
    'print(*sorted(name for name in sys.modules if name.startswith("lamarck_jax")))'
  )
  output = subprocess.run(
    [sys.executable, '-c', program],
    cwd=_REPOSITORY,
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  packages, modules = (set(line.split()) for line in output.splitlines())
  assert not packages & {'flax', 'optax', 'tensorflow', 'tensorflow_datasets'}
  assert modules == {'lamarck_jax', 'lamarck_jax.genotype', 'lamarck_jax.mutation'}
