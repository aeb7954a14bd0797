"""The state of a search, a fold of `tell` over its events, and the keys of its draws.

Pure: no files, no data. The state wraps that of the configured algorithm, and adds the
checkpoints (Section 4.1).
"""

from collections.abc import Iterator, Sequence
import dataclasses
import enum
from types import ModuleType

import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np

from lamarck_jax import evolution, population, random_search
from lamarck_jax.evolution import EvolutionState, Individual
from lamarck_jax.genotype import Genotype, SearchSpace
from lamarck_jax.parsimony import FITTER, Preference
from lamarck_jax.population import Offspring, PopulationState
from lamarck_jax.random_search import RandomSearchState

AlgorithmState = EvolutionState | PopulationState | RandomSearchState

# State -> the module with the algorithm's pure init, ask and tell.
_ALGORITHMS: dict[type[AlgorithmState], ModuleType] = {
  EvolutionState: evolution,
  PopulationState: population,
  RandomSearchState: random_search,
}


class Purpose(enum.IntEnum):
  """What a random key is for; the numbers are part of what a seed means."""

  MUTATION = 0
  NICHING = 1
  INITIALISATION = 2
  TRAINING = 3
  COMPLETION = 4


def random_key(seed: int, evaluation: int, purpose: Purpose) -> jax.Array:
  """Returns the key of one use of randomness in an evaluation.

  Keys are folded, never carried along, so a resumed search draws the same numbers.
  """
  # Not `jax.random.key`, which takes account of JAX's settings.
  data = jnp.asarray(np.array([0, seed], np.uint32))
  key = jax.random.wrap_key_data(data, impl='threefry2x32')
  key = jax.random.fold_in(key, evaluation)
  return jax.random.fold_in(key, purpose)


@dataclasses.dataclass(frozen=True)
class SearchState:
  """The algorithm's state and the checkpoints: a fold of `tell` over the events.

  Attributes:
    seed: The seed of the search.
    evolution: State of the algorithm: the (1+1)-EA, a population or random search.
    checkpoints: The best individual so far at each budget, in epochs.
    next_lineage: The innovation number of the next new block, greater than every one
      in the events.
    first: The first network, where it is given and not drawn; see `warm_start`.
  """

  seed: int
  evolution: AlgorithmState
  checkpoints: dict[int, Individual | None]
  next_lineage: int = 0
  first: Offspring | None = None

  def key(self, purpose: Purpose) -> jax.Array:
    """Returns a key of the next evaluation."""
    return random_key(self.seed, self.evolution.num_evaluations, purpose)

  def ask(self) -> tuple[Offspring, ...]:
    """Returns the next child, and all those that do not depend on its fitness.

    Their new blocks are numbered on from `next_lineage`: an algorithm knows the numbers
    in one line of descent alone, and would give one number to blocks of two siblings.
    """
    if self.first:
      return (self.first,)
    state, key = self.evolution, self.key(Purpose.MUTATION)
    match state:
      case PopulationState():
        # The children still to be told stay the same until the generation ends.
        first = state.num_evaluations - state.told
        offspring = population.ask(
          random_key(self.seed, first, Purpose.MUTATION), state
        )
      case EvolutionState(parent=Individual() as parent):
        offspring = (Offspring(evolution.ask(key, state), (parent,)),)
      case _:
        offspring = (Offspring(_ALGORITHMS[type(state)].ask(key, state)),)
    return tuple(_numbered(offspring, self.next_lineage))

  def tell(
    self, child: Genotype, fitness: float | None, correct: str | None = None
  ) -> 'SearchState':
    """Returns the state after an evaluation, as `evolution.tell` does.

    `correct` is for a population alone, see `population.tell`.
    """
    before, key = self.evolution, self.key(Purpose.NICHING)
    state: AlgorithmState
    if isinstance(before, PopulationState):
      state = population.tell(key, before, child, fitness, correct)
    else:
      state = _ALGORITHMS[type(before)].tell(key, before, child, fitness)
    checkpoints = {
      # The last evaluation may exceed the whole budget; it counts all the same.
      budget: state.best
      if state.epochs_used <= budget or budget == state.budget_epochs
      else best
      for budget, best in self.checkpoints.items()
    }
    next_lineage = max(self.next_lineage, child.next_lineage)
    return SearchState(self.seed, state, checkpoints, next_lineage)

  def accepts(self, child: Genotype, fitness: float | None) -> bool:
    """Returns whether the next child is selected if it has this fitness."""
    state = self.evolution
    if fitness is None:
      return False
    if isinstance(state, PopulationState):
      return state.accepts(child, fitness)
    beaten = state.parent or state.best  # In random search, children have no parent.
    preference = state.preference.told(fitness)
    individual = Individual(child, fitness, state.num_evaluations)
    return beaten is None or preference.prefers(individual, beaten)

  @property
  def living(self) -> set[int]:
    """The evaluations of the individuals that can still have children."""
    state = self.evolution
    individuals: set[Individual | None]
    if isinstance(state, PopulationState):
      individuals = {*state.parents, *state.survivors}
    else:
      individuals = {state.parent, state.niche.origin if state.niche else None}
    return {individual.evaluation for individual in individuals if individual}

  @property
  def needed(self) -> set[int]:
    """The evaluations whose weights are still needed."""
    best = self.checkpoints.values()
    return self.living | {individual.evaluation for individual in best if individual}


def _numbered(offspring: Sequence[Offspring], next_lineage: int) -> Iterator[Offspring]:
  """Yields children whose new blocks have the numbers from `next_lineage` on."""
  for child in offspring:
    inherited = {
      block.lineage for parent in child.parents for block in parent.genotype.blocks
    }
    blocks = []
    for block in child.genotype.blocks:
      if block.lineage not in inherited:
        block = dataclasses.replace(block, lineage=next_lineage)
        next_lineage += 1
      blocks.append(block)
    genotype = Genotype(tuple(blocks), next_lineage)
    yield dataclasses.replace(child, genotype=genotype)


def initial_state(
  config: config_dict.ConfigDict, preference: Preference = FITTER
) -> SearchState:
  """Returns the state before the first evaluation.

  Args:
    config: The configuration.
    preference: Which of two networks is selected; it depends on the data.
  """
  space = SearchSpace(
    tuple(config.search_space.filters),
    tuple(config.search_space.kernel_sizes),
    tuple(config.search_space.strides),
    config.search_space.max_downsampling,
  )
  state: AlgorithmState
  if config.algorithm == 'random_search':
    state = random_search.init(
      space,
      budget_epochs=config.budget_epochs,
      epochs_per_evaluation=config.epochs_per_evaluation,
      max_blocks=config.random_search.max_blocks,
    )
  elif config.algorithm == 'population':
    state = population.init(
      space,
      budget_epochs=config.budget_epochs,
      epochs_per_evaluation=config.epochs_per_evaluation,
      size=config.population.size,
      children=config.population.children,
      tournament=config.population.tournament,
      crossover_rate=config.population.crossover_rate,
      replacement=config.population.replacement,
      mate=config.population.mate,
    )
  else:
    state = evolution.init(
      space,
      budget_epochs=config.budget_epochs,
      epochs_per_evaluation=config.epochs_per_evaluation,
      niching_rate=config.niching.rate,
      niching_iterations=config.niching.iterations,
    )
  state = dataclasses.replace(state, preference=preference)
  budgets = [n for n in config.checkpoint_epochs if n < config.budget_epochs]
  return SearchState(
    config.seed, state, dict.fromkeys([*budgets, config.budget_epochs])
  )
