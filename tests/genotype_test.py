"""Tests of `genotype`."""

import dataclasses
import json
import re

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest
from scipy import stats

from lamarck_jax import genotype as genotype_lib
from lamarck_jax.genotype import Block, Genotype, SearchSpace

_BOUNDED = settings(max_examples=100, deadline=None, derandomize=True)

_integers = st.integers(1, 999)
_architectures = st.lists(st.tuples(_integers, _integers, _integers), max_size=6)


def _genotype(architecture: list[tuple[int, int, int]]) -> Genotype:
  return Genotype(tuple(Block(*integers) for integers in architecture))


def _lineages(genotype: Genotype) -> list[int]:
  return [block.lineage for block in genotype.blocks]


# ------------------------------------------------------------------------------
# Pytrees, equality
# ------------------------------------------------------------------------------


@_BOUNDED
@given(_architectures)
def test_the_leaves_of_a_genotype_are_exactly_its_integers(architecture):
  leaves = jax.tree.leaves(_genotype(architecture))
  assert leaves == [integer for block in architecture for integer in block]
  assert all(type(leaf) is int for leaf in leaves)


@_BOUNDED
@given(_architectures, st.integers(0, 50))
def test_a_tree_map_changes_the_integers_and_keeps_the_lineages(architecture, offset):
  genotype = Genotype(
    tuple(
      Block(filters, kernel_size, stride, offset + 2 * index)
      for index, (filters, kernel_size, stride) in enumerate(architecture)
    ),
    next_lineage=200,
  )
  mapped = jax.tree.map(lambda integer: integer + 1, genotype)
  assert mapped == _genotype([(f + 1, k + 1, s + 1) for f, k, s in architecture])
  assert _lineages(mapped) == _lineages(genotype)
  assert mapped.next_lineage == 200


def test_a_genotype_can_be_traced_as_an_argument_of_a_jitted_function():
  genotype = Genotype.parse('64c3 96c5s2')
  doubled = jax.jit(lambda g: jax.tree.map(lambda integer: 2 * integer, g))(genotype)
  assert [int(leaf) for leaf in jax.tree.leaves(doubled)] == [128, 6, 2, 192, 10, 4]


def test_genotypes_and_blocks_cannot_be_changed():
  genotype = Genotype.parse('64c3')
  for instance, field in (
    (genotype, 'blocks'),
    (genotype, 'next_lineage'),
    (genotype.blocks[0], 'filters'),
    (genotype.blocks[0], 'lineage'),
    (SearchSpace(), 'filters'),
  ):
    with pytest.raises(dataclasses.FrozenInstanceError):
      setattr(instance, field, 1)


_few = st.sampled_from([1, 3])
_few_architectures = st.lists(st.tuples(_few, _few, _few), max_size=2)


@_BOUNDED
@given(_few_architectures, _few_architectures)
def test_genotypes_are_equal_exactly_when_their_architectures_are(one, other):
  assert (_genotype(one) == _genotype(other)) == (one == other)
  assert (hash(_genotype(one)) == hash(_genotype(other))) == (one == other)
  assert len({_genotype(one), _genotype(other)}) == (1 if one == other else 2)


@_BOUNDED
@given(_architectures, st.integers(0, 50), st.integers(0, 500))
def test_lineages_take_no_part_in_equality(architecture, offset, next_lineage):
  genotype = _genotype(architecture)
  other = Genotype(
    tuple(
      dataclasses.replace(block, lineage=offset + 3 * index)
      for index, block in enumerate(genotype.blocks)
    ),
    next_lineage=next_lineage,
  )
  assert other == genotype
  assert hash(other) == hash(genotype)
  assert other in {genotype}


# ------------------------------------------------------------------------------
# Lineages
# ------------------------------------------------------------------------------


@_BOUNDED
@given(st.lists(st.integers(-1, 6), max_size=8), st.integers(0, 9))
def test_blocks_without_a_lineage_of_their_own_get_fresh_ones(numbers, next_lineage):
  genotype = Genotype(
    tuple(Block(16, 3, 1, lineage) for lineage in numbers), next_lineage=next_lineage
  )
  lineages = _lineages(genotype)
  assert len(set(lineages)) == len(numbers)
  used_before = max([next_lineage, *(lineage + 1 for lineage in numbers)])
  for index, lineage in enumerate(numbers):
    if lineage == -1 or lineage in numbers[:index]:
      assert lineages[index] >= used_before
    else:
      assert lineages[index] == lineage
  assert genotype.next_lineage >= max([used_before, *(n + 1 for n in lineages)])


def test_a_block_added_after_a_removal_does_not_get_the_lineage_of_the_removed():
  parent = Genotype.parse('16c3 32c3 64c3')
  removed = parent.blocks[2].lineage
  shorter = dataclasses.replace(parent, blocks=parent.blocks[:2])
  longer = dataclasses.replace(shorter, blocks=(*shorter.blocks, Block(64, 3)))
  assert longer == parent
  assert longer.blocks[2].lineage > removed


def test_a_genotype_made_of_numbered_blocks_is_taken_as_it_is():
  genotype = Genotype((Block(16, 3, 1, 7), Block(16, 3, 1, 2)), next_lineage=9)
  again = Genotype(genotype.blocks, genotype.next_lineage)
  assert _lineages(again) == [7, 2]
  assert again.next_lineage == 9


# ------------------------------------------------------------------------------
# Short forms
# ------------------------------------------------------------------------------


def test_the_short_form_leaves_out_a_stride_of_one():
  genotype = Genotype((Block(64, 3, 1), Block(96, 3, 2), Block(128, 1)))
  assert str(genotype) == '64c3 96c3s2 128c1'
  assert Genotype.parse('64c3 96c3s2 128c1') == genotype
  assert Genotype.parse(' 64c3s1\n96c3s2  128c1 ') == genotype


@_BOUNDED
@given(_architectures)
def test_parse_gives_back_the_genotype_that_was_written(architecture):
  genotype = _genotype(architecture)
  parsed = Genotype.parse(str(genotype))
  assert parsed == genotype
  assert len(parsed) == len(architecture)
  assert _lineages(parsed) == list(range(len(architecture)))


@pytest.mark.parametrize(
  'word',
  ['64', 'c3', '64c', '64c3s', '64x3', '-64c3', '64c3s-1', '64c3,32c3', '64C3']
  + ['6.4c3', '64c3s2s2', '64c3c5', 's2', '64s2', '(64,3,1)'],
)
def test_parse_names_the_word_that_is_no_block(word):
  with pytest.raises(ValueError, match=re.escape(repr(word))) as error:
    Genotype.parse(f'16c3 {word} 32c1')
  assert '\n' not in str(error.value)


# ------------------------------------------------------------------------------
# Search space
# ------------------------------------------------------------------------------


def test_the_default_space_is_the_papers():
  space = SearchSpace()
  assert space.filters == (16, 32, 64, 96, 128, 192, 256)
  assert space.kernel_sizes == (1, 3, 5)
  assert space.strides == (1, 2)
  assert space.max_downsampling == 3


@pytest.mark.parametrize(
  'text',
  ['16c1', '256c5s2', '64c3s2 64c3s2 64c3s2', '64c3s2 64c3 64c3s2 16c1 64c3s2 32c5']
  + [' '.join(['96c3'] * 40)],
)
def test_the_space_contains_what_its_sets_allow(text):
  assert Genotype.parse(text) in SearchSpace()


@pytest.mark.parametrize(
  'text',
  ['', '48c3', '64c7', '64c3s3', '64c2', '64c3 48c3', '64c3s2 64c3s2 64c3s2 64c3s2']
  + ['16c1s2 64c3 16c1s2 16c1s2 32c5 16c1s2', '0c3', '64c3s0'],
)
def test_the_space_contains_nothing_else(text):
  assert Genotype.parse(text) not in SearchSpace()


def test_the_limit_on_downsampling_counts_every_stride_above_one():
  space = SearchSpace(strides=(1, 2, 3), max_downsampling=1)
  assert Genotype.parse('16c3 16c3s3') in space
  assert Genotype.parse('16c3s2 16c3s3') not in space
  assert Genotype.parse('16c3s2') not in SearchSpace(max_downsampling=0)


# ------------------------------------------------------------------------------
# The initial network
# ------------------------------------------------------------------------------


def test_the_initial_network_is_one_uniformly_drawn_block_of_stride_one():
  space, counts = SearchSpace(), dict[str, int]()
  for seed in range(2100):
    genotype = genotype_lib.random_genotype(jax.random.key(seed), space)
    assert len(genotype) == 1
    assert genotype in space
    assert genotype.blocks[0].stride == 1
    block = genotype.blocks[0]
    assert type(block.filters) is int
    assert type(block.kernel_size) is int
    counts[str(block)] = counts.get(str(block), 0) + 1
  assert len(counts) == len(space.filters) * len(space.kernel_sizes)
  assert stats.chisquare(list(counts.values())).pvalue > 0.001


def test_the_initial_network_lies_in_the_space_it_is_given():
  space = SearchSpace(filters=(8, 24), kernel_sizes=(7,), strides=(1,))
  drawn = {
    str(genotype_lib.random_genotype(jax.random.key(seed), space)) for seed in range(30)
  }
  assert drawn == {'8c7', '24c7'}


def test_the_initial_network_depends_on_the_key_alone():
  for seed in range(5):
    key = jax.random.key(seed)
    genotype = genotype_lib.random_genotype(key, SearchSpace())
    assert genotype_lib.random_genotype(key, SearchSpace()) == genotype
    raw = jax.random.PRNGKey(seed)
    assert genotype_lib.random_genotype(raw, SearchSpace()) == genotype


def test_generators_of_different_keys_draw_different_numbers():
  draws = np.array(
    [genotype_lib.generator(jax.random.key(seed)).random(4) for seed in range(50)]
  )
  assert len(np.unique(draws)) == draws.size


# ------------------------------------------------------------------------------
# JSON
# ------------------------------------------------------------------------------

_blocks_by_lineage = st.dictionaries(
  st.integers(0, 99), st.tuples(_integers, _integers, _integers), min_size=1
)


@_BOUNDED
@given(_blocks_by_lineage, st.integers(0, 200))
def test_a_genotype_is_read_from_json_with_its_lineages(blocks, next_lineage):
  genotype = Genotype(
    tuple(Block(*integers, lineage) for lineage, integers in blocks.items()),
    next_lineage=next_lineage,
  )
  fields = json.loads(json.dumps(genotype.to_json()))
  assert fields['genotype'] == [list(integers) for integers in blocks.values()]
  read = Genotype.from_json({**fields, 'fitness': 0.5})
  assert read == genotype
  assert _lineages(read) == list(blocks)
  assert read.next_lineage == genotype.next_lineage


@pytest.mark.parametrize(
  'change',
  [
    {'genotype': []},
    {'genotype': [], 'lineages': []},
    {'genotype': [[16, 3]]},
    {'genotype': [[16, 3, True]]},
    {'genotype': [[16.0, 3, 1]]},
    {'genotype': 7},
    {'lineages': ['0']},
    {'next_lineage': None},
  ],
  ids=str,
)
def test_json_that_holds_no_genotype_is_refused(change):
  with pytest.raises((ValueError, TypeError)):
    Genotype.from_json({**Genotype.parse('16c3').to_json(), **change})
