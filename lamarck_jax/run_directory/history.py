"""What the events of a search lead to: its state, and at the end its result."""

from collections.abc import Callable, Mapping, Sequence, Set
import functools
import os
import pathlib
from typing import Any, Protocol, Self, TypeVar

from absl import logging

from lamarck_jax.errors import DamagedError, UserError
from lamarck_jax.evolution import Individual
from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import digests, records, weights


class State(Protocol):
  """A search's state: a fold of `tell` over the events."""

  @property
  def living(self) -> Set[int]:
    """The evaluations of the individuals that can still have children."""

  @property
  def needed(self) -> Set[int]:
    """The evaluations whose weights are still needed."""

  def tell(
    self, child: Genotype, fitness: float | None, correct: str | None = None
  ) -> Self:
    """Returns the state after an evaluation."""


S = TypeVar('S', bound=State)

# What comes of using values of JSON that are of another type than expected.
_FORM_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def restore(
  directory: records.RunDirectory,
  initial: S,
  shapes: Callable[[Genotype], Mapping[str, Any]],
) -> tuple[S, dict[int, Mapping[str, Any]]]:
  """Reads how far a search has come, and removes weights that are not needed any more.

  Where weights that are needed are damaged, the search goes back to the last event for
  which they are not, and repeats what followed. What is cut away is kept in a folder of
  its own, and so are weights whose events are lost. The data set is the run's, see
  `dataset_record`, so weights of other shapes are damaged as well.

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
    told = Genotype.from_json(event), fitness, event.get('correct')
    states.append(states[-1].tell(*told))

  @functools.cache
  def read(number: int) -> Mapping[str, Any]:
    variables = directory.read_weights(number)
    weights.check(variables, shapes(Genotype.from_json(events[number])))
    return variables

  damage = ''
  if later := directory.later_weights(len(events)):
    damage = (
      f'events: got {len(events)} of them in {directory.path}, want that of {later}'
    )
  for count in reversed(range(len(states))):
    try:
      needed = {number: read(number) for number in states[count].needed}
      break
    except (DamagedError, ValueError) as error:
      damage = damage or str(error)
  if damage:
    folder = directory.cut_back(count)
    how = f'back from evaluation {len(events)} to' if count < len(events) else 'on from'
    logging.warning(
      '%s; going %s %d; %s keeps what was there', damage, how, count, folder
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
    UserError: If no network could be evaluated, or an event or an outcome is damaged.
  """
  if best is None:
    raise UserError(
      f'search: got {len(events)} networks that could not be evaluated, want one that'
      f' can; the last: {events[-1]["failure"]}'
    )
  try:
    found = {
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
    _check_result(found)
  except _FORM_ERRORS as error:
    raise DamagedError(
      f'result: got {_reason(error)} in the events or the completed networks, want'
      ' them as written'
    ) from error
  return found


def read_result(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Returns what `result` returned and was written, or None while there is none.

  Args:
    workdir: The run directory.

  Raises:
    DamagedError: If it is damaged, or belongs to another configuration or other events.
  """
  found = records.read_result(workdir)
  if found is None:
    return None
  try:
    _check_result(found)
  except _FORM_ERRORS as error:
    path = pathlib.Path(workdir, 'result.json')
    raise DamagedError(
      f'result: got {path} with {_reason(error)}, want it as written'
    ) from error
  return found


def _check_result(content: Mapping[str, Any]) -> None:
  """Raises one of `_FORM_ERRORS` where a result has not what a person is told."""
  best, checkpoints = content['best'], content['checkpoints']
  counts = [content['num_evaluations'], best['evaluation'], content['flops']]
  counts += [checkpoint['epochs'] for checkpoint in checkpoints]
  accuracies = [best['fitness']]
  accuracies += [checkpoint['test_accuracy'] for checkpoint in checkpoints]
  for entry in (best, *checkpoints):
    Genotype.from_json(entry)
  if not all(type(count) is int for count in counts):
    raise ValueError(f'counts {counts}')
  if not all(0 <= accuracy <= 1 for accuracy in accuracies):
    raise ValueError(f'accuracies {accuracies}')
  digests.check_durations(content)


def _reason(error: Exception) -> str:
  return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
