"""The genotype of a convolutional network and its search space (Sections 3 and 3.2).

A network is a stack of blocks (convolution, batch normalisation, ReLU), each with three
evolvable integers.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

import jax
import numpy as np

_BLOCK_PATTERN = re.compile(r'(\d+)c(\d+)(?:s(\d+))?')
_UNNUMBERED = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Block:
  """One convolution-BatchNorm-ReLU block.

  Attributes:
    filters: Number of filters of the convolution.
    kernel_size: Side of the square kernel, in pixels.
    stride: Stride of the convolution in both directions.
    lineage: Innovation number that names the block's parameters. A block keeps
      it through every mutation of its integers, so a child finds its parent's
      weights under the same name. It takes no part in equality and is not a
      pytree leaf. `Genotype` numbers the blocks that have none.
  """

  filters: int
  kernel_size: int
  stride: int = 1
  lineage: int = dataclasses.field(
    default=_UNNUMBERED, compare=False, metadata={'static': True}
  )

  def __str__(self) -> str:
    stride = '' if self.stride == 1 else f's{self.stride}'
    return f'{self.filters}c{self.kernel_size}{stride}'


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Genotype:
  """An architecture: the blocks from the image to the classifier.

  Immutable, hashable, and a pytree whose leaves are the integers of its blocks.
  Two genotypes are equal when their architectures are.

  Attributes:
    blocks: The blocks; the first one reads the image.
    next_lineage: The innovation number of the next new block, greater than every one
      given in this line of descent, so that removed blocks' numbers are not reused.
  """

  blocks: tuple[Block, ...]
  next_lineage: int = dataclasses.field(
    default=0, compare=False, metadata={'static': True}
  )

  def __post_init__(self) -> None:
    """Numbers the blocks without a lineage, or with that of an earlier block."""
    if not isinstance(self.blocks, tuple) or not all(
      isinstance(block, Block) for block in self.blocks
    ):
      return  # JAX rebuilds pytrees with placeholders in place of children.
    next_lineage = max([self.next_lineage, *(b.lineage + 1 for b in self.blocks)])
    blocks = {}
    for block in self.blocks:
      if block.lineage == _UNNUMBERED or block.lineage in blocks:
        block = dataclasses.replace(block, lineage=next_lineage)
        next_lineage += 1
      blocks[block.lineage] = block
    object.__setattr__(self, 'blocks', tuple(blocks.values()))
    object.__setattr__(self, 'next_lineage', next_lineage)

  def __str__(self) -> str:
    """Returns the short form, e.g. `64c3 96c3s2 128c1`."""
    return ' '.join(map(str, self.blocks))

  def __len__(self) -> int:
    return len(self.blocks)

  @classmethod
  def parse(cls, text: str) -> 'Genotype':
    """Returns the genotype of a short form such as `64c3 96c3s2 128c1`.

    Raises:
      ValueError: If a word is not `<filters>c<kernel size>[s<stride>]`.
    """
    blocks = []
    for word in text.split():
      match = _BLOCK_PATTERN.fullmatch(word)
      if match is None:
        raise ValueError(
          f'genotype: got {word!r}, want <filters>c<kernel size>[s<stride>]'
        )
      blocks.append(Block(*(int(group or 1) for group in match.groups())))
    return cls(tuple(blocks))

  def to_json(self) -> dict[str, Any]:
    """Returns the fields of JSON files that hold a genotype.

    `genotype` is [filters, kernel size, stride] of every block.
    """
    return {
      'genotype': [[b.filters, b.kernel_size, b.stride] for b in self.blocks],
      'lineages': [block.lineage for block in self.blocks],
      'next_lineage': self.next_lineage,
    }

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> 'Genotype':
    """Returns the genotype that `to_json` wrote into these fields, among others.

    Raises:
      ValueError: If there is none in them; also KeyError and TypeError.
    """
    blocks = [
      Block(filters, kernel_size, stride, lineage)
      for (filters, kernel_size, stride), lineage in zip(
        fields['genotype'], fields['lineages'], strict=True
      )
    ]
    next_lineage = fields['next_lineage']
    sizes = [n for b in blocks for n in (b.filters, b.kernel_size, b.stride)]
    integers = [next_lineage, *sizes, *(block.lineage for block in blocks)]
    # The exact type: JSON's true is an instance of int, and 3.0 equals 3.
    well_typed = all(type(value) is int for value in integers)
    if not (blocks and well_typed and all(0 < size < 2**31 for size in sizes)):
      raise ValueError('genotype: got no blocks or bad values, want positive integers')
    return cls(tuple(blocks), next_lineage=next_lineage)


@dataclasses.dataclass(frozen=True)
class SearchSpace:
  """The sets that hyperparameters are drawn from (Section 3.2).

  Attributes:
    filters: F, ascending.
    kernel_sizes: K, in pixels.
    strides: S.
    max_downsampling: Largest number of blocks with a stride above one.
  """

  filters: tuple[int, ...] = (16, 32, 64, 96, 128, 192, 256)
  kernel_sizes: tuple[int, ...] = (1, 3, 5)
  strides: tuple[int, ...] = (1, 2)
  max_downsampling: int = 3

  def __contains__(self, genotype: Genotype) -> bool:
    return (
      len(genotype) > 0
      and all(
        block.filters in self.filters
        and block.kernel_size in self.kernel_sizes
        and block.stride in self.strides
        for block in genotype.blocks
      )
      and sum(block.stride > 1 for block in genotype.blocks) <= self.max_downsampling
    )


def generator(key: jax.Array) -> np.random.Generator:
  """Returns a NumPy generator seeded with a JAX random key, typed or raw.

  Genotypes live on the host, where JAX would compile a program for every kind of draw.
  """
  if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.key_data(key)
  return np.random.default_rng(np.asarray(key))


def random_block(rng: np.random.Generator, space: SearchSpace) -> Block:
  """Returns a block of stride one with uniformly drawn filters and kernel size."""
  return Block(int(rng.choice(space.filters)), int(rng.choice(space.kernel_sizes)))


def random_genotype(key: jax.Array, space: SearchSpace) -> Genotype:
  """Returns the initial network: one random block of stride one (Section 3.1)."""
  return Genotype((random_block(generator(key), space),))
