"""What a person sees while a search runs."""

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

from lamarck_jax.genotype import Genotype


class Progress:
  """A live line on a terminal, and a plain line per evaluation elsewhere."""

  def __init__(
    self, budget_epochs: int, epochs_used: int = 0, file: TextIO | None = None
  ):
    """Starts the clock.

    Args:
      budget_epochs: Training epochs of the whole search.
      epochs_used: Those used when the search was resumed.
      file: Where to write; standard error by default.
    """
    self._file = file or sys.stderr
    self._start = time.monotonic()
    self._first_epoch = epochs_used
    self._bar = tqdm(
      total=budget_epochs,
      initial=epochs_used,
      file=self._file,
      disable=not self._file.isatty(),
      bar_format='{n_fmt}/{total_fmt} epochs {bar:10} {remaining} left  {desc}',
      dynamic_ncols=True,
    )
    self._last = ''

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *error: object) -> None:
    self._bar.close()

  def training(self, evaluation: int, genotype: Genotype) -> None:
    """Says which network is trained now."""
    self._bar.set_description_str(f'#{evaluation} {genotype}  {self._last}')

  def epoch(self) -> None:
    """Counts one epoch."""
    self._bar.update()

  def evaluated(
    self, event: dict[str, Any], genotype: Genotype, images_per_second: float
  ) -> None:
    """Says how an evaluation ended.

    Args:
      event: What was recorded of it.
      genotype: The network that was trained.
      images_per_second: Speed of its training.
    """
    self._last = (
      f'fitness {event["fitness"]:.4f}  best {event["best_fitness"]:.4f}'
      f'  {images_per_second:,.0f} images/s'
    )
    self._bar.set_description_str(f'#{event["evaluation"]} {genotype}  {self._last}')
    if self._bar.disable:
      epochs_used, budget = event['epochs_used'], self._bar.total
      rate = (epochs_used - self._first_epoch) / (time.monotonic() - self._start)
      left = tqdm.format_interval(max(budget - epochs_used, 0) / rate)
      print(
        f'epoch {epochs_used}/{budget}  evaluation {event["evaluation"]}'
        f'  {genotype}  {self._last}  {left} left',
        file=self._file,
        flush=True,
      )
