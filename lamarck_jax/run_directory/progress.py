"""What a search prints: a progress bar or plain lines in a log, and its result."""

from collections.abc import Iterator, Mapping
import contextlib
import contextvars
import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

from lamarck_jax import metrics
from lamarck_jax.genotype import Genotype

_is_quiet = contextvars.ContextVar('is_quiet', default=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Prints no progress of the searches that this thread runs inside."""
  token = _is_quiet.set(True)
  try:
    yield
  finally:
    _is_quiet.reset(token)


class _Output:
  """A text file that drops what it cannot write; no file at all is one.

  Printing must never end a search: a terminal may be closed, a device full, and
  programs without a console have no standard error.
  """

  def __init__(self, file: TextIO | None):
    """Takes a file, standard error by default."""
    self._file = None if _is_quiet.get() else file or sys.stderr

  def write(self, text: str) -> None:
    # Besides OSError: a closed file, and characters that its encoding has not.
    with contextlib.suppress(OSError, ValueError):
      if self._file:
        self._file.write(text)

  def flush(self) -> None:
    with contextlib.suppress(OSError, ValueError):
      if self._file:
        self._file.flush()

  def isatty(self) -> bool:
    with contextlib.suppress(AttributeError, OSError, ValueError):
      return bool(self._file and self._file.isatty())
    return False

  def shows_bars(self) -> bool:
    """Returns whether a line can be overwritten, as on a terminal or in a notebook."""
    return self.isatty() or type(self._file).__module__.startswith('ipykernel.')

  def __getattr__(self, name: str) -> Any:
    """Returns what else tqdm looks for, such as the encoding."""
    return getattr(self._file, name)

  def print(self, text: str) -> None:
    """Writes a line at once."""
    self.write(f'{text}\n')
    self.flush()


def print_dataset(description: Mapping[str, Any], file: TextIO | None = None) -> None:
  """Prints one line with the sizes, image shape and classes of a data set.

  Args:
    description: `Dataset.description`.
    file: Where to print; standard error by default.
  """
  sizes = ', '.join(
    f'{description[f"num_{split}"]:,} {split}'
    for split in ('train', 'validation', 'test')
  )
  shape = 'x'.join(map(str, description['image_shape']))
  _Output(file).print(
    f'{description["name"]}: {sizes} images of {shape},'
    f' {len(description["class_names"])} classes'
  )


def result_lines(
  result: Mapping[str, Any], fitness: str, parsimony: bool
) -> list[tuple[str, str]]:
  """Returns names and values of what a search has found.

  Args:
    result: The content of `result.json`.
    fitness: The measure that was selected for, one of `metrics.MEASURES`.
    parsimony: Whether the network that is selected may be less fit than others.
  """
  best = result['best']
  lines = [
    (
      'selected network' if parsimony else 'best network',
      str(Genotype.from_json(best)),
    ),
    (
      metrics.name(fitness, 'validation'),
      f'{best["fitness"]:.4f}'
      f'  (evaluation {best["evaluation"]} of {result["num_evaluations"]})',
    ),
  ]
  for checkpoint in result['checkpoints']:
    of = f'after {checkpoint["epochs"]} epochs and completion'
    for measure in dict.fromkeys(('accuracy', fitness)):
      # Runs of earlier versions have the accuracy alone.
      if (value := checkpoint.get(f'test_{measure}')) is not None:
        text = f'{value:.4f}  {of}: {Genotype.from_json(checkpoint)}'
        lines.append((metrics.name(measure, 'test'), text))
  return lines


class Progress:
  """A progress bar on a terminal or in a notebook; else one line per evaluation."""

  def __init__(
    self, budget_epochs: int, epochs_used: int = 0, file: TextIO | None = None
  ):
    """Starts the clock.

    Args:
      budget_epochs: Training epochs of the whole search.
      epochs_used: Training epochs before the search was resumed.
      file: Where to print; standard error by default.
    """
    self._output = _Output(file)
    self._start = time.monotonic()
    self._first_epoch = self._recorded = epochs_used
    self._bar = _bar('', budget_epochs, epochs_used, self._output)
    self._last = ''
    self._names: dict[int, str] = {}  # Of the networks in training, by evaluation.
    self._epochs: dict[int, int] = {}  # Of those that are not recorded.

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *error: object) -> None:
    self._bar.close()

  def training(self, evaluation: int, genotype: Genotype) -> None:
    """Shows a network among those in training, from its first epoch on."""
    self._names[evaluation] = f'#{evaluation} {genotype}'
    self._epochs[evaluation] = 0
    self._show()

  def epoch(self, evaluation: int) -> None:
    """Counts an epoch of a network in training."""
    self._epochs[evaluation] += 1
    self._show()

  def trained(self, evaluation: int) -> None:
    """Shows that a network is not in training any more; it waits to be recorded."""
    del self._names[evaluation]
    self._show()

  def _show(self, otherwise: str = '') -> None:
    """Shows the networks in training, or `otherwise`, and what was recorded last."""
    names = ', '.join(self._names.values()) or otherwise
    self._bar.set_description_str(f'{names}  {self._last}', refresh=False)
    epochs = self._recorded + sum(self._epochs.values())
    self._bar.update(epochs - self._bar.n)
    self._bar.refresh()

  def evaluated(
    self, event: dict[str, Any], genotype: Genotype, images_per_second: float
  ) -> None:
    """Shows the outcome of an evaluation, which is not in training any more.

    Args:
      event: Its event, as recorded.
      genotype: The network that was trained.
      images_per_second: Training throughput.
    """
    # With parsimony a fitter network may have been passed over.
    best = 'selected' if 'best' in event else 'best'
    self._last = (
      f'fitness {event["fitness"]:.4f}  {best} {event["best_fitness"]:.4f}'
      f'  {images_per_second:,.0f} images/s'
    )
    evaluation = event['evaluation']
    self._names.pop(evaluation, None)
    self._epochs.pop(evaluation, None)
    self._recorded = epochs_used = event['epochs_used']
    self._show(f'#{evaluation} {genotype}')
    if self._bar.disable:
      budget = self._bar.total
      # Epochs before the search was resumed took none of this process's time.
      rate = (epochs_used - self._first_epoch) / (time.monotonic() - self._start)
      left = tqdm.format_interval(max(budget - epochs_used, 0) / rate)
      self._output.print(
        f'epoch {epochs_used}/{budget}  evaluation {evaluation}'
        f'  {genotype}  {self._last}  {left} left'
      )


class CompletionProgress:
  """Progress of the training of one checkpoint to completion."""

  def __init__(
    self,
    evaluation: int,
    genotype: Genotype,
    num_epochs: int,
    epochs_done: int = 0,
    file: TextIO | None = None,
  ):
    """Shows which network is being trained.

    Args:
      evaluation: Index of the evaluation that found it.
      genotype: The network.
      num_epochs: Epochs of the whole schedule.
      epochs_done: Epochs before the completion was resumed.
      file: Where to print; standard error by default.
    """
    self._output = _Output(file)
    self._name = f'evaluation {evaluation}  {genotype}'
    self._bar = _bar('completion ', num_epochs, epochs_done, self._output)
    self._bar.set_description_str(f'#{evaluation} {genotype}')
    if self._bar.disable:
      self._print(f'training to completion, {num_epochs} epochs')

  def __enter__(self) -> 'CompletionProgress':
    return self

  def __exit__(self, *error: object) -> None:
    self._bar.close()

  def epoch(self) -> None:
    """Counts one epoch."""
    self._bar.update()

  def tested(self, outcome: Mapping[str, Any]) -> None:
    """Shows the accuracies in an outcome, as `RunDirectory.write_completed` has it."""
    if self._bar.disable:
      self._print(
        f'validation {outcome["validation_accuracy"]:.4f}'
        f'  test {outcome["test_accuracy"]:.4f}'
      )

  def _print(self, text: str) -> None:
    self._output.print(f'completion  {self._name}  {text}')


def _bar(name: str, total: int, initial: int, output: _Output) -> tqdm:
  return tqdm(
    total=total,
    initial=initial,
    file=output,
    disable=not output.shows_bars(),
    bar_format=name + '{n_fmt}/{total_fmt} epochs {bar:10} {remaining} left  {desc}',
    dynamic_ncols=True,
  )
