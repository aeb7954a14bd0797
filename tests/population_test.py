"""Tests of `population`, alone and as the algorithm of a search."""

import copy
import dataclasses
import os
import signal

import jax
import numpy as np
import pytest
import threadpoolctl

from lamarck_jax import (
  evolution,
  initialisation,
  mutation,
  population,
  search,
  trial,
)
from lamarck_jax.genotype import Genotype, SearchSpace
from lamarck_jax.parsimony import Preference
from lamarck_jax.population import Offspring, PopulationState
from lamarck_jax.search_state import initial_state
from tests.conftest import make_tiny_config, read_events, run_until, start_search
from tests.search_test import assert_same_run, without_seconds

_SPACE = SearchSpace()


def _init(**fields) -> PopulationState:
  budget = {'budget_epochs': 400, 'epochs_per_evaluation': 4}
  return population.init(_SPACE, **{**budget, **fields})


def _generation_key(seed: int, state: PopulationState) -> jax.Array:
  return jax.random.fold_in(jax.random.key(seed), state.generation)


def _fitness(genotype: Genotype) -> float:
  """Depends on the architecture alone, so the order of calls does not matter."""
  return np.random.default_rng(list(str(genotype).encode())).random()


def _run(seed: int, state: PopulationState, count: int, fitnesses=None) -> list:
  """Returns pairs of a state and the child told to it; the last one has none."""
  told = []
  for index in range(count):
    child = population.ask(_generation_key(seed, state), state)[0]
    told.append((state, child))
    fitness = fitnesses[index] if fitnesses else _fitness(child.genotype)
    state = population.tell(jax.random.key(0), state, child.genotype, fitness)
  return [*told, (state, None)]


# ------------------------------------------------------------------------------
# Selection
# ------------------------------------------------------------------------------


def test_one_plus_one_without_niching_is_the_evolution_of_the_paper():
  state = _init(budget_epochs=160, size=1, children=1, crossover_rate=0.9)
  paper = evolution.init(
    _SPACE, budget_epochs=160, epochs_per_evaluation=4, niching_rate=0.0
  )
  rng = np.random.default_rng(0)
  while not paper.done:
    key = _generation_key(3, state)
    (child,) = population.ask(key, state)
    mutation_key = jax.random.split(jax.random.fold_in(key, 0), 3)[2]
    assert child.genotype == evolution.ask(mutation_key, paper)
    assert child.parents == (() if paper.parent is None else (paper.parent,))
    fitness = None if rng.random() < 0.2 else float(rng.integers(9)) / 10
    paper = evolution.tell(jax.random.key(0), paper, child.genotype, fitness)
    state = population.tell(jax.random.key(0), state, child.genotype, fitness)
    assert state.survivors == (() if paper.parent is None else (paper.parent,))
    assert (state.best, state.history) == (paper.best, paper.history)
  assert state.done


def test_a_generation_keeps_the_best_of_parents_and_children():
  fitnesses = [0.5, 0.2, 0.3, 0.6, 0.1, 0.7, 0.3, 0.5, 0.9, None, 0.6]
  states = [
    state for state, _ in _run(0, _init(size=3, children=3), len(fitnesses), fitnesses)
  ]
  generations = [state for state in states if state.told == 0]
  found = [[(i.evaluation, i.fitness) for i in s.parents] for s in generations]
  assert found == [
    [],
    [(0, 0.5)],
    [(0, 0.5), (2, 0.3), (3, 0.6)],  # 0.2 gave way to 0.6.
    [(0, 0.5), (3, 0.6), (5, 0.7)],
    [(3, 0.6), (5, 0.7), (8, 0.9)],  # An equal one does not replace; 0.9 does.
  ]


def test_a_place_is_taken_by_strict_improvement_from_the_latest_of_the_worst():
  states = _run(0, _init(size=2, children=2), 5, [0.4, 0.4, 0.4, 0.4, 0.5])
  assert [i.evaluation for i in states[-1][0].survivors] == [0, 4]


def test_the_oldest_gives_way_to_every_child():
  fitnesses = [0.9, 0.2, 0.1, 0.3, None]
  state = _run(0, _init(size=2, children=2, replacement='oldest'), 5, fitnesses)[-1][0]
  assert [i.evaluation for i in state.survivors] == [2, 3]
  assert state.best.fitness == 0.9


def test_a_first_network_that_fails_is_drawn_again():
  states = _run(0, _init(), 4, [None, None, 0.5, 0.4])
  assert [child.parents for _, child in states[:3]] == [(), (), ()]
  assert states[3][1].parents == (states[3][0].best,)


@pytest.mark.parametrize(('tournament', 'share'), [(1, 0.25), (2, 7 / 16)])
def test_a_parent_is_the_fittest_of_the_tournament(tournament, share):
  state = _run(1, _init(size=4, tournament=tournament), 5, [0.4, 0.1, 0.2, 0.3, 0.1])
  state = dataclasses.replace(state[-1][0], children=1, crossover_rate=0.0)
  firsts = [
    population.ask(jax.random.key(i), state)[0].parents[0].evaluation
    for i in range(400)
  ]
  assert np.mean(np.array(firsts) == 0) == pytest.approx(share, abs=0.08)


def test_complementary_mates_are_drawn_by_what_they_know_and_the_first_does_not():
  state = _init(size=4, tournament=16, crossover_rate=1.0, mate='complementary')
  # The first one is the fittest; the others know 0, 1 and 3 examples that it does not.
  known = ['f000', 'c000', 'f010', '0007']
  for index, (fitness, correct) in enumerate(zip([0.9, 0.5, 0.5, 0.5], known)):
    genotype = Genotype.parse(f'{[16, 32, 64, 96][index]}c3')
    state = population.tell(jax.random.key(0), state, genotype, fitness, correct)
  state = dataclasses.replace(
    state, parents=state.survivors, told=0, children=1, generation=2
  )
  assert state.correct == dict(enumerate(known))
  mates = [
    population.ask(jax.random.key(i), state)[0].mate.evaluation for i in range(400)
  ]
  assert 1 not in mates
  assert np.mean(np.array(mates) == 3) == pytest.approx(3 / 4, abs=0.07)
  # Where no other one knows more, it is drawn by tournament.
  state = dataclasses.replace(state, correct={**state.correct, 0: 'ffff'})
  mates = {
    population.ask(jax.random.key(i), state)[0].mate.evaluation for i in range(40)
  }
  assert mates == {1}  # The earliest of equally fit ones.


# ------------------------------------------------------------------------------
# Children
# ------------------------------------------------------------------------------


@pytest.fixture(scope='module', params=[0.0, 1.0, 2.0])
def long_run(request):
  state = _init(size=6, children=5, crossover_rate=0.8)
  preference = Preference(request.param, examples=300.0)
  return _run(2, dataclasses.replace(state, preference=preference), 90)


def test_the_children_of_a_generation_do_not_depend_on_one_anothers_fitness(long_run):
  asked: tuple[Offspring, ...] = ()
  for state, child in long_run[:-1]:
    remaining = population.ask(_generation_key(2, state), state)
    if state.told == 0:
      asked = remaining
      assert len(asked) == (5 if state.parents else 1)
    assert remaining == asked[state.told :]
    assert child == remaining[0]


def test_every_child_is_new_and_within_the_space(long_run):
  genotypes = [child.genotype for _, child in long_run[:-1]]
  assert len(set(genotypes)) == len(genotypes)
  assert all(genotype in _SPACE for genotype in genotypes)


def test_a_child_has_two_parents_or_is_a_mutant_that_names_the_mate(long_run):
  children = [child for _, child in long_run[:-1]]
  crossed = [child for child in children if len(child.parents) == 2]
  assert len(crossed) > 3
  for state, child in long_run[1:-1]:
    assert set(child.parents) <= set(state.parents)
    assert child.mate is None or child.mate in state.parents
    if child in crossed:
      first, second = child.parents
      assert first != second == child.mate
      assert child.operators == ['crossover']
    else:
      assert child.cut is None
      names = mutation.describe(child.parents[0].genotype, child.genotype)
      assert child.operators == names != []
  assert any(child.mate and len(child.parents) == 1 for child in children)
  without = _run(2, _init(size=6, children=5, crossover_rate=0.0), 30)
  assert all(child.mate is None for _, child in without[:-1])


def test_the_budget_ends_a_generation():
  state = _run(0, _init(budget_epochs=22, children=4), 5)[-1][0]
  assert not state.done
  assert (state.told, len(population.ask(jax.random.key(0), state))) == (0, 1)
  state = _run(0, state, 1)[-1][0]
  assert state.done
  assert population.ask(jax.random.key(0), state) == ()


def test_asking_and_telling_are_pure_and_repeatable(long_run):
  state = long_run[40][0]
  before = copy.deepcopy(state)
  children = population.ask(jax.random.key(1), state)
  assert children == population.ask(jax.random.key(1), state)
  assert children != population.ask(jax.random.key(2), state)
  population.tell(jax.random.key(2), state, children[0].genotype, 1.0)
  assert state == before
  with pytest.raises(dataclasses.FrozenInstanceError):
    state.best = None


@pytest.mark.parametrize(
  'name',
  ['budget_epochs', 'epochs_per_evaluation', 'size', 'children', 'tournament'],
)
def test_a_number_below_one_is_refused_by_its_name(name):
  with pytest.raises(ValueError, match=f'^{name}: got 0, want at least 1$'):
    _init(**{name: 0})
  with pytest.raises(ValueError, match=r"^replacement: got 'best', want one of"):
    _init(replacement='best')
  with pytest.raises(ValueError, match=r"^mate: got 'any', want one of"):
    _init(mate='any')


# ------------------------------------------------------------------------------
# In a run directory
# ------------------------------------------------------------------------------


@pytest.fixture
def population_config():
  config = make_tiny_config()
  config.algorithm = 'population'
  config.budget_epochs = 10
  config.population.size = 6
  config.population.children = 3
  config.population.crossover_rate = 1.0
  # With this seed two of the first seven children have two parents, whatever the
  # fitnesses: all parents are equally likely until the population is full.
  config.population.tournament = 1
  with config.unlocked():
    config.seed = 22
  config.completion.enabled = False
  config.checkpoint_epochs = (6,)
  return config


def test_a_population_records_generations_parents_and_crossovers(
  population_config, undisturbed
):
  workdir, _ = undisturbed(population_config)
  events = read_events(workdir)
  assert [event['generation'] for event in events] == [0, *sorted([1, 2, 3] * 3)]
  state, crossed = initial_state(population_config), 0
  for event in events:
    (child, *_) = state.ask()
    assert [p.evaluation for p in child.parents] == event['parents']
    assert event['parent'] == (event['parents'] or [None])[0]
    assert Genotype.from_json(event) == child.genotype
    assert event['accepted'] == state.accepts(child.genotype, event['fitness'])
    if len(event['parents']) == 2:
      crossed += 1
      assert event['mutation'] == ['crossover']
      assert event['crossover']['mate'] == event['parents'][1]
      assert event['crossover']['cut'] == list(child.cut)
      assert event['crossover']['r2'] <= 1
    elif event['crossover']:
      assert event['crossover']['cut'] is event['crossover']['r2'] is None
    state = state.tell(Genotype.from_json(event), event['fitness'])
  assert crossed > 1


@pytest.mark.parametrize('algorithm', ['one_plus_one', 'population', 'random_search'])
def test_a_number_names_one_block_of_the_whole_run(population_config, algorithm):
  population_config.algorithm = algorithm
  population_config.budget_epochs = 40
  state, born = initial_state(population_config), {}
  rng = np.random.default_rng(0)
  while not state.evolution.done:
    child = state.ask()[0]
    inherited = {b.lineage for p in child.parents for b in p.genotype.blocks}
    for block in child.genotype.blocks:
      assert block.lineage in inherited or block.lineage not in born
      born.setdefault(block.lineage, child)
    state = state.tell(child.genotype, rng.random())
    assert state.next_lineage == max(born) + 1


def test_numbers_go_on_behind_all_events_of_an_older_run(population_config):
  """There, siblings could give one number to different blocks."""
  state = initial_state(population_config)
  for text in ('4c1', '4c1 8c1', '8c3 4c1'):
    state = state.tell(Genotype.parse(text), 0.5)
  assert state.next_lineage == 2
  while not state.evolution.done:
    child = state.ask()[0]
    known = {b.lineage for p in child.parents for b in p.genotype.blocks}
    new = {block.lineage for block in child.genotype.blocks} - known
    assert all(lineage >= state.next_lineage for lineage in new)
    state = state.tell(child.genotype, 0.5)


def test_all_children_of_a_generation_are_asked_for_with_their_numbers(
  population_config,
):
  state = initial_state(population_config)
  asked: tuple[Offspring, ...] = ()
  while not state.evolution.done:
    offspring = state.ask()
    if state.evolution.told == 0:
      asked = offspring
    expected = asked[state.evolution.told :]
    assert [_lineages(child) for child in offspring] == [*map(_lineages, expected)]
    child = offspring[0].genotype
    state = state.tell(child, _fitness(child))


def _lineages(child: Offspring) -> list:
  return [(str(block), block.lineage) for block in child.genotype.blocks]


@pytest.mark.parametrize(
  'stop_after',
  [5, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 4, 6, 9))],
)
def test_a_population_resumed_after_any_event_is_the_uninterrupted_one(
  population_config, undisturbed, tmp_path, stop_after
):
  workdir, result = undisturbed(population_config)
  run_until(population_config, tmp_path / 'run', stop_after - 1)
  resumed = search.run(population_config, tmp_path / 'run')
  assert_same_run(workdir, tmp_path / 'run')
  assert without_seconds(resumed) == without_seconds(result)


def test_the_weights_of_all_individuals_stay_on_disk(population_config, tmp_path):
  population_config.budget_epochs = 6
  population_config.population.size = 2
  state = initial_state(population_config)

  def check(event):
    nonlocal state
    state = state.tell(Genotype.from_json(event), event['fitness'])
    on_disk = {int(path.stem) for path in (tmp_path / 'run' / 'weights').iterdir()}
    assert on_disk == state.needed
    living = {*state.evolution.parents, *state.evolution.survivors}
    assert state.living == {individual.evaluation for individual in living}

  search.run(population_config, tmp_path / 'run', check)


def test_complementary_mates_follow_from_the_events_and_resume(
  population_config, tmp_path
):
  population_config.population.mate = 'complementary'
  population_config.budget_epochs = 8
  search.run(population_config, tmp_path / 'whole')
  state, mates = initial_state(population_config), []
  for event in read_events(tmp_path / 'whole'):
    (child, *_) = state.ask()
    assert Genotype.from_json(event) == child.genotype
    mates.append(child.mate and child.mate.evaluation)
    assert mates[-1] == (event['crossover'] and event['crossover']['mate'])
    bits = int(event['correct'], 16).bit_count()
    assert bits / 50 == pytest.approx(event['fitness'])
    assert set(state.evolution.correct) == state.living
    state = state.tell(child.genotype, event['fitness'], event['correct'])
  assert any(mate is not None for mate in mates)
  run_until(population_config, tmp_path / 'resumed', 5)
  search.run(population_config, tmp_path / 'resumed')
  assert_same_run(tmp_path / 'whole', tmp_path / 'resumed')


@pytest.mark.parametrize('mode', ['leaf_rule', 'none'])
def test_the_controls_have_no_fit_at_the_seam(population_config, tmp_path, mode):
  population_config.population.crossover_inheritance = mode
  population_config.budget_epochs = 5
  search.run(population_config, tmp_path / 'run')
  crossed = [
    event['crossover']
    for event in read_events(tmp_path / 'run')
    if len(event['parents']) == 2
  ]
  assert crossed
  assert all(crossover['r2'] is None for crossover in crossed)


@pytest.mark.slow
def test_a_killed_population_resumes(shared_compilation_cache, tmp_path):
  flags = (
    '--config.algorithm=population',
    '--config.population.size=4',
    '--config.population.children=3',
    '--config.population.crossover_rate=1.0',
    '--config.budget_epochs=30',
  )
  for killed_after in (2, 5, 8):
    process = start_search(
      shared_compilation_cache, tmp_path / 'killed', killed_after, *flags
    )
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
  for workdir in ('killed', 'whole'):
    process = start_search(shared_compilation_cache, tmp_path / workdir, 30, *flags)
    assert process.wait(300) == 0, process.communicate()
  assert read_events(tmp_path / 'killed') == read_events(tmp_path / 'whole')


@pytest.mark.parametrize('cores_per_child', [1, 2])
def test_blas_has_a_childs_number_of_threads_whatever_the_process_has(
  population_config, tiny_dataset, monkeypatch, cores_per_child
):
  libraries = threadpoolctl.ThreadpoolController().select(user_api='blas')
  if not libraries.info():
    pytest.skip('No BLAS whose threads can be set.')
  population_config.population.cores_per_child = cores_per_child
  found = []

  def initial_variables(*_):
    found.extend(library['num_threads'] for library in libraries.info())
    raise np.linalg.LinAlgError('enough')

  monkeypatch.setattr(initialisation, 'initial_variables', initial_variables)
  trainer = trial.make_trainer(population_config, tiny_dataset)
  candidate = trial.Candidate(0, Offspring(Genotype.parse('4c1')))
  with libraries.limit(limits=3):
    outcome = trial.evaluate(population_config, trainer, candidate, lambda: None)
    after = {library['num_threads'] for library in libraries.info()}
  assert outcome.failure == 'enough'
  assert set(found) == {cores_per_child}
  assert after == {3}
