"""scikit-learn's digits: 1,797 gray images of 8x8 pixels, included in the package."""

import importlib.util
import pathlib

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
  del name  # There is only one such data set.
  rows = np.loadtxt(_find_file(), delimiter=',')
  # scikit-learn orders the images by writer, and fixes no splits.
  rows = rows[np.random.RandomState(_SEED).permutation(len(rows))]
  images = np.rint(rows[:, :-1] * (255 / _MAX_GRAY)).astype(np.uint8)
  images = images.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 1)
  keys = digests(images)
  if image_size is not None:
    images = np.stack([decoding.resize(image, image_size) for image in images])
  labels = rows[:, -1].astype(np.int32)
  return Source(
    train=Examples(images[:-_NUM_TEST], labels[:-_NUM_TEST], keys[:-_NUM_TEST]),
    test=Examples(images[-_NUM_TEST:], labels[-_NUM_TEST:], keys[-_NUM_TEST:]),
    class_names=tuple(map(str, range(10))),
    is_published=True,
    num_validation=_NUM_VALIDATION,
  )


def _find_file() -> pathlib.Path:
  """Returns the file inside scikit-learn, whose import would take a second."""
  package = importlib.util.find_spec('sklearn')
  if package is None or package.origin is None:
    raise ModuleNotFoundError("No module named 'sklearn'")
  return pathlib.Path(package.origin).parent / 'datasets' / 'data' / 'digits.csv.gz'
