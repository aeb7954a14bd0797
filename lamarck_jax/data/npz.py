"""Reads arrays from npz files of unknown origin: headers first, within bounds."""

from collections.abc import Iterator
import contextlib
import dataclasses
import math
import pathlib
import zipfile

import numpy as np

from lamarck_jax.data import files
from lamarck_jax.errors import DatasetError

# Images compress less. A file of zeros takes a thousand times its size in memory.
_MAX_EXPANSION = 100
_ALWAYS_ALLOWED = 2**28  # Bytes.
_SUFFIX = '.npy'


@dataclasses.dataclass(frozen=True)
class Declared:
  """What the header of an array says.

  Attributes:
    shape: Of the array.
    dtype: Of its elements.
  """

  shape: tuple[int, ...]
  dtype: np.dtype

  def __str__(self) -> str:
    """Returns both for a message."""
    return f'{self.dtype} {list(self.shape)}'

  @property
  def num_bytes(self) -> int:
    """Size in memory."""
    return math.prod(self.shape) * self.dtype.itemsize


class NpzFile:
  """An open npz file.

  Attributes:
    names: Names of its arrays, in order.
  """

  def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile, num_bytes: int):
    self._path, self._archive = path, archive
    self._allowed = max(_ALWAYS_ALLOWED, _MAX_EXPANSION * num_bytes)
    self.names = [
      name.removesuffix(_SUFFIX)
      for name in archive.namelist()
      if name.endswith(_SUFFIX)
    ]

  def declared(self, name: str) -> Declared:
    """Returns what an array's header says."""
    with self._archive.open(name + _SUFFIX) as file:
      version = np.lib.format.read_magic(file)
      # Later versions are for arrays of records.
      read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
      }[version]
      shape, _, dtype = read_header(file)
    if min(shape, default=0) < 0:
      raise ValueError(f'{name}: shape {shape}')
    return Declared(shape, dtype)

  def read(self, name: str) -> np.ndarray:
    """Returns an array.

    Raises:
      DatasetError: If it and the arrays read before take more memory than is allowed.
      ValueError: If it has Python objects, which are not loaded, or is cut off.
    """
    declared = self.declared(name)
    self._allowed -= declared.num_bytes
    if self._allowed < 0:
      raise DatasetError(
        f'{self._path}: {name}: got {declared}, {declared.num_bytes} bytes, want at'
        f' most {_MAX_EXPANSION} times the size of the file'
      )
    if declared.num_bytes > self._archive.getinfo(name + _SUFFIX).file_size:
      raise ValueError(f'{name}: fewer values than its header says, {declared}')
    with self._archive.open(name + _SUFFIX) as file:
      return np.lib.format.read_array(file, allow_pickle=False)


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[NpzFile]:
  """Yields an open npz file; errors of its body that are no OSError name it.

  Raises:
    OSError: If the file cannot be opened, or is no regular file.
    DatasetError: If it is not an npz file, or damaged.
  """
  with files.open_regular(path) as file:
    try:
      num_bytes = file.seek(0, 2)
      file.seek(0)
      if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
        raise DatasetError(f'{path}: got a single array, want an npz file')
      with zipfile.ZipFile(file) as archive:
        yield NpzFile(path, archive, num_bytes)
    except (DatasetError, OSError):
      raise
    except Exception as error:  # NumPy, zipfile and zlib raise errors of many types.
      reason = ' '.join(str(error).split()) or type(error).__name__
      raise DatasetError(
        f'{path}: got {files.printable(reason)}, want an npz file'
      ) from error
