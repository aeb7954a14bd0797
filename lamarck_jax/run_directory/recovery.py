"""Where a search stands, from what its directory holds."""

from collections.abc import Callable, Mapping, Set
import functools
from typing import Any, Protocol, Self, TypeVar

from absl import logging

from lamarck_jax.errors import DamagedError
from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import records


class State(Protocol):
  """A search's state: a fold of `tell` over the events."""

  @property
  def living(self) -> Set[int]:
    """The evaluations of the individuals that can still have children."""

  @property
  def needed(self) -> Set[int]:
    """The evaluations whose weights are still needed."""

  def tell(self, child: Genotype, fitness: float | None) -> Self:
    """Returns the state after an evaluation."""


S = TypeVar('S', bound=State)


def restore(
  directory: records.RunDirectory,
  initial: S,
  check: Callable[[Genotype, Mapping[str, Any]], None],
) -> tuple[S, dict[int, Mapping[str, Any]]]:
  """Reads how far a search has come, and removes weights that are not needed any more.

  Where weights that are needed are damaged, the search goes back to the last event for
  which they are not, and repeats what followed.

  Args:
    directory: The run directory.
    initial: The state before the first event.
    check: Raises ValueError if variables are not those of a genotype.

  Returns:
    The state, and the variables of the individuals that can have children, by
    evaluation.
  """
  events = directory.read_events()
  states = [initial]
  for event in events:
    fitness = None if event.get('failure') else event['fitness']
    states.append(states[-1].tell(Genotype.from_json(event), fitness))

  @functools.cache
  def read(number: int) -> Mapping[str, Any]:
    variables = directory.read_weights(number)
    check(Genotype.from_json(events[number]), variables)
    return variables

  damage = ''
  for count in reversed(range(len(states))):
    try:
      needed = {number: read(number) for number in states[count].needed}
      break
    except (DamagedError, ValueError) as error:
      damage = damage or str(error)
  if damage:
    logging.warning(
      '%s; going back from evaluation %d to %d', damage, len(events), count
    )
    directory.keep_events(count)
  state = states[count]
  directory.keep_weights(state.needed)
  if count:
    logging.info('going on after %d evaluations in %s', count, directory.path)
  return state, {number: needed[number] for number in state.living}
