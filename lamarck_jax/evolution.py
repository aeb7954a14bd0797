"""The (1+1)-EA with niching (Algorithm 1, Section 3.1) as pure init, ask and tell.

The recursion of Algorithm 1 becomes a state. A niche runs the same loop with a parent
of its own for a fixed number of iterations, and opens no further niche::

  state = init(space, budget_epochs=512, epochs_per_evaluation=4)
  while not state.done:
    child = ask(key_1, state)
    state = tell(key_2, state, child, fitness(child))
"""

import dataclasses

import jax

from lamarck_jax import genotype as genotype_lib
from lamarck_jax import mutation
from lamarck_jax.genotype import Genotype, SearchSpace
from lamarck_jax.parsimony import FITTER, Preference


@dataclasses.dataclass(frozen=True)
class Individual:
  """An evaluated network.

  Attributes:
    genotype: Its architecture.
    fitness: Its validation accuracy, from 0 to 1.
    evaluation: Index of the evaluation that trained it, from 0.
  """

  genotype: Genotype
  fitness: float
  evaluation: int


@dataclasses.dataclass(frozen=True)
class Niche:
  """An open niche (Section 3.1).

  Attributes:
    origin: The parent outside the niche (a in Algorithm 1).
    iterations_left: Evaluations until the niche closes.
  """

  origin: Individual
  iterations_left: int


@dataclasses.dataclass(frozen=True)
class EvolutionState:
  """Everything the algorithm knows; immutable.

  Attributes:
    space: The search space.
    budget_epochs: n, the training epochs after which the search ends.
    epochs_per_evaluation: e, the training epochs of one fitness evaluation.
    niching_rate: eta, the probability to follow a child that is no better.
    niching_iterations: k, the evaluations in a niche.
    parent: The individual to mutate, in a niche the niche's; None before the first.
    niche: The open niche, if any.
    history: All genotypes evaluated so far, failed ones included.
    num_evaluations: Number of evaluations so far.
    epochs_used: Training epochs so far; a failed evaluation uses e as well.
    preference: Which of two networks is selected; beyond the paper, see `parsimony`.
  """

  space: SearchSpace
  budget_epochs: int
  epochs_per_evaluation: int
  niching_rate: float = 0.1
  niching_iterations: int = 5
  parent: Individual | None = None
  niche: Niche | None = None
  history: frozenset[Genotype] = frozenset()
  num_evaluations: int = 0
  epochs_used: int = 0
  preference: Preference = FITTER

  @property
  def done(self) -> bool:
    """Whether the budget is used up, which ends an open niche too."""
    return self.epochs_used >= self.budget_epochs

  @property
  def best(self) -> Individual | None:
    """The fittest individual so far, the earliest among equals."""
    # A parent is replaced by a fitter child only, so it is the best of its loop.
    if self.niche is None or self.parent is None:
      return self.parent
    origin = self.niche.origin
    return self.parent if self.preference.prefers(self.parent, origin) else origin


def init(
  space: SearchSpace,
  *,
  budget_epochs: int,
  epochs_per_evaluation: int,
  niching_rate: float = 0.1,
  niching_iterations: int = 5,
) -> EvolutionState:
  """Returns the state before the first evaluation; see `EvolutionState`.

  Raises:
    ValueError: If a number of epochs or iterations is below 1.
  """
  for name, value in (
    ('budget_epochs', budget_epochs),
    ('epochs_per_evaluation', epochs_per_evaluation),
    ('niching_iterations', niching_iterations),
  ):
    if value < 1:
      raise ValueError(f'{name}: got {value}, want at least 1')
  return EvolutionState(
    space, budget_epochs, epochs_per_evaluation, niching_rate, niching_iterations
  )


def ask(key: jax.Array, state: EvolutionState) -> Genotype:
  """Returns the next genotype to evaluate, from a key that is not reused.

  It is an initial network until one could be evaluated, then a mutant of `state.parent`
  that has not been evaluated before.
  """
  if state.parent is None:
    return genotype_lib.random_genotype(key, state.space)
  return mutation.mutate(key, state.parent.genotype, state.space, state.history)


def tell(
  key: jax.Array, state: EvolutionState, child: Genotype, fitness: float | None
) -> EvolutionState:
  """Returns the state after an evaluation, from a key that is not reused.

  Args:
    state: The state that `ask` was called with.
    child: The genotype that `ask` returned.
    fitness: Its validation accuracy; None if it could not be evaluated. Such a child
      is never a parent, nor the start of a niche.
  """
  parent, niche, preference = state.parent, state.niche, state.preference.told(fitness)
  individual = None
  if fitness is not None:
    individual = Individual(child, fitness, state.num_evaluations)
  # Strictly: an equally fit child does not replace its parent.
  better = individual and (parent is None or preference.prefers(individual, parent))
  follows = genotype_lib.generator(key).random() < state.niching_rate

  if better:
    parent = individual
  if niche is None:
    if individual and not better and follows:
      assert parent is not None  # Otherwise the child is better.
      niche = Niche(origin=parent, iterations_left=state.niching_iterations)
      parent = individual
  else:
    assert parent is not None
    niche = dataclasses.replace(niche, iterations_left=niche.iterations_left - 1)
    # The recursion returns its best network, which has to be fitter than the origin.
    if niche.iterations_left == 0:
      parent = parent if preference.prefers(parent, niche.origin) else niche.origin
      niche = None

  return dataclasses.replace(
    state,
    parent=parent,
    niche=niche,
    history=state.history | {child},
    num_evaluations=state.num_evaluations + 1,
    epochs_used=state.epochs_used + state.epochs_per_evaluation,
    preference=preference,
  )
