"""The figures of a search, from its events, and what they predict for the paper's."""

from collections.abc import Sequence
from typing import Any

# The paper's search: epochs, and the forward operations that it reports for one, its
# best on CIFAR-100.
_PAPER_EPOCHS, _PAPER_FLOPS = 512, 6e16


def summarize(events: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
  """Returns the figures of a search so far, and the extrapolation to 512 epochs.

  Args:
    events: Its events.
    seconds: Wall-clock time of the process.
  """
  phases: dict[str, float] = {}
  for event in events:
    for phase, value in event['seconds'].items():
      phases[phase] = phases.get(phase, 0.0) + value
  figures: dict[str, Any] = {
    'seconds': seconds,
    'evaluations': len(events),
    'epochs': events[-1]['epochs_used'] if events else 0,
    'phases': phases,
  }
  if not events:
    return figures
  trained = [event for event in events if event['failure'] is None]
  flops = sum(event['flops'] for event in trained)
  figures['best_fitness'] = max(event['fitness'] for event in events)
  figures['outside_evaluations_seconds'] = seconds - phases['total']
  figures['forward_flops'] = flops
  if trained:
    train = sum(event['seconds']['train'] for event in trained)
    figures['train_tflops_per_second'] = 3 * flops / train / 1e12
    figures['extrapolation'] = extrapolate(trained, seconds)
  return figures


def extrapolate(events: Sequence[dict[str, Any]], seconds: float) -> dict[str, float]:
  """Returns the predicted seconds of 512 epochs, by operations.

  Training takes the time per operation of the second half of the evaluations seen,
  whose networks are most like those to come; all else takes their mean time per
  evaluation. The operations to come are once what remains of the paper's 6e16, and
  once the mean of that half for each evaluation left.
  """
  half = events[len(events) // 2 :]
  train = sum(event['seconds']['train'] for event in half)
  other = sum(event['seconds']['total'] for event in half) - train
  flops = sum(event['flops'] for event in half)
  used = events[-1]['epochs_used']
  left = (_PAPER_EPOCHS - used) * len(events) / used
  seen = sum(event['flops'] for event in events)

  def total(flops_left: float) -> float:
    return seconds + flops_left * train / flops + left * other / len(half)

  return {
    'evaluations_left': left,
    'seconds_at_the_papers_operations': total(max(0.0, _PAPER_FLOPS - seen)),
    'seconds_at_the_operations_of_these_networks': total(left * flops / len(half)),
  }
