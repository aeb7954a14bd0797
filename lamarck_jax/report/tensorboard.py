"""TensorBoard scalars of every evaluation, written while a search runs."""

import os
import time
from types import TracebackType
from typing import Any

from lamarck_jax.errors import UserError


class Scalars:
  """Writes scalars of events, without TensorFlow; a context manager.

  An instance is a callback for `lamarck_jax.search.run`. The step is the evaluation, so
  that a resumed search continues its curves in the same folder.
  """

  def __init__(self, directory: str | os.PathLike[str]):
    """Opens a folder for event files, and creates it if needed.

    Raises:
      UserError: If tensorboardX is not installed, or the folder cannot be written.
    """
    try:
      import tensorboardX
    except ImportError as error:
      raise UserError(
        f'tensorboard_dir: got {directory}, want tensorboardX installed'
        ": pip install -e '.[tensorboard]'"
      ) from error
    try:
      # tensorboardX names files by the second, so a quick restart would overwrite one.
      self._writer = tensorboardX.SummaryWriter(
        os.fspath(directory), filename_suffix=f'.{time.time_ns()}'
      )
    except OSError as error:
      raise UserError(
        f'tensorboard_dir: got {directory}, want a folder that can be written:'
        f' {error.strerror}'
      ) from error

  def __call__(self, event: dict[str, Any]) -> None:
    """Writes the scalars of an event."""
    scalars = {
      'accuracy/evaluation': event['fitness'],
      'accuracy/best': event['best_fitness'],
      'network/blocks': len(event['genotype']),
      'network/flops_of_the_evaluation': event['flops'],
      'search/epochs_used': event['epochs_used'],
      'search/accepted': float(event['accepted']),
      **{f'seconds/{name}': value for name, value in event['seconds'].items()},
    }
    if event['fitness_at_birth'] is not None:
      scalars['accuracy/before_training'] = event['fitness_at_birth']
    for name, value in scalars.items():
      self._writer.add_scalar(name, value, event['evaluation'])
    self._writer.flush()

  def __enter__(self) -> 'Scalars':
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self._writer.close()
