"""The mutation operator and its six parts, as pure functions (Section 3.2).

An operator is a function `(key, genotype, space) -> child` with an entry in `OPERATORS`
and a name in `describe`. It stays within the space and keeps the order and lineages of
the blocks that remain, by which a child finds its parent's weights; where it cannot
apply it raises `NotApplicable`. All choices are uniform over the space's sets F, K and
S; a draw from K or S may return the present value, which `mutate` rejects.
"""

from collections.abc import Callable, Collection
import dataclasses

import jax
import numpy as np

from lamarck_jax import genotype as genotype_lib
from lamarck_jax.genotype import Block, Genotype, SearchSpace

_FRUITLESS_DRAWS = 100


class NotApplicable(Exception):
  """The drawn operator cannot change this genotype within the search space."""


def add_block(key: jax.Array, genotype: Genotype, space: SearchSpace) -> Genotype:
  """Inserts a block of random filters and kernel size, and of stride one.

  All positions are equally likely, before the first block and after the last included.
  """
  rng = genotype_lib.generator(key)
  position = int(rng.integers(len(genotype) + 1))
  block = genotype_lib.random_block(rng, space)
  blocks = genotype.blocks
  return dataclasses.replace(
    genotype, blocks=(*blocks[:position], block, *blocks[position:])
  )


def remove_block(key: jax.Array, genotype: Genotype, space: SearchSpace) -> Genotype:
  """Removes a random block; not applicable to a single one."""
  del space
  if len(genotype) == 1:
    raise NotApplicable('remove_block: a network keeps at least one block')
  position = int(genotype_lib.generator(key).integers(len(genotype)))
  blocks = genotype.blocks
  return dataclasses.replace(
    genotype, blocks=blocks[:position] + blocks[position + 1 :]
  )


def add_filters(key: jax.Array, genotype: Genotype, space: SearchSpace) -> Genotype:
  """Sets a random block's filter count to the next greater one in F, if there is."""
  position, block = _random_block(key, genotype)
  greater = [filters for filters in space.filters if filters > block.filters]
  if not greater:
    raise NotApplicable(f'add_filters: {block.filters} is the greatest count')
  return _replace_block(genotype, position, filters=min(greater))


def remove_filters(key: jax.Array, genotype: Genotype, space: SearchSpace) -> Genotype:
  """Sets a random block's filter count to the next lower one in F, if there is."""
  position, block = _random_block(key, genotype)
  lower = [filters for filters in space.filters if filters < block.filters]
  if not lower:
    raise NotApplicable(f'remove_filters: {block.filters} is the lowest count')
  return _replace_block(genotype, position, filters=max(lower))


def change_kernel_size(
  key: jax.Array, genotype: Genotype, space: SearchSpace
) -> Genotype:
  """Draws the kernel size of a random block from K."""
  position_key, value_key = jax.random.split(key)
  position, _ = _random_block(position_key, genotype)
  kernel_size = int(genotype_lib.generator(value_key).choice(space.kernel_sizes))
  return _replace_block(genotype, position, kernel_size=kernel_size)


def change_stride(key: jax.Array, genotype: Genotype, space: SearchSpace) -> Genotype:
  """Draws the stride of a random block from S, within `max_downsampling`."""
  position_key, value_key = jax.random.split(key)
  position, _ = _random_block(position_key, genotype)
  stride = int(genotype_lib.generator(value_key).choice(space.strides))
  child = _replace_block(genotype, position, stride=stride)
  if sum(block.stride > 1 for block in child.blocks) > space.max_downsampling:
    raise NotApplicable(
      f'change_stride: at most {space.max_downsampling} blocks may downsample'
    )
  return child


Operator = Callable[[jax.Array, Genotype, SearchSpace], Genotype]

# Operator -> relative frequency (Section 3.2).
OPERATORS: dict[Operator, int] = {
  add_block: 3,
  remove_block: 3,
  add_filters: 2,
  remove_filters: 2,
  change_kernel_size: 2,
  change_stride: 1,
}


def mutate(
  key: jax.Array,
  genotype: Genotype,
  space: SearchSpace,
  history: Collection[Genotype] = frozenset(),
) -> Genotype:
  """Returns a mutant of a genotype that has not been evaluated before.

  Draws operators by their relative frequencies until the result is new. After 100
  fruitless draws from the genotype mutations accumulate, so this always ends.

  Args:
    history: All genotypes evaluated so far; a set makes the look-up fast.
  """
  operators = list(OPERATORS)
  frequencies = np.array(list(OPERATORS.values()), float)
  frequencies /= frequencies.sum()
  rng = genotype_lib.generator(key)
  start, draws = genotype, 0
  while True:
    operator = operators[rng.choice(len(operators), p=frequencies)]
    try:
      child = operator(jax.random.fold_in(key, draws), start, space)
    except NotApplicable:
      child = start
    if child != genotype and child not in history:
      return child
    draws += 1
    # The paper does not say what happens once every neighbour has been evaluated;
    # further mutations of the rejected child reach new networks.
    if draws >= _FRUITLESS_DRAWS:
      start = child


def describe(parent: Genotype, child: Genotype) -> list[str]:
  """Names the operators that lead from a parent to its child.

  Returns:
    One name of `OPERATORS` per changed property, sorted; empty for equal genotypes,
    more than one where `mutate` applied several.
  """
  parents = {block.lineage: block for block in parent.blocks}
  children = {block.lineage: block for block in child.blocks}
  names = ['remove_block' for lineage in parents if lineage not in children]
  names += ['add_block' for lineage in children if lineage not in parents]
  for lineage in parents.keys() & children.keys():
    before, after = parents[lineage], children[lineage]
    if after.filters != before.filters:
      names.append(
        'add_filters' if after.filters > before.filters else 'remove_filters'
      )
    if after.kernel_size != before.kernel_size:
      names.append('change_kernel_size')
    if after.stride != before.stride:
      names.append('change_stride')
  return sorted(names)


def _random_block(key: jax.Array, genotype: Genotype) -> tuple[int, Block]:
  """Returns the position of a random block, and the block."""
  position = int(genotype_lib.generator(key).integers(len(genotype)))
  return position, genotype.blocks[position]


def _replace_block(genotype: Genotype, position: int, **changes: int) -> Genotype:
  """Returns the genotype with some integers of one block replaced."""
  blocks = list(genotype.blocks)
  blocks[position] = dataclasses.replace(blocks[position], **changes)
  return dataclasses.replace(genotype, blocks=tuple(blocks))
