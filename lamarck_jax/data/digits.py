"""scikit-learn's digits: 1,797 gray images of 8x8 pixels, included in the package."""

import numpy as np

from lamarck_jax.data import decoding
from lamarck_jax.data.source import Examples, Source, digests

IMAGE_SIZE = 8  # Pixels per side.

_NUM_TEST = 360
_NUM_VALIDATION = 300
_MAX_GRAY = 16
_SEED = 0


def load(name: str, image_size: int | None = None) -> Source:
  """Returns the digits, shuffled by a fixed seed: 1,437 for training, 360 for testing.

  Args:
    name: `digits`.
    image_size: Pixels per side to resize to; None keeps 8.
  """
  from sklearn import datasets as sklearn_datasets

  del name  # There is only one such data set.
  digits = sklearn_datasets.load_digits()
  # scikit-learn orders the images by writer, and fixes no splits.
  order = np.random.RandomState(_SEED).permutation(len(digits.target))
  images = np.rint(digits.images[order] * (255 / _MAX_GRAY)).astype(np.uint8)
  images = images[..., np.newaxis]
  keys = digests(images)
  if image_size is not None:
    images = np.stack([decoding.resize(image, image_size) for image in images])
  labels = digits.target[order].astype(np.int32)
  return Source(
    train=Examples(images[:-_NUM_TEST], labels[:-_NUM_TEST], keys[:-_NUM_TEST]),
    test=Examples(images[-_NUM_TEST:], labels[-_NUM_TEST:], keys[-_NUM_TEST:]),
    class_names=tuple(str(name) for name in digits.target_names),
    is_published=True,
    num_validation=_NUM_VALIDATION,
  )
