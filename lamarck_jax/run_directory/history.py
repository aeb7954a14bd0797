"""What the events of a search lead to: its state, and at the end its result."""

from collections.abc import Callable, Mapping, Sequence, Set
import functools
from typing import Any, Protocol, Self, TypeVar

from absl import logging

from lamarck_jax.errors import DamagedError, UserError
from lamarck_jax.evolution import Individual
from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import records, weights


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
  shapes: Callable[[Genotype], Mapping[str, Any]],
) -> tuple[S, dict[int, Mapping[str, Any]]]:
  """Reads how far a search has come, and removes weights that are not needed any more.

  Where weights that are needed are damaged, the search goes back to the last event for
  which they are not, and repeats what followed. What is cut away is kept in a folder of
  its own. The data set is the run's, see `dataset_record`, so weights of other shapes
  are damaged as well.

  Args:
    directory: The run directory.
    initial: The state before the first event.
    shapes: Returns the shapes of a genotype's variables.

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
    weights.check(variables, shapes(Genotype.from_json(events[number])))
    return variables

  damage = ''
  for count in reversed(range(len(states))):
    try:
      needed = {number: read(number) for number in states[count].needed}
      break
    except (DamagedError, ValueError) as error:
      damage = damage or str(error)
  if damage:
    folder = directory.cut_back(count)
    logging.warning(
      '%s; going back from evaluation %d to %d; %s keeps what was there',
      damage,
      len(events),
      count,
      folder,
    )
  state = states[count]
  directory.keep_weights(state.needed)
  if count:
    logging.info('going on after %d evaluations in %s', count, directory.path)
  return state, {number: needed[number] for number in state.living}


def result(
  events: Sequence[Mapping[str, Any]],
  best: Individual | None,
  checkpoints: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
  """Returns the content of `result.json`.

  Args:
    events: All events of the search.
    best: The best individual.
    checkpoints: Outcomes of the completed checkpoints.

  Raises:
    UserError: If no network could be evaluated.
  """
  if best is None:
    raise UserError(
      f'search: got {len(events)} networks that could not be evaluated, want one that'
      f' can; the last: {events[-1]["failure"]}'
    )
  return {
    'best': {
      'evaluation': best.evaluation,
      **best.genotype.to_json(),
      'fitness': best.fitness,
    },
    'num_evaluations': len(events),
    'epochs_used': events[-1]['epochs_used'],
    'flops': sum(event['flops'] for event in events),
    'seconds': round(sum(event['seconds']['total'] for event in events), 3),
    'checkpoints': list(checkpoints),
  }
