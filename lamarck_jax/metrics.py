"""What a confusion matrix says of a network."""

import numpy as np

# The measures that a fitness can be.
MEASURES = ('accuracy', 'balanced_accuracy')


def name(measure: str, split: str) -> str:
  """Returns what a measure on a split is called wherever it is shown.

  Args:
    measure: One of `MEASURES`; others are called a fitness.
    split: `validation` or `test`.
  """
  if measure == 'accuracy':
    return f'{split} accuracy'
  if measure == 'balanced_accuracy':
    return f'balanced {split} accuracy'
  return f'{split} fitness'


def selected_name(measure: str, parsimony: float) -> str:
  """Returns what the fitness of the network that a search selects is called.

  Args:
    measure: As in `name`.
    parsimony: Of the search; above 0 the network may be less fit than others.
  """
  found = name(measure, 'validation')
  return f'{found} of the selected network' if parsimony else f'best {found}'


def accuracy(confusion: np.ndarray) -> float:
  """Returns the share of examples that are classified right (Section 4.2).

  Args:
    confusion: int [class, predicted class], numbers of examples.
  """
  return int(confusion.trace()) / int(confusion.sum())


def balanced_accuracy(confusion: np.ndarray) -> float:
  """Returns the mean of the accuracies of the classes that have examples.

  Args:
    confusion: int [class, predicted class], numbers of examples.
  """
  right = [share for share in accuracy_by_class(confusion) if share is not None]
  return float(np.mean(right))


def accuracy_by_class(confusion: np.ndarray) -> list[float | None]:
  """Returns the accuracy of each class; None for one without examples.

  Args:
    confusion: int [class, predicted class], numbers of examples.
  """
  return [
    int(right) / int(total) if total else None
    for right, total in zip(confusion.diagonal(), confusion.sum(axis=1), strict=True)
  ]


def measures(confusion: np.ndarray) -> dict[str, float]:
  """Returns every one of `MEASURES` by name."""
  return {
    'accuracy': accuracy(confusion),
    'balanced_accuracy': balanced_accuracy(confusion),
  }
