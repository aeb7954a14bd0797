"""Random search with the same budget as pure init, ask and tell: a control.

Every network is drawn from the search space and trained from fresh weights, so nothing
but the best is selected (Li and Talwalkar, UAI 2019). It has the verbs of `evolution`::

  state = init(space, budget_epochs=512, epochs_per_evaluation=4)
  while not state.done:
    child = ask(key_1, state)
    state = tell(key_2, state, child, fitness(child))
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from lamarck_jax import genotype as genotype_lib
from lamarck_jax.evolution import Individual
from lamarck_jax.genotype import Genotype, SearchSpace
from lamarck_jax.parsimony import FITTER, Preference

_FRUITLESS_DRAWS = 100


@dataclasses.dataclass(frozen=True)
class RandomSearchState:
  """Everything the algorithm knows; immutable.

  Attributes:
    space: The search space.
    budget_epochs: n, the training epochs after which the search ends.
    epochs_per_evaluation: e, the training epochs of one fitness evaluation.
    max_blocks: Depth is drawn uniformly from 1 to this number of blocks.
    best: The fittest individual so far, the earliest among equals.
    history: All genotypes evaluated so far, failed ones included.
    num_evaluations: Number of evaluations so far.
    epochs_used: Training epochs so far; a failed evaluation uses e as well.
    preference: Which of two networks is selected, see `parsimony`.
    parent: None, since no network has one.
    niche: None, since there are no niches.
  """

  space: SearchSpace
  budget_epochs: int
  epochs_per_evaluation: int
  max_blocks: int = 10
  best: Individual | None = None
  history: frozenset[Genotype] = frozenset()
  num_evaluations: int = 0
  epochs_used: int = 0
  preference: Preference = FITTER

  parent: ClassVar[None] = None
  niche: ClassVar[None] = None

  @property
  def done(self) -> bool:
    """Whether the budget is used up."""
    return self.epochs_used >= self.budget_epochs


def init(
  space: SearchSpace,
  *,
  budget_epochs: int,
  epochs_per_evaluation: int,
  max_blocks: int = 10,
) -> RandomSearchState:
  """Returns the state before the first evaluation; see `RandomSearchState`.

  Raises:
    ValueError: If a number of epochs or blocks is below 1.
  """
  for name, value in (
    ('budget_epochs', budget_epochs),
    ('epochs_per_evaluation', epochs_per_evaluation),
    ('max_blocks', max_blocks),
  ):
    if value < 1:
      raise ValueError(f'{name}: got {value}, want at least 1')
  return RandomSearchState(space, budget_epochs, epochs_per_evaluation, max_blocks)


def ask(key: jax.Array, state: RandomSearchState) -> Genotype:
  """Returns a network that has not been evaluated, with a key for this call alone.

  The depth is uniform on 1 to `max_blocks`; filters and kernel size of every block are
  uniform; the number of blocks with a stride above one is uniform on what depth and
  space allow, their positions and strides are uniform as well.
  """
  rng = genotype_lib.generator(key)
  draws = 0
  while True:
    # Once every network of a tiny space has been evaluated, only deeper ones are new.
    child = _draw(rng, state.space, state.max_blocks + draws // _FRUITLESS_DRAWS)
    if child not in state.history:
      return child
    draws += 1


def tell(
  key: jax.Array, state: RandomSearchState, child: Genotype, fitness: float | None
) -> RandomSearchState:
  """Returns the state after an evaluation.

  Args:
    key: Not used: selection is not random.
    state: The state that `ask` was called with.
    child: The genotype that `ask` returned.
    fitness: Its validation accuracy; None if it could not be evaluated.
  """
  del key
  best, preference = state.best, state.preference.told(fitness)
  if fitness is not None:
    individual = Individual(child, fitness, state.num_evaluations)
    if best is None or preference.prefers(individual, best):
      best = individual
  return dataclasses.replace(
    state,
    best=best,
    history=state.history | {child},
    num_evaluations=state.num_evaluations + 1,
    epochs_used=state.epochs_used + state.epochs_per_evaluation,
    preference=preference,
  )


def _draw(rng: np.random.Generator, space: SearchSpace, max_blocks: int) -> Genotype:
  """Returns a network of the distribution that `ask` describes."""
  depth = int(rng.integers(1, max_blocks + 1))
  blocks = [genotype_lib.random_block(rng, space) for _ in range(depth)]
  strides = [stride for stride in space.strides if stride > 1]
  most = min(depth, space.max_downsampling) if strides else 0
  downsampling = rng.choice(depth, size=rng.integers(most + 1), replace=False)
  for position in downsampling:
    stride = int(rng.choice(strides))
    blocks[position] = dataclasses.replace(blocks[position], stride=stride)
  return Genotype(tuple(blocks))
