"""Which of two networks is selected: the fitter, or the smaller of two about as fit.

With `config.parsimony` k above 0, networks count as equally fit if their fitness is at
most k standard errors below the best fitness so far, and among these the one with the
fewest parameters is preferred. It is the one-standard-error rule of Breiman et al.,
"Classification and Regression Trees" (1984), applied at every comparison.

The best fitness so far is the reference, and not the other network: if each network had
only to be about as fit as the one before it, fitness could fall a little each time,
without end. So what is selected is never more than k standard errors below the best.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Protocol

from lamarck_jax import model
from lamarck_jax.genotype import Genotype


class Evaluated(Protocol):
  """A network with its fitness, such as `evolution.Individual`."""

  @property
  def genotype(self) -> Genotype:
    """Its architecture."""

  @property
  def fitness(self) -> float:
    """Its fitness, from 0 to 1."""


@dataclasses.dataclass(frozen=True)
class Preference:
  """An order of networks, which changes as the best fitness rises; immutable.

  Attributes:
    standard_errors: k; 0: the fitter is preferred, however large it is.
    examples: The number of validation examples, see `effective_examples`.
    channels: Image channels, on which the number of parameters depends.
    num_classes: Number of classes, likewise.
    best_fitness: The best fitness so far.
  """

  standard_errors: float = 0.0
  examples: float = 1.0
  channels: int = 1
  num_classes: int = 1
  best_fitness: float = 0.0

  def told(self, fitness: float | None) -> 'Preference':
    """Returns the order after an evaluation; None: it failed."""
    if fitness is None or fitness <= self.best_fitness:
      return self
    return dataclasses.replace(self, best_fitness=fitness)

  @property
  def least_fitness(self) -> float:
    """The fitness from which on networks count as equally fit.

    The standard error is that of a share of independent examples, the best fitness.
    """
    best = min(self.best_fitness, 1.0)
    error = math.sqrt(best * (1 - best) / self.examples)
    return self.best_fitness - self.standard_errors * error

  def key(self, network: Evaluated) -> tuple[bool, int, float]:
    """Returns a key by which the preferred of some networks is the greatest."""
    if not self.standard_errors or network.fitness < self.least_fitness:
      return False, 0, network.fitness
    size = model.num_parameters(network.genotype, self.channels, self.num_classes)
    return True, -size, network.fitness

  def prefers(self, network: Evaluated, other: Evaluated) -> bool:
    """Returns whether a network is preferred to another; no network is to its equal."""
    return self.key(network) > self.key(other)


# The paper's order: the fitter network, however large.
FITTER = Preference()


def effective_examples(measure: str, counts: Sequence[int]) -> float:
  """Returns the number of examples that fixes the standard error of a fitness.

  A balanced accuracy is the mean over classes of shares of n_c examples each. Its
  variance a (1 - a) sum(1 / n_c) / C^2, for classes of equal accuracy a, is that of a
  share of C^2 / sum(1 / n_c) examples. That is the number of examples where classes are
  balanced, and fewer where they are not.

  Args:
    measure: One of `metrics.MEASURES`.
    counts: The number of validation examples of each class.
  """
  if measure == 'accuracy':
    return float(sum(counts))
  counts = [count for count in counts if count]
  return len(counts) ** 2 / sum(1 / count for count in counts)
