"""Trees of arrays as safetensors files with a checksum, and the names of these files.

Safetensors holds arrays and text alone: unlike a pickle, a file runs no code when read.
"""

from collections.abc import Mapping
import json
import re
import struct
from typing import Any, Literal, cast
import zlib

from flax import traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from lamarck_jax.errors import DamagedError
from lamarck_jax.run_directory import digests, durable

# What an individual's weights come from: its evaluation during the search, a completion
# that is still running, or one that has ended.
Stage = Literal['search', 'completing', 'completed']

# Above any network that fits into memory with its gradients.
MAX_BYTES = 2**36

_FILE_NAME = re.compile(r'(?:(completing|completed)_)?(\d{6,})\.safetensors')


def file_name(evaluation: int, stage: Stage = 'search') -> str:
  """Returns the name of a file of weights, e.g. `completed_000123.safetensors`."""
  prefix = '' if stage == 'search' else f'{stage}_'
  return f'{prefix}{evaluation:06d}.safetensors'


def parse_file_name(name: str) -> tuple[int, Stage] | None:
  """Returns the evaluation and stage that a file's name has, or None if it has none."""
  match = _FILE_NAME.fullmatch(name)
  if match is None:
    return None
  stage, evaluation = match.groups(default='search')
  return int(evaluation), cast(Stage, stage)


def write(
  folder: durable.Folder,
  name: str,
  variables: Mapping[str, Any],
  bound: Mapping[str, str] | None = None,
) -> str:
  """Writes a tree of arrays; it is on disk when this returns.

  Args:
    folder: The folder of weights.
    name: The file; it is replaced as a whole.
    variables: Nested dictionaries of arrays of any shape and dtype.
    bound: The digests of other files that these arrays follow from.

  Returns:
    The digest of the arrays.

  Raises:
    StorageError: If it cannot be written.
  """
  leaves = traverse_util.flatten_dict(variables, sep='/')
  # Safetensors writes memory as it lies, and reads it in C order.
  arrays = {name: np.asarray(leaf, order='C') for name, leaf in leaves.items()}
  metadata = {'crc32': _checksum(arrays), **(bound or {})}
  folder.write(name, safetensors.numpy.save(arrays, metadata))
  return digests.of_arrays(arrays)


def read(
  folder: durable.Folder,
  name: str,
  digest: str | None = None,
  bound: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """Returns the tree that `write` wrote, with NumPy arrays.

  Args:
    folder: The folder of weights.
    name: The file.
    digest: The digest of the arrays; None if no other file names it.
    bound: The digests of other files as they are now.

  Raises:
    DamagedError: If there is no file, it is damaged, or it does not belong to the other
      files.
  """
  path = folder.path / name
  try:
    content = folder.read_bytes(name, MAX_BYTES)
    arrays = safetensors.numpy.load(content)
    metadata = _metadata(content)
  # Besides its own error, safetensors raises others on damaged files.
  except Exception as error:
    raise DamagedError(
      f'weights: got {path} unreadable ({error}), want a safetensors file'
    ) from error
  checksum, written = _checksum(arrays), metadata.get('crc32')
  if checksum != written:
    raise DamagedError(
      f'weights: got {path} with checksum {checksum}, want {written!r} as written'
    )
  if digest is not None:
    digests.check(
      path, {digests.WEIGHTS: digests.of_arrays(arrays)}, {digests.WEIGHTS: digest}
    )
  digests.check(path, metadata, bound or {})
  return traverse_util.unflatten_dict(arrays, sep='/')


def _metadata(content: bytes) -> dict[str, Any]:
  """Returns the metadata of a safetensors file, which its reader does not return."""
  (length,) = struct.unpack('<Q', content[:8])
  return json.loads(content[8 : 8 + length]).get('__metadata__') or {}


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
  value = 0
  for name in sorted(arrays):
    array = arrays[name]
    value = zlib.crc32(f'{name} {array.dtype} {array.shape}'.encode(), value)
    value = zlib.crc32(array.tobytes(), value)
  return f'{value:08x}'


def check(variables: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
  """Checks that variables are those of a network.

  Args:
    variables: A tree of arrays.
    shapes: The network's, as `model.variable_shapes` has them.

  Raises:
    ValueError: If leaves are missing, left over or of another shape or dtype.
  """
  found, wanted = (
    {
      path: (leaf.shape, leaf.dtype)
      for path, leaf in traverse_util.flatten_dict(tree, sep='/').items()
    }
    for tree in (variables, shapes)
  )
  for path in sorted(found.keys() | wanted.keys()):
    if found.get(path) != wanted.get(path):
      raise ValueError(
        f'variables: got {found.get(path)} for {path}, want {wanted.get(path)}'
      )
