"""Tests of `evolution`, among them the one against Algorithm 1 as a recursion."""

from collections.abc import Sequence
import copy
import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest
from scipy import stats

from lamarck_jax import evolution, mutation
from lamarck_jax import genotype as genotype_lib
from lamarck_jax.evolution import EvolutionState, Individual
from lamarck_jax.genotype import Block, Genotype, SearchSpace

_BOUNDED = settings(max_examples=40, deadline=None, derandomize=True)
_SPACE = SearchSpace()


def _ask_key(seed: int, evaluation: int) -> jax.Array:
  return jax.random.fold_in(jax.random.key(seed), 2 * evaluation)


def _tell_key(seed: int, evaluation: int) -> jax.Array:
  return jax.random.fold_in(jax.random.key(seed), 2 * evaluation + 1)


def _init(eta: float, k: int, num_evaluations: int = 100) -> EvolutionState:
  return evolution.init(
    _SPACE,
    budget_epochs=4 * num_evaluations,
    epochs_per_evaluation=4,
    niching_rate=eta,
    niching_iterations=k,
  )


def _states(
  state: EvolutionState, fitnesses: Sequence[float], seed: int = 0
) -> list[EvolutionState]:
  """Returns the states of a run, first the given one, until it is done."""
  states = [state]
  for evaluation, fitness in enumerate(fitnesses):
    if state.done:
      break
    child = evolution.ask(_ask_key(seed, evaluation), state)
    state = evolution.tell(_tell_key(seed, evaluation), state, child, fitness)
    states.append(state)
  return states


def _summary(state: EvolutionState) -> str:
  """Returns the parent's fitness, and in a niche `<origin's>@<iterations left>`."""
  assert state.parent is not None
  if state.niche is None:
    return f'{state.parent.fitness}'
  niche = f'{state.niche.origin.fitness}@{state.niche.iterations_left}'
  return f'{state.parent.fitness} {niche}'


# ------------------------------------------------------------------------------
# Scripted fitnesses
# ------------------------------------------------------------------------------

_SCRIPTS = {
  'without_niching_only_the_fitter_replace_the_parent': (
    (0, 3),
    [(5, '5'), (4, '5'), (5, '5'), (6, '6'), (0, '6'), (7, '7'), (7, '7')],
  ),
  'the_first_network_is_the_parent_however_unfit': ((1, 3), [(0, '0')]),
  'a_fitter_child_opens_no_niche': ((1, 3), [(1, '1'), (2, '2'), (3, '3')]),
  'a_child_as_fit_as_its_parent_opens_a_niche': ((1, 3), [(5, '5'), (5, '5 5@3')]),
  'a_niche_takes_k_iterations_then_the_origin_goes_on': (
    (1, 3),
    [(5, '5'), (2, '2 5@3'), (3, '3 5@2'), (1, '3 5@1'), (4, '5'), (3, '3 5@3')],
  ),
  'a_niche_of_one_iteration': (
    (1, 1),
    [(5, '5'), (2, '2 5@1'), (1, '5'), (4, '4 5@1'), (6, '6'), (7, '7')],
  ),
  'a_fitter_niche_replaces_the_origin_when_it_closes_not_before': (
    (1, 3),
    [(5, '5'), (2, '2 5@3'), (6, '6 5@2'), (1, '6 5@1'), (4, '6'), (7, '7')],
  ),
  'a_niche_as_fit_as_the_origin_does_not_replace_it': (
    (1, 2),
    [(5, '5'), (2, '2 5@2'), (5, '5 5@1'), (1, '5'), (6, '6')],
  ),
  'no_niche_opens_inside_a_niche': (
    (1, 4),
    [(5, '5'), (3, '3 5@4'), (1, '3 5@3'), (2, '3 5@2'), (3, '3 5@1'), (0, '5')],
  ),
  'an_equal_child_replaces_nobody_in_a_niche_either': (
    (1, 2),
    [(5, '5'), (3, '3 5@2'), (3, '3 5@1'), (3, '5')],
  ),
}


@pytest.mark.parametrize('name', _SCRIPTS)
def test_the_state_follows_the_script(name):
  (eta, k), script = _SCRIPTS[name]
  states = _states(_init(eta, k), [fitness for fitness, _ in script])
  assert [_summary(state) for state in states[1:]] == [state for _, state in script]


def test_the_individuals_are_the_very_ones_not_only_as_fit():
  states = _states(_init(1, 2), [5, 2, 5, 1, 4])
  parents = [state.parent.evaluation for state in states[1:] if state.parent]
  # 5; niche 2; as fit as the origin, but not it; the origin again; niche 4.
  assert parents == [0, 1, 2, 0, 4]
  assert states[2].niche is not None
  assert states[2].niche.origin is states[1].parent
  assert states[4].parent is states[1].parent


def test_best_is_the_fittest_so_far_and_the_earlier_among_equals():
  fitnesses = [5, 2, 4, 5, 6, 1, 6, 6, 7, 0]
  states = _states(_init(1, 3), fitnesses)
  assert states[0].best is None
  for num_told, state in enumerate(states[1:], 1):
    told = fitnesses[:num_told]
    assert state.best is not None
    assert state.best.fitness == max(told)
    assert state.best.evaluation == told.index(max(told))


@pytest.mark.parametrize(
  ('fitnesses', 'best'), [([5, 2, 6], 2), ([5, 2, 4], 0), ([5, 2, 5], 0)]
)
def test_the_budget_ends_the_search_inside_a_niche(fitnesses, best):
  state = _states(_init(1, 5, num_evaluations=3), [*fitnesses, 9, 9])[-1]
  assert state.done
  assert state.num_evaluations == 3
  assert state.niche is not None
  assert state.best is not None
  assert state.best.evaluation == best


@pytest.mark.parametrize(
  ('n', 'e', 'num_evaluations'), [(512, 4, 128), (10, 4, 3), (8, 4, 2), (3, 16, 1)]
)
def test_the_search_ends_once_the_budget_is_used(n, e, num_evaluations):
  state = evolution.init(_SPACE, budget_epochs=n, epochs_per_evaluation=e)
  states = [state]
  while not state.done:
    child = Genotype((Block(len(states), 3),))
    state = evolution.tell(_tell_key(0, len(states)), state, child, 0.5)
    states.append(state)
  assert len(states) - 1 == num_evaluations
  assert [state.done for state in states] == [False] * num_evaluations + [True]
  assert [state.epochs_used for state in states] == list(
    range(0, e * num_evaluations + 1, e)
  )


def test_the_defaults_are_the_papers():
  state = evolution.init(_SPACE, budget_epochs=512, epochs_per_evaluation=4)
  assert (state.niching_rate, state.niching_iterations) == (0.1, 5)


def test_niches_open_at_their_rate():
  state = _states(_init(0.3, 5), [0.5])[-1]
  child = evolution.ask(_ask_key(0, 1), state)
  opened = [
    evolution.tell(jax.random.key(seed), state, child, 0.4).niche is not None
    for seed in range(1000)
  ]
  assert stats.binomtest(sum(opened), len(opened), 0.3).pvalue > 0.001


# ------------------------------------------------------------------------------
# Algorithm 1
# ------------------------------------------------------------------------------


class _Algorithm1:
  """Algorithm 1 as the paper has it, line by line, as a recursion.

  Attributes:
    trace: (child, its parent) of every evaluation.
    result: The network that the algorithm returns.
  """

  def __init__(
    self, fitnesses: Sequence[float], eta: float, k: int, n: int, e: int, seed: int
  ):
    self._fitnesses, self._eta, self._k, self._seed = fitnesses, eta, k, seed
    self._n, self._e = n, e
    self.trace: list[tuple[Individual, Individual | None]] = []
    initial = genotype_lib.random_genotype(_ask_key(seed, 0), _SPACE)
    self.result = self._evolve(self._evaluate(initial, None))

  def _budget_used(self) -> bool:
    return self._e * len(self.trace) >= self._n

  def _evaluate(self, genotype: Genotype, parent: Individual | None) -> Individual:
    evaluation = len(self.trace)
    individual = Individual(genotype, self._fitnesses[evaluation], evaluation)
    self.trace.append((individual, parent))
    return individual

  def _mutate(self, a: Individual) -> Genotype:
    history = {individual.genotype for individual, _ in self.trace}
    key = _ask_key(self._seed, len(self.trace))
    return mutation.mutate(key, a.genotype, _SPACE, history)

  def _random(self, evaluation: int) -> float:
    data = jax.random.key_data(_tell_key(self._seed, evaluation))
    return np.random.default_rng(np.asarray(data)).random()

  def _evolve(self, a: Individual, iterations: int | None = None) -> Individual:
    niching = iterations is not None
    while not self._budget_used() and iterations != 0:
      b = self._evaluate(self._mutate(a), a)
      if b.fitness > a.fitness:
        a = b
      elif self._random(b.evaluation) < self._eta and not niching:
        c = self._evolve(b, self._k)
        if c.fitness > a.fitness:
          a = c
      if iterations is not None:
        iterations -= 1
    return a


@_BOUNDED
@given(
  fitnesses=st.lists(st.integers(0, 5), min_size=25, max_size=25),
  eta=st.sampled_from([0, 0.1, 0.5, 1]),
  k=st.integers(1, 6),
  n=st.integers(1, 75),
  e=st.integers(3, 5),
  seed=st.integers(0, 1000),
)
def test_ask_and_tell_are_the_recursion_of_algorithm_1(fitnesses, eta, k, n, e, seed):
  wanted = _Algorithm1(fitnesses, eta, k, n, e, seed)
  state = evolution.init(
    _SPACE,
    budget_epochs=n,
    epochs_per_evaluation=e,
    niching_rate=eta,
    niching_iterations=k,
  )
  for child, parent in wanted.trace:
    assert not state.done
    assert state.parent == parent
    genotype = evolution.ask(_ask_key(seed, child.evaluation), state)
    assert genotype == child.genotype
    key = _tell_key(seed, child.evaluation)
    state = evolution.tell(key, state, genotype, child.fitness)
  assert state.done
  assert state.best == wanted.result
  assert state.num_evaluations == len(wanted.trace)
  assert state.history == {child.genotype for child, _ in wanted.trace}


# ------------------------------------------------------------------------------
# Purity
# ------------------------------------------------------------------------------


def test_asking_and_telling_leave_the_state_as_it_is():
  for state in _states(_init(0.5, 2), [3, 1, 4, 1, 5, 9, 2, 6]):
    before = copy.deepcopy(state)
    child = evolution.ask(jax.random.key(1), state)
    for fitness in (0, 10):
      evolution.tell(jax.random.key(2), state, child, fitness)
    assert state == before
    assert child not in state.history


def test_a_state_cannot_be_changed():
  state = _states(_init(1, 2), [3, 1])[-1]
  for instance, field in (
    (state, 'parent'),
    (state.parent, 'fitness'),
    (state.niche, 'iterations_left'),
  ):
    with pytest.raises(dataclasses.FrozenInstanceError):
      setattr(instance, field, None)
  assert isinstance(state.history, frozenset)


def test_the_same_keys_give_the_same_run_and_others_another():
  fitnesses = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
  runs = [_states(_init(0.5, 2), fitnesses, seed) for seed in (0, 0, 1)]
  assert runs[0] == runs[1]
  assert runs[0] != runs[2]


def test_ask_gives_the_initial_network_first_then_what_nobody_evaluated():
  states = _states(_init(1, 3), list(range(3)) * 10)
  first = states[1].parent
  assert first is not None
  assert len(first.genotype) == 1
  assert first.genotype.blocks[0].stride == 1
  # Every child was new, or the history would be smaller.
  assert [len(state.history) for state in states] == list(range(31))


def test_a_child_that_could_not_be_evaluated_is_no_parent_and_opens_no_niche():
  state = evolution.init(
    _SPACE, budget_epochs=100, epochs_per_evaluation=4, niching_rate=1.0
  )
  first = Genotype.parse('16c3')
  failed_first = evolution.tell(_tell_key(0, 0), state, first, None)
  assert failed_first.parent is None
  assert failed_first.best is None
  assert failed_first.epochs_used == 4
  assert first in failed_first.history

  state = evolution.tell(_tell_key(0, 0), state, first, 0.5)
  after = evolution.tell(_tell_key(0, 0), state, Genotype.parse('32c3'), None)
  assert after.parent == state.parent
  assert after.niche is None
  assert (after.num_evaluations, after.epochs_used) == (2, 8)


def test_a_failure_inside_a_niche_counts_as_one_of_its_iterations():
  state = evolution.init(
    _SPACE,
    budget_epochs=100,
    epochs_per_evaluation=4,
    niching_rate=1.0,
    niching_iterations=2,
  )
  state = evolution.tell(_tell_key(0, 0), state, Genotype.parse('16c3'), 0.5)
  state = evolution.tell(_tell_key(0, 0), state, Genotype.parse('32c3'), 0.4)
  assert state.niche is not None
  state = evolution.tell(_tell_key(0, 0), state, Genotype.parse('32c5'), None)
  assert state.niche is not None
  assert state.niche.iterations_left == 1
  state = evolution.tell(_tell_key(0, 0), state, Genotype.parse('64c5'), None)
  assert state.niche is None
  assert state.parent is not None
  assert state.parent.fitness == 0.5


@pytest.mark.parametrize(
  'name', ['budget_epochs', 'epochs_per_evaluation', 'niching_iterations']
)
def test_a_limit_below_one_is_refused_by_its_name(name):
  limits = {'budget_epochs': 8, 'epochs_per_evaluation': 4, name: 0}
  with pytest.raises(ValueError, match=f'^{name}: got 0, want at least 1$'):
    evolution.init(_SPACE, **limits)
