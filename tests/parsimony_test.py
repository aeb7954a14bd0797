"""Of networks about as fit as the best, the smallest is selected."""

import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from lamarck_jax import export, parsimony, search, search_state
from lamarck_jax.evolution import Individual
from lamarck_jax.genotype import Genotype
from lamarck_jax.model import num_parameters
from lamarck_jax.parsimony import FITTER, Preference
from tests import conftest

_BOUNDED = settings(max_examples=8, deadline=None, derandomize=True)
_SMALL, _LARGE = Genotype.parse('4c1'), Genotype.parse('8c3 8c3')


def network(genotype, fitness):
  return Individual(genotype, fitness, 0)


def preference(standard_errors, best, examples=400):
  return Preference(standard_errors, examples, 1, 10).told(best)


@pytest.mark.parametrize(
  ('small', 'large', 'standard_errors', 'small_wins'),
  [
    # The best is 0.8, of 400 examples: a standard error is 0.02.
    (0.79, 0.80, 1, True),
    (0.7801, 0.80, 1, True),
    (0.7799, 0.80, 1, False),
    (0.79, 0.80, 0, False),
    (0.80, 0.80, 1, True),
    (0.80, 0.80, 0, False),
    (0.77, 0.80, 2, True),
    # About as fit as each other, but neither as the best.
    (0.70, 0.701, 1, False),
    (0.701, 0.70, 1, True),
  ],
)
def test_the_smaller_wins_where_both_are_about_as_fit_as_the_best(
  small, large, standard_errors, small_wins
):
  order = preference(standard_errors, 0.8)
  assert order.prefers(network(_SMALL, small), network(_LARGE, large)) == small_wins


def test_of_equal_sizes_the_fitter_wins_and_no_network_beats_its_equal():
  order = preference(1, 0.8)
  wider = Genotype.parse('4c1s2')  # A stride takes no parameters.
  assert order.prefers(network(wider, 0.80), network(_SMALL, 0.79))
  assert not order.prefers(network(wider, 0.79), network(_SMALL, 0.80))
  assert not order.prefers(network(wider, 0.79), network(_SMALL, 0.79))


def test_without_parsimony_the_order_is_that_of_fitness():
  fitnesses = [0.0, 0.3, 0.3, 0.9, 1.0, -1.0, 2.0]
  order = FITTER.told(0.9)
  for x in fitnesses:
    for y in fitnesses:
      assert order.prefers(network(_SMALL, x), network(_LARGE, y)) == (x > y)


def test_networks_that_each_are_about_as_fit_as_the_last_cannot_drift_down():
  order = preference(1, 0.8)
  parent = network(Genotype.parse('16c3 16c3'), 0.8)
  for step, filters in enumerate(range(15, 1, -1), start=1):
    child = network(Genotype.parse(f'{filters}c3 16c3'), 0.8 - 0.005 * step)
    if order.prefers(child, parent):
      parent = child
  assert parent.fitness == pytest.approx(0.78)


@pytest.mark.parametrize('algorithm', ['one_plus_one', 'population', 'random_search'])
@_BOUNDED
@given(
  seed=st.integers(0, 99),
  fitnesses=st.lists(
    st.one_of(st.none(), st.floats(0.6, 0.9)), min_size=12, max_size=12
  ),
)
def test_the_best_is_always_about_as_fit_as_the_fittest(algorithm, seed, fitnesses):
  config = conftest.make_tiny_config()
  config.update({'seed': seed, 'algorithm': algorithm, 'budget_epochs': 12})
  state = search_state.initial_state(config, Preference(1.5, 200, 1, 10))
  best = 0.0
  for fitness in fitnesses:
    child = state.ask()[0].genotype
    accepted = state.accepts(child, fitness)
    state = state.tell(child, fitness)
    best = max(best, fitness or 0.0)
    if not best:
      continue
    selected = state.evolution.best
    least = best - 1.5 * math.sqrt(best * (1 - best) / 200)
    assert selected.fitness >= least
    if selected.evaluation == state.evolution.num_evaluations - 1:
      assert accepted


def test_a_standard_error_is_that_of_the_measure():
  assert parsimony.effective_examples('accuracy', [30, 0, 10]) == 40
  assert parsimony.effective_examples('balanced_accuracy', [20, 20]) == 40
  counts, accuracy = np.array([50, 10, 5]), 0.7
  examples = parsimony.effective_examples('balanced_accuracy', [*counts, 0])
  rng = np.random.default_rng(0)
  measured = (rng.binomial(counts, accuracy, (20_000, 3)) / counts).mean(axis=1)
  want = math.sqrt(accuracy * (1 - accuracy) / examples)
  assert measured.std() == pytest.approx(want, rel=0.02)


# ------------------------------------------------------------------------------
# In a search
# ------------------------------------------------------------------------------


def parsimonious_config():
  config = conftest.make_tiny_config()
  config.parsimony, config.checkpoint_epochs = 2.0, ()
  config.learning_rate, config.completion.enabled = 0.01, False
  return config


def test_a_search_selects_smaller_networks_and_says_so(undisturbed, tmp_path):
  config = parsimonious_config()
  workdir, result = undisturbed(config)
  events = conftest.read_events(workdir)
  fittest = max(events, key=lambda event: event['fitness'])
  selected = events[result['best']['evaluation']]
  assert selected['fitness'] < fittest['fitness']
  sizes = [
    num_parameters(Genotype.from_json(event), 1, 10) for event in (selected, fittest)
  ]
  assert sizes[0] < sizes[1]
  assert events[-1]['best'] == selected['evaluation']
  export.export(workdir, tmp_path / 'out')
  description = json.loads((tmp_path / 'out' / 'network.json').read_text())
  assert description['parsimony'] == 2.0
  assert description['evaluation'] == selected['evaluation']


def test_a_parsimonious_search_resumes_to_the_same_end(undisturbed, tmp_path):
  config = parsimonious_config()
  conftest.run_until(config, tmp_path / 'run', 4)
  search.run(config, tmp_path / 'run')
  want = conftest.read_events(undisturbed(config)[0])
  assert conftest.read_events(tmp_path / 'run') == want


def test_by_default_events_have_no_field_more(undisturbed, tiny_config):
  assert 'best' not in conftest.read_events(undisturbed(tiny_config)[0])[0]
