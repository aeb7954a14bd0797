"""A (mu + lambda) population with crossover as pure init, ask and tell.

Beyond the paper, whose (1+1)-EA is in `evolution`; mutation and history are the same.
`ask` gives all children of a generation that are still to be evaluated, and `tell`
takes their fitnesses in that order::

  state = init(space, budget_epochs=512, epochs_per_evaluation=4)
  while not state.done:
    child = ask(generation_key, state)[0]
    state = tell(key, state, child.genotype, fitness(child))

The children of a generation depend on the individuals at its beginning alone, not on
one another's fitness. So they can be trained side by side, and a state in the middle of
a generation asks for the same remaining children when it is given the same key.
"""

from collections.abc import Collection, Mapping, Sequence
import contextlib
import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from lamarck_jax import crossover, mutation
from lamarck_jax import genotype as genotype_lib
from lamarck_jax.crossover import Cut
from lamarck_jax.evolution import Individual
from lamarck_jax.genotype import Genotype, SearchSpace
from lamarck_jax.mutation import NotApplicable
from lamarck_jax.parsimony import FITTER, Preference

# How the second parent of a crossover is drawn. 'tournament': as the first one;
# 'complementary': with a probability proportional to the number of validation examples
# that it classifies correctly and the first one does not, after Abrantes et al. (2025),
# "Competition and Attraction Improve Model Fusion".
MATES = ('tournament', 'complementary')

# How a child takes a place. 'worst': by strict improvement on the worst individual;
# 'oldest': always, from the oldest one (Real et al., 2019, arXiv 1802.01548).
REPLACEMENTS = ('worst', 'oldest')


@dataclasses.dataclass(frozen=True)
class Offspring:
  """A network to evaluate, and where it comes from.

  Attributes:
    genotype: Its architecture.
    parents: None for an initial network, one for a mutant, two for a crossover.
    cut: Where the two parents were cut.
    mate: The individual drawn for a crossover, even if no cut was possible and the
      child is a mutant.
    variables: The weights that an initial network starts from; None: fresh ones.
  """

  genotype: Genotype
  parents: tuple[Individual, ...] = ()
  cut: Cut | None = None
  mate: Individual | None = None
  variables: Mapping[str, Any] | None = dataclasses.field(
    default=None, repr=False, compare=False
  )

  @property
  def operators(self) -> list[str]:
    """The names of the operators that made it, see `mutation.describe`."""
    if len(self.parents) == 1:
      return mutation.describe(self.parents[0].genotype, self.genotype)
    return ['crossover'] if self.parents else []


@dataclasses.dataclass(frozen=True)
class PopulationState:
  """Everything the algorithm knows; immutable.

  Attributes:
    space: The search space.
    budget_epochs: n, the training epochs after which the search ends.
    epochs_per_evaluation: e, the training epochs of one fitness evaluation.
    size: mu, the most individuals; until there are as many, every child becomes one.
    children: lambda, the children of a generation.
    tournament: A parent is the fittest of this number of draws with replacement.
    crossover_rate: The probability that a child is made by crossover.
    replacement: One of `REPLACEMENTS`.
    mate: One of `MATES`.
    parents: The individuals at the beginning of the generation, in order of evaluation.
    survivors: Those after the children told so far; the next generation's parents.
    generation: Index of the generation; the first one is the initial network alone.
    told: Number of children of this generation that have been told.
    best: The fittest individual so far, the earliest among equals.
    history: All genotypes evaluated so far, failed ones included.
    num_evaluations: Number of evaluations so far.
    epochs_used: Training epochs so far; a failed evaluation uses e as well.
    preference: Which of two networks is selected, see `parsimony`.
    parent_preference: The same at the beginning of the generation, by which parents are
      drawn: what is told of some children must not change the others.
    correct: The validation examples that each individual classifies correctly, by
      evaluation, as `tell` was given them; empty unless mates are complementary.
    parent: None, since each child has parents of its own.
    niche: None, since there are no niches.
  """

  space: SearchSpace
  budget_epochs: int
  epochs_per_evaluation: int
  size: int
  children: int
  tournament: int
  crossover_rate: float
  replacement: str
  mate: str = 'tournament'
  parents: tuple[Individual, ...] = ()
  survivors: tuple[Individual, ...] = ()
  generation: int = 0
  told: int = 0
  best: Individual | None = None
  history: frozenset[Genotype] = frozenset()
  num_evaluations: int = 0
  epochs_used: int = 0
  preference: Preference = FITTER
  parent_preference: Preference = FITTER
  correct: Mapping[int, str] = dataclasses.field(default_factory=dict)

  parent: ClassVar[None] = None
  niche: ClassVar[None] = None

  @property
  def done(self) -> bool:
    """Whether the budget is used up, which ends a generation too."""
    return self.epochs_used >= self.budget_epochs

  @property
  def num_children(self) -> int:
    """The number of children of this generation, fewer where the budget ends."""
    # All descend from one initial network, or they would have no block in common.
    whole = self.children if self.parents else 1
    left = self.budget_epochs - self.epochs_used
    return min(whole, self.told + -(-left // self.epochs_per_evaluation))

  @property
  def worst(self) -> Individual:
    """The survivor that is preferred least, the latest among equals."""
    key = self.preference.key
    return min(self.survivors, key=lambda one: (key(one), -one.evaluation))

  def accepts(self, child: Genotype, fitness: float) -> bool:
    """Returns whether a child with this fitness would become an individual now."""
    state = dataclasses.replace(self, preference=self.preference.told(fitness))
    return (
      state.replacement == 'oldest'
      or len(state.survivors) < state.size
      or state.preference.prefers(Individual(child, fitness, -1), state.worst)
    )


def init(
  space: SearchSpace,
  *,
  budget_epochs: int,
  epochs_per_evaluation: int,
  size: int = 8,
  children: int = 4,
  tournament: int = 2,
  crossover_rate: float = 0.5,
  replacement: str = 'worst',
  mate: str = 'tournament',
) -> PopulationState:
  """Returns the state before the first evaluation; see `PopulationState`.

  Raises:
    ValueError: If a number is below 1, or there is no such replacement or mate.
  """
  for name, value in (
    ('budget_epochs', budget_epochs),
    ('epochs_per_evaluation', epochs_per_evaluation),
    ('size', size),
    ('children', children),
    ('tournament', tournament),
  ):
    if value < 1:
      raise ValueError(f'{name}: got {value}, want at least 1')
  for name, choice, choices in (
    ('replacement', replacement, REPLACEMENTS),
    ('mate', mate, MATES),
  ):
    if choice not in choices:
      raise ValueError(f'{name}: got {choice!r}, want one of {", ".join(choices)}')
  return PopulationState(
    space,
    budget_epochs,
    epochs_per_evaluation,
    size,
    children,
    tournament,
    crossover_rate,
    replacement,
    mate,
  )


def ask(key: jax.Array, state: PopulationState) -> tuple[Offspring, ...]:
  """Returns the children of the generation that have not been told, in their order.

  An initial network is the only child until one could be evaluated. Later children
  have not been evaluated before, and no two of a generation are equal.

  Args:
    key: The same for all calls in a generation; each child folds in its place.
  """
  history = set(state.history)
  offspring = []
  for place in range(state.told, state.num_children):
    child = _child(jax.random.fold_in(key, place), state, history)
    history.add(child.genotype)
    offspring.append(child)
  return tuple(offspring)


def _child(
  key: jax.Array, state: PopulationState, history: Collection[Genotype]
) -> Offspring:
  """Returns one child that is not in the history."""
  selection_key, crossover_key, key = jax.random.split(key, 3)
  if not state.parents:
    return Offspring(genotype_lib.random_genotype(key, state.space))
  rng = genotype_lib.generator(selection_key)
  first = _winner(rng, state, state.parents)
  mate = None
  others = [individual for individual in state.parents if individual is not first]
  if others and rng.random() < state.crossover_rate:
    mate = _mate(rng, state, first, others)
    with contextlib.suppress(NotApplicable):
      genotype, cut = crossover.crossover(
        crossover_key, first.genotype, mate.genotype, state.space, history
      )
      return Offspring(genotype, (first, mate), cut, mate)
  genotype = mutation.mutate(key, first.genotype, state.space, history)
  return Offspring(genotype, (first,), mate=mate)


def _winner(
  rng: np.random.Generator, state: PopulationState, individuals: Sequence[Individual]
) -> Individual:
  """Returns the fittest of some random individuals, the earliest among equals."""
  drawn = np.sort(rng.integers(len(individuals), size=state.tournament))
  return max((individuals[i] for i in drawn), key=state.parent_preference.key)


def _mate(
  rng: np.random.Generator,
  state: PopulationState,
  first: Individual,
  others: Sequence[Individual],
) -> Individual:
  """Returns the second parent of a crossover."""
  if state.mate == 'complementary':

    def correct(individual: Individual) -> int:
      return int(state.correct.get(individual.evaluation) or '0', 16)

    wrong = ~correct(first)
    gains = np.array([(correct(other) & wrong).bit_count() for other in others])
    if gains.any():
      return others[int(rng.choice(len(others), p=gains / gains.sum()))]
  return _winner(rng, state, others)  # No other one knows more.


def tell(
  key: jax.Array,
  state: PopulationState,
  child: Genotype,
  fitness: float | None,
  correct: str | None = None,
) -> PopulationState:
  """Returns the state after the evaluation of the next child.

  To let each child take a place when it is told is the same as to choose the best of
  mu + lambda at the end of the generation, the earlier ones among equals.

  Args:
    key: Not used: selection is not random.
    state: The state that `ask` was called with.
    child: The genotype of the first of the children that `ask` returned.
    fitness: Its validation accuracy; None if it could not be evaluated. Such a child
      never becomes an individual.
    correct: The validation examples that it classifies correctly, a bit each in
      hexadecimal; needed where mates are complementary.
  """
  del key
  state = dataclasses.replace(state, preference=state.preference.told(fitness))
  survivors, best = state.survivors, state.best
  if fitness is not None:
    individual = Individual(child, fitness, state.num_evaluations)
    if best is None or state.preference.prefers(individual, best):
      best = individual
    if state.accepts(child, fitness):
      survivors = (*_with_a_place(state), individual)
  alive = {one.evaluation for one in (*state.parents, *survivors)}
  known = {number: bits for number, bits in state.correct.items() if number in alive}
  if correct and state.num_evaluations in alive:
    known[state.num_evaluations] = correct
  told = state.told + 1
  ended = told == state.num_children
  return dataclasses.replace(
    state,
    parents=survivors if ended else state.parents,
    parent_preference=state.preference if ended else state.parent_preference,
    survivors=survivors,
    generation=state.generation + ended,
    told=0 if ended else told,
    best=best,
    history=state.history | {child},
    num_evaluations=state.num_evaluations + 1,
    epochs_used=state.epochs_used + state.epochs_per_evaluation,
    correct={
      number: bits for number, bits in known.items() if bits and number in alive
    },
  )


def _with_a_place(state: PopulationState) -> tuple[Individual, ...]:
  """Returns the survivors, without one of them if there is no place."""
  if len(state.survivors) < state.size:
    return state.survivors
  if state.replacement == 'oldest':
    return state.survivors[1:]
  worst = state.worst
  return tuple(one for one in state.survivors if one is not worst)


def event_fields(
  state: PopulationState,
  offspring: Offspring,
  r2: float | None,
  correct: str | None = None,
) -> dict[str, Any]:
  """Returns what an event has beside the fields of the (1+1)-EA.

  Args:
    state: The state that asked for the child.
    r2: Of the fit at the seam, if there was one.
    correct: As `tell` gets it.
  """
  mate, cut = offspring.mate, offspring.cut
  fields = {
    'generation': state.generation,
    'parents': [parent.evaluation for parent in offspring.parents],
    # A mate without a cut: the child is a mutation instead.
    'crossover': mate and {'mate': mate.evaluation, 'cut': cut and list(cut), 'r2': r2},
  }
  if state.mate == 'complementary':
    fields['correct'] = correct
  return fields
