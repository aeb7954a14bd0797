"""The states of the experiment on crossover: pairs of parents that have a cut.

They come from population searches on `configs/digits.py`, see `crossover_births`.
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import math

import jax
from ml_collections import config_dict

from benchmarks import common
from lamarck_jax import crossover, initialisation, model, population
from lamarck_jax import genotype as genotype_lib
from lamarck_jax.crossover import Cut
from lamarck_jax.evolution import Individual
from lamarck_jax.genotype import Genotype, SearchSpace
from lamarck_jax.model import Variables
from lamarck_jax.population import Offspring, PopulationState
from lamarck_jax.search_state import Purpose, initial_state
from lamarck_jax.training import Trainer
from lamarck_jax.trial import learning_rates

# States of a generation at most, and children drawn at most to find them.
STATES_PER_GENERATION = 2
_DRAWS = 40
# Above the lineage numbers of any search.
_UNRELATED = 1_000_000

# The searches of the experiment beside this one have the same values.
FIELDS = {
  'algorithm': 'population',
  'budget_epochs': 128,
  'population.crossover_rate': 0.8,
  'completion.enabled': False,
}
TINY = {
  'dataset.num_train': 96,
  'dataset.num_validation': 50,
  'budget_epochs': 12,
  'population.children': 3,
  'epochs_per_evaluation': 1,
  'search_space.filters': (4, 8),
  'search_space.kernel_sizes': (3,),
  'search_space.strides': (1,),
  'completion.epochs': (1,),
  'completion.learning_rates': (1e-3,),
}


def make_config(seed: int, tiny: bool = False) -> config_dict.ConfigDict:
  """Returns the configuration of a search that gives states."""
  config = common.load_config('digits')
  config.update_from_flattened_dict({**FIELDS, 'seed': seed})
  config.update_from_flattened_dict(TINY if tiny else {})
  return config


@dataclasses.dataclass(frozen=True)
class Searched:
  """A search.

  Attributes:
    config: Its configuration.
    generations: The state at the beginning of each generation, and at the end.
    variables: The trained variables of each network, by evaluation.
    parents: The evaluations of each network's parents, by evaluation.
  """

  config: config_dict.ConfigDict
  generations: list[PopulationState]
  variables: dict[int, Variables]
  parents: dict[int, tuple[int, ...]]


def search(seed: int, trainer: Trainer, tiny: bool = False) -> Searched:
  """Runs a search in memory, with the keys of `lamarck_jax.search`."""
  config = make_config(seed, tiny)
  state = initial_state(config)
  variables: dict[int, Variables] = {}
  parents: dict[int, tuple[int, ...]] = {}
  generations = []
  while not state.evolution.done:
    child, number = state.ask()[0], state.evolution.num_evaluations
    parents[number] = tuple(parent.evaluation for parent in child.parents)
    initial, _ = initialisation.initial_variables(
      state.key(Purpose.INITIALISATION),
      child,
      [variables[parent] for parent in parents[number]],
      trainer,
      config,
    )
    key, rates = state.key(Purpose.TRAINING), learning_rates(config)
    variables[number] = trainer.train(key, child.genotype, initial, rates)
    fitness = trainer.accuracy(child.genotype, variables[number], 'validation')
    state = state.tell(child.genotype, fitness)
    if isinstance(state.evolution, PopulationState) and state.evolution.told == 0:
      generations.append(state.evolution)
  return Searched(config, generations, variables, parents)


def crossovers(
  key: jax.Array, state: PopulationState, used: Collection[frozenset[int]] = ()
) -> list[Offspring]:
  """Returns children by crossover of different pairs, drawn as the search draws them.

  Most pairs have no cut, so draws that give a mutant are repeated, `_DRAWS` at most.

  Args:
    key: Draws the pairs and their cuts.
    state: A state at the beginning of a generation.
    used: Pairs of evaluations that are left out.
  """
  state = dataclasses.replace(state, crossover_rate=1.0, children=1)
  found: dict[frozenset[int], Offspring] = {}
  for index in range(_DRAWS):
    (child,) = population.ask(jax.random.fold_in(key, index), state)
    pair = frozenset(parent.evaluation for parent in child.parents)
    if child.cut and pair not in used:
      found.setdefault(pair, child)
    if len(found) == STATES_PER_GENERATION:
      break
  return list(found.values())


def distance(parents: Mapping[int, Sequence[int]], first: int, second: int) -> int:
  """Returns the number of evaluations that separate two relatives.

  Of all paths from one to a common ancestor and on to the other it is the shortest, in
  steps from child to parent; each step is an evaluation of e epochs.
  """
  depths = []
  for start in (first, second):
    found, waiting = {start: 0}, [start]
    for number in waiting:  # Breadth first: it grows while it is read.
      for parent in parents[number]:
        if parent not in found:
          found[parent] = found[number] + 1
          waiting.append(parent)
    depths.append(found)
  common_ancestors = depths[0].keys() & depths[1].keys()
  return min(depths[0][number] + depths[1][number] for number in common_ancestors)


def unrelated_child(
  key: jax.Array,
  child: Offspring,
  others: Sequence[Individual],
  space: SearchSpace,
) -> Offspring | None:
  """Returns the child of a crossover with an unrelated mate in the second's place.

  Args:
    child: The child of two relatives; the first one and its cut are kept.
    others: Individuals of another search.
    space: The search space.

  Returns:
    The child, with the mate renumbered by `renumbered`, or None if no mate fits.
  """
  first, second = child.parents
  assert child.cut
  behind = len(second.genotype) - child.cut.second
  stride = _stride(first.genotype, child.cut.first)
  for index in genotype_lib.generator(key).permutation(len(others)):
    mate = dataclasses.replace(
      others[index], genotype=renumbered(others[index].genotype)
    )
    found = []
    for position in range(1, len(mate.genotype) + 1):
      cut = Cut(child.cut.first, position)
      genotype = crossover.child_at(first.genotype, mate.genotype, cut)
      if _stride(mate.genotype, position) == stride and genotype in space:
        distance = abs(len(mate.genotype) - position - behind)
        found.append((distance, position, genotype, cut))
    if found:
      _, _, genotype, cut = min(found, key=lambda candidate: candidate[:2])
      return Offspring(genotype, (first, mate), cut, mate)
  return None


def _stride(genotype: Genotype, position: int) -> int:
  """Returns the product of strides of the first blocks."""
  return math.prod(block.stride for block in genotype.blocks[:position])


def renumbered(genotype: Genotype) -> Genotype:
  """Returns a genotype whose blocks have numbers that no other search gives."""
  blocks = (
    dataclasses.replace(block, lineage=_UNRELATED + block.lineage)
    for block in genotype.blocks
  )
  return Genotype(tuple(blocks))


def renumbered_variables(genotype: Genotype, variables: Variables) -> Variables:
  """Returns variables with the names of `renumbered`."""
  names = {model.CLASSIFIER: model.CLASSIFIER}
  for old, new in zip(genotype.blocks, renumbered(genotype).blocks, strict=True):
    names[model.block_name(old)] = model.block_name(new)
  return {
    collection: {names[name]: leaves for name, leaves in modules.items()}
    for collection, modules in variables.items()
  }
