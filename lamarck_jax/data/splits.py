"""Training, validation and test split: disjoint, and the same for every seed.

The examples of each class are ordered by the digests of their images. The first are for
testing, the next for validation and the last for training. So neither the order nor the
size in which images are read matters, and new images move few others between splits.
"""

from collections.abc import Sequence

from absl import logging
import numpy as np

from lamarck_jax.data.files import printable
from lamarck_jax.data.source import Source, Split
from lamarck_jax.errors import DatasetError

_MAX_VALIDATION = 5_000  # Examples, the paper's number.
_VALIDATION_FRACTION = 10  # One training example in ten.
_TEST_FRACTION = 6  # One example in six.
_FEW_VALIDATION = 30  # Validation examples; with fewer, fitness is coarse.
_HANDFUL = 5  # Training examples; of a class with fewer, little can be learned.

# Indices of examples, an array for each class.
_Classes = list[np.ndarray]


def split(
  name: str, source: Source, num_train: int | None, num_validation: int | None
) -> tuple[Split, Split, Split]:
  """Returns the training, the validation and the test split of a data set.

  Args:
    name: Name of the data set, for messages.
    source: The data set as it is stored.
    num_train: Number of training examples; None: all but those for validation.
    num_validation: Number of validation examples; None: the source's default, or else
      a tenth of its training examples, at most 5,000.

  Raises:
    DatasetError: If the numbers do not fit the data set, or a class would have no
      example in a split.
  """
  if num_validation is None:
    num_validation = source.num_validation
  parts = (_sliced if source.is_published else _stratified)(
    name, source, num_train, num_validation
  )
  if (size := len(parts[1].labels)) < _FEW_VALIDATION:
    logging.warning(
      '%s: %d validation images: fitness moves in steps of 1/%d; more with'
      ' dataset.num_validation',
      printable(name),
      size,
      size,
    )
  return parts


def _sliced(
  name: str, source: Source, num_train: int | None, num_validation: int | None
) -> tuple[Split, Split, Split]:
  """Returns the splits of a published set: slices of its examples as ordered."""
  assert source.test is not None
  size = len(source.train.labels)
  num_validation = _num_validation(name, num_validation, size, num_classes=1)
  left = size - num_validation
  num_train = _num_train(name, num_train, left, num_validation, num_classes=1)
  train, validation = slice(num_train), slice(left, None)
  return source.train.take(train), source.train.take(validation), source.test


def _stratified(
  name: str, source: Source, num_train: int | None, num_validation: int | None
) -> tuple[Split, Split, Split]:
  """Returns splits in each of which every class has its share, one example at least."""
  digests = source.train.digests
  order = np.argsort(digests, kind='stable')
  num_classes = len(source.class_names)
  classes = [order[source.train.labels[order] == c] for c in range(num_classes)]
  _check_classes(name, source, classes)
  if source.test is None:
    sizes = [max(1, round(len(indices) / _TEST_FRACTION)) for indices in classes]
    test_classes, classes = _cut(classes, digests, sizes, leave=2)
    test = source.train.take(_merge(test_classes, digests))
    test_digests = digests[np.concatenate(test_classes)]
  else:
    test, test_digests = source.test, source.test.digests
  num_left = sum(map(len, classes))
  num_validation = _num_validation(name, num_validation, num_left, num_classes)
  sizes = _shares(classes, num_validation, leave=1)
  validation, classes = _cut(classes, digests, sizes, leave=1)
  left = sum(map(len, classes))
  num_train = _num_train(name, num_train, left, num_left - left, num_classes)
  sizes = _shares(classes, num_train, leave=0)
  # From the end, so that a smaller training split is a part of a larger one, whatever
  # the size of the validation split.
  train = [indices[-size:] for indices, size in zip(classes, sizes)]
  _warn_of_rare_classes(name, source.class_names, sizes)
  held_out = np.concatenate(
    [*(digests[indices] for indices in validation), test_digests]
  )
  _warn_of_copies(name, digests[np.concatenate(train)], held_out)
  return (
    source.train.take(_merge(train, digests)),
    source.train.take(_merge(validation, digests)),
    test,
  )


# ------------------------------------------------------------------------------
# Sizes
# ------------------------------------------------------------------------------


def _num_validation(
  name: str, requested: int | None, size: int, num_classes: int
) -> int:
  """Returns the number of validation examples, of `size` examples."""
  if requested is None:
    requested = min(_MAX_VALIDATION, size // _VALIDATION_FRACTION)
    requested = max(requested, num_classes)
  if not num_classes <= requested <= size - num_classes:
    raise DatasetError(
      f'dataset.num_validation: got {requested}, want {num_classes} to'
      f' {size - num_classes} ({name} has {size} training examples'
      f'{_of_classes(num_classes)})'
    )
  return requested


def _num_train(
  name: str, requested: int | None, left: int, num_validation: int, num_classes: int
) -> int:
  """Returns the number of training examples, of `left` examples."""
  if requested is None:
    requested = left
  if not num_classes <= requested <= left:
    raise DatasetError(
      f'dataset.num_train: got {requested}, want {num_classes} to {left} ({name} has'
      f' {left + num_validation} training examples{_of_classes(num_classes)},'
      f' {num_validation} of them for validation)'
    )
  return requested


def _of_classes(num_classes: int) -> str:
  return f' of {num_classes} classes' if num_classes > 1 else ''


def _shares(classes: _Classes, total: int, leave: int) -> list[int]:
  """Returns how many examples each class gives, in proportion to its size.

  Args:
    classes: The examples of each class.
    total: Sum of the result, from 1 for each class to all but `leave` of each.
    leave: How many examples each class keeps at least.
  """
  counts = np.array([len(indices) for indices in classes])
  ideal = counts * (total / counts.sum())
  most = counts - leave
  shares = np.clip(np.floor(ideal).astype(int), 1, most)
  while (missing := total - shares.sum()) != 0:
    step = 1 if missing > 0 else -1
    possible = shares < most if missing > 0 else shares > 1
    shares[np.argmax(np.where(possible, step * (ideal - shares), -np.inf))] += step
  return shares.tolist()


# ------------------------------------------------------------------------------
# Examples
# ------------------------------------------------------------------------------


def _cut(
  classes: _Classes, digests: np.ndarray, sizes: Sequence[int], leave: int
) -> tuple[_Classes, _Classes]:
  """Returns the first examples of each class, and the others.

  Copies of an image stay together, which may change the sizes a little.

  Args:
    classes: The examples of each class, in order of their digests.
    digests: Of all examples.
    sizes: How many of each class are to be taken.
    leave: How many of each class are left at least.
  """
  first, others = [], []
  for indices, size in zip(classes, sizes):
    ordered = digests[indices]
    (ends,) = np.nonzero(ordered[1:] != ordered[:-1])
    ends = ends[ends < len(indices) - leave] + 1
    if len(ends):
      size = int(ends[np.argmin(np.abs(ends - size))])
    first.append(indices[:size])
    others.append(indices[size:])
  return first, others


def _merge(classes: _Classes, digests: np.ndarray) -> np.ndarray:
  """Returns the examples of all classes, mixed by their digests."""
  indices = np.concatenate(classes)
  return indices[np.argsort(digests[indices], kind='stable')]


# ------------------------------------------------------------------------------
# Checks
# ------------------------------------------------------------------------------


def _check_classes(name: str, source: Source, classes: _Classes) -> None:
  """Raises DatasetError if a class has too few examples for one in every split."""
  want = '3: one for each of training, validation and test'
  if source.test is not None:
    want = '2: one for each of training and validation'
  for class_name, indices in zip(source.class_names, classes):
    if (size := len(indices)) < int(want[0]):
      raise DatasetError(
        f'{name}: class {class_name!r}: got {size or "no"} training images, want at'
        f' least {want}'
      )
  if source.test is not None:
    counts = np.bincount(source.test.labels, minlength=len(classes))
    if not counts.all():
      missing = source.class_names[int(np.argmin(counts))]
      raise DatasetError(
        f'{name}: class {missing!r}: got no test images, want at least 1'
      )


def _warn_of_rare_classes(
  name: str, class_names: Sequence[str], sizes: Sequence[int]
) -> None:
  rare = [
    f'{printable(class_name)} ({size})'
    for class_name, size in zip(class_names, sizes)
    if size < _HANDFUL
  ]
  if rare:
    logging.warning(
      '%s: classes with fewer than %d training images: %s%s',
      printable(name),
      _HANDFUL,
      ', '.join(rare[:_HANDFUL]),
      f' and {len(rare) - _HANDFUL} more' if len(rare) > _HANDFUL else '',
    )


def _warn_of_copies(name: str, train: np.ndarray, held_out: np.ndarray) -> None:
  """Warns of images that are trained on and measured with, under any label."""
  if copies := int(np.isin(held_out, train).sum()):
    logging.warning(
      '%s: %d of %d validation and test images are equal to training images, so that'
      ' accuracy is too high',
      printable(name),
      copies,
      len(held_out),
    )
