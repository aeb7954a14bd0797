"""The fingerprint of a data set: what tells whether two are the same.

A search compares it at every start, since other images or labels behind the same name
would change its meaning without a trace in its numbers.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
from typing import Any

import numpy as np

from lamarck_jax.data import datasets
from lamarck_jax.data.datasets import Dataset, Split

SPLITS = ('train', 'validation', 'test')

_TOLERANCE = 1e-5  # Machines sum the pixels in different orders.
_MAX_NAMES = 3  # Class names in a message.


@dataclasses.dataclass(frozen=True)
class SplitFingerprint:
  """What identifies the examples of a split, in their order.

  Attributes:
    num_examples: Their number.
    images: SHA-256 of dtype, shape and pixels, in hexadecimal digits.
    labels: SHA-256 of dtype, shape and labels, likewise.
  """

  num_examples: int
  images: str
  labels: str

  def differing(self, other: 'SplitFingerprint') -> tuple[str, ...]:
    """Returns which of `images` and `labels` differ from another split's."""
    fields = ('images', 'labels')
    return tuple(f for f in fields if getattr(self, f) != getattr(other, f))


@dataclasses.dataclass(frozen=True)
class Fingerprint:
  """What identifies a data set, and what a trained network needs to know of it.

  Attributes:
    image_shape: Height and width in pixels, and channels.
    class_names: Names of the classes, in label order.
    mean: Of each channel over the training split, in units of uint8.
    std: Standard deviation of each channel, likewise; above 0.
    splits: The examples of `SPLITS`, by name.
  """

  image_shape: tuple[int, int, int]
  class_names: tuple[str, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  splits: Mapping[str, SplitFingerprint]

  @classmethod
  def from_json(cls, content: Mapping[str, Any]) -> 'Fingerprint':
    """Returns the fingerprint whose fields a JSON object has, among others.

    Raises:
      ValueError: If a field is missing or impossible.
    """
    try:
      found = cls(*image_fields(content), splits_from_json(content['splits']))
    except (LookupError, TypeError) as error:
      raise ValueError(f'got {error}, want the fields of a data set') from error
    return found

  def to_json(self) -> dict[str, Any]:
    """Returns the fields, ready for JSON."""
    return dataclasses.asdict(self)

  def differences(self, other: 'Fingerprint') -> list[str]:
    """Returns in words how another data set differs from this one; none if equal."""
    found = described_differences(self.description, other.description)
    sizes_agree = [
      name
      for name in SPLITS
      if self.splits[name].num_examples == other.splits[name].num_examples
    ]
    for differing, what in (
      (('labels',), 'other labels'),
      # Own images are split and ordered by their labels too.
      (('images', 'labels'), 'other labels or images, or another order of them,'),
      (('images',), 'other images, or another order of them,'),
    ):
      names = [
        name
        for name in sizes_agree
        if self.splits[name].differing(other.splits[name]) == differing
      ]
      if names:
        found.append(f'{what} in {", ".join(names)}')
    for field in ('mean', 'std'):
      values = getattr(self, field), getattr(other, field)
      # Other pixels, which are named above, have other statistics.
      if not found and not np.allclose(*values, rtol=_TOLERANCE):
        found.append(f'another {field} of the channels')
    return found

  @property
  def description(self) -> dict[str, Any]:
    """Image shape, split sizes and class names, as `Dataset.description` has them."""
    return {
      'image_shape': list(self.image_shape),
      **{f'num_{name}': self.splits[name].num_examples for name in SPLITS},
      'class_names': list(self.class_names),
    }


def splits_from_json(content: Mapping[str, Any]) -> dict[str, SplitFingerprint]:
  """Returns the splits of a JSON object; LookupError or TypeError if it has none."""
  return {name: SplitFingerprint(**content[name]) for name in SPLITS}


def take(dataset: Dataset) -> Fingerprint:
  """Returns the fingerprint of a data set.

  For CIFAR-10 it takes about as long as the channel statistics, a second; hashing
  takes a tenth of it.
  """
  mean, std = datasets.channel_statistics(dataset.train.images)
  return Fingerprint(
    dataset.image_shape,
    dataset.class_names,
    tuple(map(float, mean)),
    tuple(map(float, std)),
    {name: _take_split(getattr(dataset, name)) for name in SPLITS},
  )


def described_differences(
  wanted: Mapping[str, Any], found: Mapping[str, Any]
) -> list[str]:
  """Returns in words how the description of a data set differs from the one wanted.

  Args:
    wanted: A `Dataset.description`; fields that it lacks are not compared.
    found: Another one, complete.
  """
  differences = []
  if 'class_names' in wanted:
    differences += _class_differences(wanted['class_names'], found['class_names'])
  if wanted.get('image_shape', found['image_shape']) != found['image_shape']:
    shapes = ('x'.join(map(str, part['image_shape'])) for part in (found, wanted))
    differences.append('images of {} instead of {}'.format(*shapes))
  for name in SPLITS:
    number, size = wanted.get(f'num_{name}'), found[f'num_{name}']
    if number is not None and number != size:
      differences.append(f'{size} {name} images instead of {number}')
  return differences


def image_fields(content: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
  """Returns what a JSON object says of the images that a network takes.

  Returns:
    Its `image_shape`, `class_names`, `mean` and `std`.

  Raises:
    ValueError: If one is impossible.
    KeyError: If one is missing.
  """
  fields = {
    name: content[name] for name in ('image_shape', 'class_names', 'mean', 'std')
  }
  for name, value in fields.items():
    if not isinstance(value, list):
      raise ValueError(f'{name}: got {value!r}, want a list')
  shape, class_names, mean, std = fields.values()
  if not (len(shape) == 3 and all(type(n) is int and 0 < n < 2**31 for n in shape)):
    raise ValueError(f'image_shape: got {shape!r}, want height, width, channels')
  if not (class_names and all(isinstance(name, str) for name in class_names)):
    raise ValueError(f'class_names: got {class_names!r}, want names')
  for name, values in (('mean', mean), ('std', std)):
    if not (
      len(values) == shape[-1]
      and all(type(value) in (int, float) and abs(value) < 1e300 for value in values)
      and (name == 'mean' or min(values) > 0)
    ):
      raise ValueError(f'{name}: got {values!r}, want a number for each channel')
  return tuple(shape), tuple(class_names), tuple(mean), tuple(std)


def _class_differences(wanted: Sequence[str], found: Sequence[str]) -> list[str]:
  differences = []
  for names, others, what in ((found, wanted, 'added'), (wanted, found, 'missing')):
    changed = [repr(name) for name in names if name not in others]
    more = [] if len(changed) <= _MAX_NAMES else [f'{len(changed) - _MAX_NAMES} more']
    if changed:
      listed = ', '.join([*changed[:_MAX_NAMES], *more])
      differences.append(
        f'{"class" if len(changed) == 1 else "classes"} {listed} {what}'
      )
  if not differences and list(found) != list(wanted):
    differences.append('the classes in another order')
  return differences


def _take_split(split: Split) -> SplitFingerprint:
  return SplitFingerprint(
    len(split.labels), _digest(split.images), _digest(split.labels)
  )


def _digest(array: np.ndarray) -> str:
  digest = hashlib.sha256(f'{array.dtype.str} {array.shape}'.encode())
  digest.update(np.ascontiguousarray(array).data)
  return digest.hexdigest()
