"""Tests of the operators of `mutation`; `mutate` has a file of its own."""

from collections import Counter
from fractions import Fraction
import itertools
import pathlib
import subprocess
import sys

import jax
import pytest

from lamarck_jax import mutation
from lamarck_jax.genotype import Genotype, SearchSpace
from tests import mutation_outcomes as enumeration
from tests.mutation_outcomes import DOWNSAMPLING, PARENT, SPACE

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# ------------------------------------------------------------------------------
# The operators
# ------------------------------------------------------------------------------

_CASES = [
  (operator, parent)
  for operator in mutation.OPERATORS
  for parent in (PARENT, DOWNSAMPLING)
]


@pytest.mark.parametrize(
  ('operator', 'parent'),
  _CASES,
  ids=[f'{operator.__name__}-{len(parent)}_blocks' for operator, parent in _CASES],
)
def test_an_operator_draws_uniformly_from_exactly_its_outcomes(operator, parent):
  outcomes = enumeration.outcomes(enumeration.architecture(parent), SPACE)[
    operator.__name__
  ]
  not_applicable = 1 - sum(outcomes.values(), Fraction())
  probabilities = dict(outcomes)
  if not_applicable:
    probabilities[None] = not_applicable
  counts = Counter(
    None if child is None else enumeration.architecture(child)
    for child in enumeration.draws(operator, parent, 2000)
  )
  enumeration.assert_distributed(counts, probabilities)


def test_add_block_draws_position_filters_and_kernel_size_uniformly():
  positions: Counter[int] = Counter()
  filters: Counter[int] = Counter()
  kernel_sizes: Counter[int] = Counter()
  for child in enumeration.draws(mutation.add_block, DOWNSAMPLING, 2000):
    assert child is not None
    (position,) = (i for i, block in enumerate(child.blocks) if block.stride == 1)
    positions[position] += 1
    filters[child.blocks[position].filters] += 1
    kernel_sizes[child.blocks[position].kernel_size] += 1
  for counts, values in (
    (positions, range(4)),
    (filters, SPACE.filters),
    (kernel_sizes, SPACE.kernel_sizes),
  ):
    enumeration.assert_distributed(
      counts, {value: Fraction(1, len(values)) for value in values}
    )


def test_change_kernel_size_draws_position_and_value_independently():
  # Each block has a kernel size of its own, so no change is seen in one of three.
  parent = Genotype.parse('16c1 16c3 16c5')
  counts: Counter = Counter()
  for child in enumeration.draws(mutation.change_kernel_size, parent, 2000):
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
  enumeration.assert_distributed(counts, {**expected, None: Fraction(1, 3)})


def test_add_filters_goes_to_the_next_greater_count():
  counts = (16, 32, 64, 96, 128, 192, 256)
  for filters, greater in itertools.pairwise(counts):
    parent = Genotype.parse(f'{filters}c3s2')
    child = mutation.add_filters(jax.random.key(0), parent, SPACE)
    assert str(child) == f'{greater}c3s2'
    assert mutation.remove_filters(jax.random.key(0), child, SPACE) == parent


_NOT_APPLICABLE = [
  (mutation.remove_block, '64c3', SPACE),
  (mutation.add_filters, '256c3 256c1s2', SPACE),
  (mutation.add_filters, '8c3', SearchSpace(filters=(8,))),
  (mutation.remove_filters, '16c3 16c1s2', SPACE),
  (mutation.remove_filters, '8c3', SearchSpace(filters=(8,))),
]


@pytest.mark.parametrize(
  ('operator', 'text', 'space'),
  _NOT_APPLICABLE,
  ids=[f'{operator.__name__}-{text}' for operator, text, _ in _NOT_APPLICABLE],
)
def test_an_operator_says_where_it_cannot_apply(operator, text, space):
  for key in enumeration.keys(20):
    with pytest.raises(mutation.NotApplicable, match=operator.__name__):
      operator(key, Genotype.parse(text), space)


def test_change_stride_makes_no_fourth_downsampling_block():
  parent, children = Genotype.parse('16c3s2 16c3s2 16c3s2 16c3'), set()
  refused = 0
  for key in enumeration.keys(200):
    try:
      children.add(str(mutation.change_stride(key, parent, SPACE)))
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
  for key in enumeration.keys(20):
    try:
      assert str(mutation.change_stride(key, Genotype.parse('16c3'), space)) == '16c3'
    except mutation.NotApplicable:
      refused += 1
  assert 0 < refused < 20


@pytest.mark.parametrize('operator', mutation.OPERATORS, ids=lambda o: o.__name__)
def test_an_operator_is_pure(operator):
  parent = Genotype.parse('64c3 96c3s2 32c1')
  before = repr(parent)
  for key in enumeration.keys(10):
    child = operator(key, parent, SPACE)
    assert repr(operator(key, parent, SPACE)) == repr(child)
    assert repr(parent) == before


# ------------------------------------------------------------------------------
# Lineages, names
# ------------------------------------------------------------------------------


@pytest.mark.parametrize('operator', mutation.OPERATORS, ids=lambda o: o.__name__)
def test_describe_names_the_operator(operator):
  parent = Genotype.parse('64c3 96c3s2 32c1')
  seen = set()
  for key in enumeration.keys(20):
    child = operator(key, parent, SPACE)
    seen.add(tuple(mutation.describe(parent, child)))
    assert (mutation.describe(parent, child) == []) == (child == parent)
  assert seen - {()} == {(operator.__name__,)}


def test_describe_names_what_mutate_did():
  for child in enumeration.mutants(300):
    name = enumeration.operator_between(
      enumeration.architecture(PARENT), enumeration.architecture(child)
    )
    assert mutation.describe(PARENT, child) == [name]


def test_describe_names_every_piled_up_operator():
  parent = Genotype.parse('64c3 96c3s2')
  key = jax.random.key(0)
  shorter = mutation.remove_block(key, parent, SPACE)
  longer = mutation.add_block(key, shorter, SPACE)
  child = mutation.add_filters(jax.random.key(1), longer, SPACE)
  names = mutation.describe(parent, child)
  assert {'add_block', 'remove_block'} <= set(names) <= {*enumeration.FREQUENCIES}
  assert names == sorted(names)


def test_describe_tells_a_new_block_from_an_old_one_of_the_same_integers():
  parent = Genotype.parse('64c3')
  child = Genotype(Genotype.parse('64c3 64c3').blocks[1:], next_lineage=2)
  assert child == parent
  assert mutation.describe(parent, child) == ['add_block', 'remove_block']


def test_blocks_keep_their_lineage_and_order_through_mutations():
  lineages = [block.lineage for block in PARENT.blocks]
  for child in enumeration.mutants(300):
    numbers = [block.lineage for block in child.blocks]
    new = [number for number in numbers if number not in lineages]
    kept = [number for number in numbers if number in lineages]
    assert kept == [number for number in lineages if number in kept]
    assert len(new) == (len(child) > len(PARENT))
    assert all(number >= PARENT.next_lineage for number in new)
    assert len(kept) == len(PARENT) - (len(child) < len(PARENT))
    assert child.next_lineage >= max(PARENT.next_lineage, *(n + 1 for n in numbers))
    parents = {block.lineage: block for block in PARENT.blocks}
    unchanged = sum(parents.get(block.lineage) == block for block in child.blocks)
    assert unchanged == len(kept) - (len(child) == len(PARENT))


def test_a_removed_lineage_is_not_given_again():
  genotype, given = Genotype.parse('16c1'), {0}
  for key in enumeration.keys(60):
    child = mutation.mutate(key, genotype, SPACE, {genotype})
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
