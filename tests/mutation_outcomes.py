"""What `mutation` should draw, derived by enumeration from Section 3.2 of the paper.

Architectures are plain tuples here, so that nothing of the package is presupposed.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from fractions import Fraction
import functools
from typing import Any

import jax
from scipy import stats

from lamarck_jax import mutation
from lamarck_jax.genotype import Genotype, SearchSpace

SPACE = SearchSpace()

# Every operator is recognisable and has draws that are rejected: the ends of F,
# present kernel sizes and strides, three blocks of stride two.
PARENT = Genotype.parse('16c1 256c3s2 64c5 96c3s2 16c3 128c1s2 256c5')

# Blocks of stride two all, so that a new block is seen wherever it is.
DOWNSAMPLING = Genotype.parse('16c3s2 64c5s2 256c1s2')

Architecture = tuple[tuple[int, int, int], ...]
Distribution = dict[Any, Fraction]


def architecture(genotype: Genotype) -> Architecture:
  return tuple((b.filters, b.kernel_size, b.stride) for b in genotype.blocks)


def outcomes(parent: Architecture, space: SearchSpace) -> dict[str, Distribution]:
  """Returns the probabilities of every operator's outcomes, by enumeration.

  What is missing to one is the probability that the operator cannot apply.
  """
  n = len(parent)
  outcomes: dict[str, Distribution] = {
    name: defaultdict(Fraction) for name in FREQUENCIES
  }

  def replaced(position: int, filters: int, kernel: int, stride: int) -> Architecture:
    block = (filters, kernel, stride)
    return (*parent[:position], block, *parent[position + 1 :])

  num_new = (n + 1) * len(space.filters) * len(space.kernel_sizes)
  for position in range(n + 1):
    for filters in space.filters:
      for kernel_size in space.kernel_sizes:
        block = (filters, kernel_size, 1)
        child = (*parent[:position], block, *parent[position:])
        outcomes['add_block'][child] += Fraction(1, num_new)
  for position, (filters, kernel_size, stride) in enumerate(parent):
    if n > 1:
      child = parent[:position] + parent[position + 1 :]
      outcomes['remove_block'][child] += Fraction(1, n)
    rank = space.filters.index(filters)
    if rank + 1 < len(space.filters):
      child = replaced(position, space.filters[rank + 1], kernel_size, stride)
      outcomes['add_filters'][child] += Fraction(1, n)
    if rank > 0:
      child = replaced(position, space.filters[rank - 1], kernel_size, stride)
      outcomes['remove_filters'][child] += Fraction(1, n)
    for value in space.kernel_sizes:
      child = replaced(position, filters, value, stride)
      probability = Fraction(1, n * len(space.kernel_sizes))
      outcomes['change_kernel_size'][child] += probability
    for value in space.strides:
      child = replaced(position, filters, kernel_size, value)
      if sum(block[2] > 1 for block in child) <= space.max_downsampling:
        outcomes['change_stride'][child] += Fraction(1, n * len(space.strides))
  return outcomes


# Section 3.2.
FREQUENCIES = {
  'add_block': 3,
  'remove_block': 3,
  'add_filters': 2,
  'remove_filters': 2,
  'change_kernel_size': 2,
  'change_stride': 1,
}


def neighbourhood(
  parent: Architecture,
  space: SearchSpace,
  history: Collection[Architecture] = (),
) -> dict[tuple[str, Architecture], Fraction]:
  """Returns the probabilities of the (operator, child) that `mutate` may return."""
  weights = {
    (name, child): FREQUENCIES[name] * probability
    for name, outcomes in outcomes(parent, space).items()
    for child, probability in outcomes.items()
    if child != parent and child not in history
  }
  total = sum(weights.values(), Fraction())
  return {outcome: weight / total for outcome, weight in weights.items()}


def operator_between(parent: Architecture, child: Architecture) -> str:
  """Names the operator that leads from a parent to a child, one step away."""
  if len(child) != len(parent):
    return 'add_block' if len(child) > len(parent) else 'remove_block'
  changed = [
    (property_, new > old)
    for before, after in zip(parent, child)
    for property_, old, new in zip(('filters', 'kernel', 'stride'), before, after)
    if old != new
  ]
  assert len(changed) == 1
  property_, grown = changed[0]
  if property_ == 'filters':
    return 'add_filters' if grown else 'remove_filters'
  return {'kernel': 'change_kernel_size', 'stride': 'change_stride'}[property_]


@functools.cache
def keys(num_keys: int) -> list[jax.Array]:
  return [jax.random.key(seed) for seed in range(num_keys)]


@functools.cache
def draws(
  operator: mutation.Operator, parent: Genotype, num_draws: int
) -> list[Genotype | None]:
  """Returns what an operator makes of a parent for many keys."""
  children: list[Genotype | None] = []
  for key in keys(num_draws):
    try:
      children.append(operator(key, parent, SPACE))
    except mutation.NotApplicable:
      children.append(None)
  return children


@functools.cache
def mutants(num_draws: int) -> list[Genotype]:
  return [mutation.mutate(key, PARENT, SPACE) for key in keys(num_draws)]


def assert_distributed(counts: Counter, probabilities: Mapping) -> None:
  """Checks by chi-square that counts come from a distribution."""
  num_draws = sum(counts.values())
  assert set(counts) <= set(probabilities), 'drew the impossible'
  observed: list[int] = []
  expected: list[float] = []
  rare_observed, rare_expected = 0, 0.0
  for outcome, probability in probabilities.items():
    if num_draws * probability < 5:
      rare_observed += counts[outcome]
      rare_expected += float(num_draws * probability)
    else:
      observed.append(counts[outcome])
      expected.append(float(num_draws * probability))
  if rare_expected:
    observed.append(rare_observed)
    expected.append(rare_expected)
  assert len(observed) > 1
  assert stats.chisquare(observed, expected).pvalue > 0.001


def text_of(architecture: Architecture) -> str:
  return ' '.join(f'{f}c{k}s{s}' for f, k, s in architecture)
