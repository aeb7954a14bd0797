"""What a reader returns: labelled images, before validation examples are set aside."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Split:
  """Labelled images.

  Attributes:
    images: uint8 [num_examples, height, width, channels].
    labels: int32 [num_examples], from 0 to num_classes - 1.
  """

  images: np.ndarray
  labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Source:
  """The official splits of a data set.

  Attributes:
    train: Examples for training and validation, shuffled.
    test: Examples for the final test.
    class_names: Names of the classes, in label order.
    num_validation: Default number of validation examples; None leaves it to
      `datasets.load`.
  """

  train: Split
  test: Split
  class_names: tuple[str, ...]
  num_validation: int | None = None
