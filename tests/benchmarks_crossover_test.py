"""The experiment on crossover: its paired births, and what its tables say of them."""

import json

import jax
import numpy as np
import pytest
import scipy.stats

from benchmarks import crossover_births, crossover_states, crossover_tables
from benchmarks.results_cells import RESULTS
from lamarck_jax import crossover
from lamarck_jax.crossover import Cut
from lamarck_jax.evolution import Individual
from lamarck_jax.genotype import Genotype, SearchSpace
from lamarck_jax.population import Offspring

_SPACE = SearchSpace(filters=(6, 8, 12))


@pytest.fixture(scope='module')
def trainer():
  return crossover_births.make_trainer(tiny=True)


@pytest.fixture(scope='module')
def births(tmp_path_factory, trainer):
  """Three states of tiny searches, from a run that was killed while writing."""
  out = tmp_path_factory.mktemp('births') / 'births.jsonl'
  crossover_births.run(out, 1, trainer, tiny=True)
  first = out.read_bytes()
  out.write_bytes(first + b'{"seed": 1, "gener')
  crossover_births.run(out, 3, trainer, tiny=True)
  assert out.read_bytes().startswith(first)
  return out


@pytest.mark.slow
def test_interrupted_births_are_those_of_one_run(births, tmp_path, trainer):
  out = tmp_path / 'births.jsonl'
  crossover_births.run(out, 3, trainer, tiny=True)
  assert out.read_bytes() == births.read_bytes()


@pytest.mark.slow
def test_arms_of_a_state_differ_as_they_should(births):
  for index, record in enumerate(crossover_births.read(births)):
    arms = record['arms']
    assert list(arms) == list(crossover_births.ARMS)
    stitched = arms['stitched']
    assert stitched['genotype'] == arms['leaf_rule']['genotype']
    assert stitched['genotype'] == arms['fresh']['genotype']
    assert arms['mutant']['genotype'] == arms['mutant_net2net']['genotype']
    assert stitched['r2'] <= 1 + 1e-5
    assert arms['fresh']['r2'] is None
    assert all(len(arm['accuracies']) == 2 for arm in arms.values() if arm)
    assert stitched['losses'] != arms['fresh']['losses']
    first, second = record['parents']
    assert record['distance'] >= 1
    assert first != second
    assert ('completions' in record) == (index % 5 == 0)
  completed = crossover_births.read(births)[0]['completions']
  assert list(completed) == list(crossover_births.COMPLETED)


def test_relatives_are_as_far_apart_as_the_steps_by_their_nearest_ancestor():
  parents = {0: (), 1: (0,), 2: (1,), 3: (1,), 4: (2, 0), 5: (3,)}
  assert crossover_states.distance(parents, 2, 3) == 2
  assert crossover_states.distance(parents, 1, 2) == 1
  assert crossover_states.distance(parents, 4, 5) == 4  # By 2, 1 and 3, or by 0.
  assert crossover_states.distance(parents, 4, 1) == 2


def test_an_unrelated_mate_is_cut_at_the_same_resolution_and_shares_no_block():
  first = Individual(Genotype.parse('6c3 8c3s2 8c3'), 0.5, 3)
  second = Individual(Genotype.parse('6c3 8c3s2 12c3 6c1'), 0.5, 4)
  child = crossover.child_at(first.genotype, second.genotype, Cut(2, 2))
  related = Offspring(child, (first, second), Cut(2, 2), second)
  too_wide = Individual(Genotype.parse('6c3 8c3'), 0.5, 5)
  mate = Individual(Genotype.parse('8c1s2 6c3 12c3 8c3 12c1s2'), 0.7, 6)
  found = crossover_states.unrelated_child(
    jax.random.key(0), related, [too_wide, mate], _SPACE
  )
  # Two blocks behind the cut, as `second` has.
  assert str(found.genotype) == '6c3 8c3s2 8c3 12c1s2'
  assert found.cut == Cut(2, 3)
  assert not {b.lineage for b in found.parents[1].genotype.blocks} & {
    b.lineage for b in first.genotype.blocks
  }
  args = jax.random.key(0), related, [too_wide], _SPACE
  assert crossover_states.unrelated_child(*args) is None


# ------------------------------------------------------------------------------
# Tables
# ------------------------------------------------------------------------------


@pytest.fixture
def records():
  """24 states of 6 searches, each arm with an accuracy before and after training."""
  rng = np.random.default_rng(0)
  found = []
  for index in range(24):
    end = 0.5 - index / 200
    accuracies = {
      name: [0.1, round(end - rng.normal(0.05, 0.05), 3)]
      for name in crossover_births.ARMS
    }
    accuracies |= {'stitched': [0.4 - index / 100, end], 'fresh': [0.1, end]}
    r2 = {'stitched': 0.9 - index / 50}
    arms = {
      name: {'r2': r2.get(name), 'accuracies': values, 'losses': [1.0]}
      for name, values in accuracies.items()
    }
    if index % 2:
      arms['unrelated'] = None
    ends = {'train': 1.0, 'validation': 0.9, 'test': 0.9}
    better = {**ends, 'test': 0.9 + index / 1000}
    found.append(
      {
        'seed': index // 4,
        'fitness': [0.5, 0.6],
        'distance': index % 3,
        'arms': arms,
        'completions': {'stitched': better, 'leaf_rule': better, 'fresh': ends},
      }
    )
  return found


def cells(table):
  """The cells of a Markdown table, by the first cells of their row."""
  rows = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in table.splitlines()[2:]
  ]
  return {tuple(row[:2]): row[2:] for row in rows}


def test_the_tests_of_births_are_those_of_scipy_with_holm_over_the_planned(records):
  table = cells(crossover_tables.all_differences(records))
  p_values = {}
  for other, n in (('mutant', 24), ('leaf_rule', 24), ('unrelated', 12)):
    less = [
      r['arms']['stitched']['accuracies'][-1] - r['arms'][other]['accuracies'][-1]
      for r in records
      if r['arms'][other]
    ]
    p_values[other] = scipy.stats.wilcoxon(np.round(less, 9)).pvalue
    row = table[other.replace('_', ' '), 'after e epochs']
    assert row[0] == f'{n}'
    assert float(row[1]) == pytest.approx(100 * np.median(less), abs=0.051)
    assert float(row[4]) == pytest.approx(p_values[other], rel=0.5)
  corrected = crossover_tables.holm_p_values(records, -1)
  least = min(p_values, key=p_values.get)
  assert corrected[least] == pytest.approx(4 * p_values[least])
  assert corrected['fresh'] == 1  # All differences are 0.
  assert table['fresh', 'after e epochs'][3:5] == ['0, 24, 0', '1']


def test_losses_are_correlated_with_the_fit_and_searches_are_resampled_whole(records):
  table = cells(crossover_tables.correlations(records))
  assert table['before training', 'R²'][1] == '-1.00 (-1.00 to -1.00)'
  values, seeds = np.array([0.0, 0, 0, 1, 1, 1]), np.array([1, 1, 1, 2, 2, 2])
  assert crossover_tables.mean_interval(values, seeds) == (0, 1)


def test_completions_are_compared_in_pairs_with_those_from_fresh_weights(records):
  table = crossover_tables.completions(records)
  row = cells(table)['stitched', '24']
  assert row[3].startswith('+1.15 ')
  assert row[4] == '23, 1, 0'
  assert cells(table)['fresh', '24'][3:] == ['', '', '']
  assert '| stitched' in crossover_tables.arms(records)


def test_searches_are_tested_two_sided_against_the_first_setting(monkeypatch):
  monkeypatch.setattr(crossover_tables, 'SEARCHES', 'digits')
  table = cells(crossover_tables.searches())
  samples = {}
  for name in ('lamarckian', 'baseline_1', 'baseline_2'):
    samples[name] = [
      max(json.loads(line)['fitness'] for line in path.read_text().splitlines())
      for path in sorted((RESULTS / 'digits' / name).glob('seed*/events.jsonl'))
    ]
    row = table[name.replace('_', ' '), '20']
    assert row[0] == '0'
    mean = float(row[1].partition('±')[0])
    assert mean == pytest.approx(100 * np.mean(samples[name]), abs=0.051)
    if name != 'lamarckian':
      p = scipy.stats.mannwhitneyu(samples['lamarckian'], samples[name]).pvalue
      assert float(row[3]) == pytest.approx(p, rel=0.5)
      assert float(row[4]) in (pytest.approx(p, rel=0.5), pytest.approx(2 * p, rel=0.5))
