"""A cache of decoded arrays, so that 60,000 images load in about a second.

It is a file inside the folder of the prepared data set, and is removed with it.
"""

from collections.abc import Mapping
import hashlib
import io
import pathlib
from typing import Any

from absl import logging
import numpy as np

from lamarck_jax.data import decoding, files
from lamarck_jax.data.source import Examples
from lamarck_jax.errors import StorageError
from lamarck_jax.run_directory import durable

_FOLDER = 'lamarck_jax_cache'
_SPLITS = ('train', 'test')
_ARRAYS = ('images', 'labels', 'digests')
_FORMAT = 2  # Increase it when other arrays are made of the same pixels.


def read(
  prepared_dir: pathlib.Path, image_size: int | None
) -> dict[str, Examples] | None:
  """Returns the splits given to `write`, or None without a valid cache.

  Args:
    prepared_dir: Folder of the prepared data set.
    image_size: Pixels per side that the images were resized to, or None.
  """
  path = _path(prepared_dir, image_size)
  try:
    # NumPy checks the CRC-32 of every array that is read to its end.
    with files.open_regular(path) as file, np.load(file, allow_pickle=False) as cache:
      if np.array_equal(cache['fingerprint'], _fingerprint(prepared_dir, image_size)):
        return {
          split: Examples(*(cache[f'{split}_{array}'] for array in _ARRAYS))
          for split in _SPLITS
        }
    logging.info('%s belongs to other data: replacing it.', path)
  except FileNotFoundError:
    pass
  except Exception as error:  # Errors of many types, by kind of damage.
    logging.info('%s cannot be read: replacing it (%s).', path, error)
  return None


def write(
  prepared_dir: pathlib.Path,
  image_size: int | None,
  splits: Mapping[str, Examples],
) -> None:
  """Caches splits; logs if the folder is not writable, as the cache is optional.

  Args:
    prepared_dir: Folder of the prepared data set.
    image_size: Pixels per side that the images were resized to, or None.
    splits: `train` and `test`.
  """
  path = _path(prepared_dir, image_size)
  try:
    fingerprint = _fingerprint(prepared_dir, image_size)
    members: dict[str, Any] = {'fingerprint': fingerprint}
    for split in _SPLITS:
      for array in _ARRAYS:
        members[f'{split}_{array}'] = getattr(splits[split], array)
    buffer = io.BytesIO()
    np.savez(buffer, **members)
    path.parent.mkdir(exist_ok=True)
    durable.write(path, buffer.getbuffer(), shared=True)
  except (OSError, StorageError) as error:
    logging.info('Decoded images are not cached: %s', error)


def _path(prepared_dir: pathlib.Path, image_size: int | None) -> pathlib.Path:
  size = 'native' if image_size is None else f'{image_size}px'
  return prepared_dir / _FOLDER / f'{size}.npz'


def _fingerprint(prepared_dir: pathlib.Path, image_size: int | None) -> np.ndarray:
  """Returns a digest of the files that describe what was prepared, uint8 [32]."""
  rules = f'{_FORMAT} {decoding.VERSION} {image_size}'
  digest = hashlib.sha256(rules.encode())
  for filename in ('dataset_info.json', 'features.json'):
    digest.update((prepared_dir / filename).read_bytes())
  return np.frombuffer(digest.digest(), np.uint8)
