"""Tests of `random_search`, alone and as the algorithm of a search."""

import copy
import dataclasses
import itertools

import jax
import pytest
from scipy import stats

from lamarck_jax import config as config_lib
from lamarck_jax import random_search, search
from lamarck_jax.errors import UserError
from lamarck_jax.evolution import Individual
from lamarck_jax.genotype import Genotype, SearchSpace
from lamarck_jax.random_search import RandomSearchState
from tests.conftest import make_tiny_config, read_events, run_until

_SPACE = SearchSpace()


def _init(space: SearchSpace = _SPACE, max_blocks: int = 10) -> RandomSearchState:
  return random_search.init(
    space, budget_epochs=4000, epochs_per_evaluation=4, max_blocks=max_blocks
  )


def _draws(state: RandomSearchState, num_draws: int) -> list[Genotype]:
  keys = jax.random.split(jax.random.key(0), num_draws)
  return [random_search.ask(key, state) for key in keys]


def _states(state: RandomSearchState, fitnesses: list) -> list[RandomSearchState]:
  """Returns the states of a run, first the given one."""
  states = [state]
  for evaluation, fitness in enumerate(fitnesses):
    key = jax.random.fold_in(jax.random.key(0), evaluation)
    child = random_search.ask(key, state)
    state = random_search.tell(key, state, child, fitness)
    states.append(state)
  return states


def _p_of_uniform(values: list, choices: tuple) -> float:
  """Returns the p value of the test that all choices are equally likely."""
  assert set(values) == set(choices)
  return stats.chisquare([values.count(choice) for choice in choices]).pvalue


# ------------------------------------------------------------------------------
# The distribution
# ------------------------------------------------------------------------------


def test_every_network_is_in_the_space_and_no_deeper_than_asked():
  for network in _draws(_init(max_blocks=6), 300):
    assert network in _SPACE
    assert len(network) <= 6


def test_depth_filters_and_kernel_size_are_uniform():
  networks = _draws(_init(max_blocks=6), 1500)
  depths = [len(network) for network in networks]
  assert _p_of_uniform(depths, (1, 2, 3, 4, 5, 6)) > 0.001
  # The history is empty, so nothing was drawn again, and blocks are independent.
  blocks = [block for network in networks for block in network.blocks]
  assert _p_of_uniform([b.filters for b in blocks], _SPACE.filters) > 0.001
  assert _p_of_uniform([b.kernel_size for b in blocks], _SPACE.kernel_sizes) > 0.001


def test_the_number_of_downsampling_blocks_and_their_positions_are_uniform():
  space = SearchSpace(strides=(1, 2, 4))
  networks = [n for n in _draws(_init(space, max_blocks=6), 3000) if len(n) == 6]
  positions = [
    tuple(i for i, block in enumerate(network.blocks) if block.stride > 1)
    for network in networks
  ]
  assert _p_of_uniform([len(p) for p in positions], (0, 1, 2, 3)) > 0.001
  pairs = tuple(itertools.combinations(range(6), 2))
  assert _p_of_uniform([p for p in positions if len(p) == 2], pairs) > 0.001
  strides = [b.stride for n in networks for b in n.blocks if b.stride > 1]
  assert _p_of_uniform(strides, (2, 4)) > 0.001


@pytest.mark.parametrize(
  'space', [SearchSpace(strides=(1,)), SearchSpace(max_downsampling=0)]
)
def test_a_space_without_downsampling_has_stride_one_alone(space):
  for network in _draws(_init(space), 50):
    assert {block.stride for block in network.blocks} == {1}


# ------------------------------------------------------------------------------
# The search
# ------------------------------------------------------------------------------


def test_no_network_is_drawn_twice_even_once_the_space_is_used_up():
  # 2 networks of one block and 4 of two: deeper ones follow.
  space = SearchSpace(filters=(4, 8), kernel_sizes=(3,), strides=(1,))
  state = _states(_init(space, max_blocks=2), [0.5] * 20)[-1]
  assert len(state.history) == 20
  assert sum(len(network) <= 2 for network in state.history) == 6


def test_the_best_is_the_fittest_so_far_the_earliest_among_equals():
  fitnesses = [0.5, 0.2, 0.7, 0.7, None, 0.1]
  states = _states(_init(), fitnesses)
  bests = [state.best.evaluation for state in states[1:] if state.best]
  assert bests == [0, 0, 2, 2, 2, 2]
  assert isinstance(states[-1].best, Individual)
  assert states[-1].best.fitness == 0.7
  assert all(state.parent is None and state.niche is None for state in states)


def test_a_failed_evaluation_is_never_the_best_and_uses_its_epochs():
  state = _states(_init(), [None])[-1]
  assert state.best is None
  assert (state.num_evaluations, state.epochs_used) == (1, 4)
  assert len(state.history) == 1


@pytest.mark.parametrize(('n', 'num_evaluations'), [(512, 128), (10, 3), (3, 1)])
def test_random_search_ends_once_the_budget_is_used(n, num_evaluations):
  state = random_search.init(_SPACE, budget_epochs=n, epochs_per_evaluation=4)
  states = _states(state, [0.5] * num_evaluations)
  assert [state.done for state in states] == [False] * num_evaluations + [True]


def test_what_is_drawn_does_not_depend_on_fitness():
  runs = [_states(_init(), fitnesses) for fitnesses in ([0.1] * 9, [0.9, 0.2, 0.4] * 3)]
  assert runs[0][-1].history == runs[1][-1].history


def test_asking_and_telling_are_pure_and_repeatable():
  state = _states(_init(), [0.3, 0.1])[-1]
  before = copy.deepcopy(state)
  child = random_search.ask(jax.random.key(1), state)
  assert child == random_search.ask(jax.random.key(1), state)
  assert child != random_search.ask(jax.random.key(2), state)
  random_search.tell(jax.random.key(2), state, child, 1.0)
  assert state == before
  with pytest.raises(dataclasses.FrozenInstanceError):
    state.best = None


@pytest.mark.parametrize(
  'name', ['budget_epochs', 'epochs_per_evaluation', 'max_blocks']
)
def test_a_limit_below_one_is_refused_by_its_name(name):
  limits = {'budget_epochs': 8, 'epochs_per_evaluation': 4, name: 0}
  with pytest.raises(ValueError, match=f'^{name}: got 0, want at least 1$'):
    random_search.init(_SPACE, **limits)


# ------------------------------------------------------------------------------
# In a run directory
# ------------------------------------------------------------------------------


@pytest.fixture
def random_config():
  config = make_tiny_config()
  config.update(config_lib.SETTINGS['random_search'])
  config.setting = 'random_search'
  config.random_search.max_blocks = 3
  return config


@pytest.mark.slow
def test_a_random_search_records_roots_and_completes_the_best(
  random_config, undisturbed
):
  workdir, result = undisturbed(random_config)
  events = read_events(workdir)
  assert len(events) == 8
  assert all(
    (event['parent'], event['mutation'], event['niche']) == (None, [], None)
    for event in events
  )
  fitnesses = [event['fitness'] for event in events]
  assert [event['best_fitness'] for event in events] == list(
    itertools.accumulate(fitnesses, max)
  )
  # Accepted: it became the best.
  assert [event['accepted'] for event in events] == [
    fitness > max([-1, *fitnesses[:number]]) for number, fitness in enumerate(fitnesses)
  ]
  assert [checkpoint['epochs'] for checkpoint in result['checkpoints']] == [3, 8]
  for checkpoint in result['checkpoints']:
    assert checkpoint['fitness'] == max(fitnesses[: checkpoint['epochs']])


def test_a_random_search_keeps_the_weights_of_its_checkpoints_alone(
  random_config, tmp_path
):
  random_config.completion.enabled = False
  state = search.initial_state(random_config)

  def check(event):
    nonlocal state
    state = state.tell(Genotype.from_json(event), event['fitness'])
    on_disk = {int(path.stem) for path in (tmp_path / 'run' / 'weights').iterdir()}
    assert on_disk == state.needed
    assert state.living == set()

  search.run(random_config, tmp_path / 'run', check)
  assert len(state.needed) <= 2


@pytest.mark.slow
def test_a_random_search_stopped_after_each_event_ends_the_same(
  random_config, undisturbed, tmp_path
):
  desired_workdir, desired = undisturbed(random_config)
  workdir = tmp_path / 'run'
  for evaluation in range(8):
    run_until(random_config, workdir, evaluation)
  result = search.run(random_config, workdir)
  assert read_events(workdir) == read_events(desired_workdir)
  for checkpoint in (*result['checkpoints'], *desired['checkpoints']):
    checkpoint.pop('seconds', None)
  assert result['checkpoints'] == desired['checkpoints']
  assert result['best'] == desired['best']


def test_another_algorithm_in_the_same_directory_is_refused(random_config, undisturbed):
  workdir, _ = undisturbed(random_config)
  random_config.algorithm = 'one_plus_one'
  with pytest.raises(UserError, match=r'differs in algorithm;'):
    search.run(random_config, workdir)
