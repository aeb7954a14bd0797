"""init_from.json and init_from.safetensors: the network that a search started from.

They are a copy, written at the first start, so that a run can be resumed without the
run or the export that its first network came from.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

from lamarck_jax.errors import DamagedError
from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import digests, durable, reading, weights

FILE_NAME, WEIGHTS = 'init_from.json', 'init_from.safetensors'
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class InitialNetwork:
  """A trained network, as a run has recorded it.

  Attributes:
    location: The absolute path of the run or export that it came from.
    genotype: Its architecture, with the lineage numbers that name its weights.
    class_names: The classes it was trained on, by label.
    weights_sha256: The digest of its weights, see `digests.of_arrays`.
  """

  location: str
  genotype: Genotype
  class_names: tuple[str, ...]
  weights_sha256: str

  def is_same(self, other: 'InitialNetwork') -> bool:
    """Returns whether two are one network, wherever they were found."""
    return dataclasses.replace(self, location=other.location) == other


def write(
  folder: durable.Folder, network: InitialNetwork, variables: Mapping[str, Any]
) -> None:
  """Records the network that a run starts from.

  Args:
    folder: The run directory.
    network: The network.
    variables: Its weights.

  Raises:
    StorageError: If a file cannot be written.
  """
  # The weights are on disk before the file that names them.
  weights.write(folder, WEIGHTS, variables)
  content = {
    'format_version': FORMAT_VERSION,
    'location': network.location,
    **network.genotype.to_json(),
    'class_names': list(network.class_names),
    digests.WEIGHTS: network.weights_sha256,
  }
  folder.write_json(FILE_NAME, digests.sealed(content, _bound(folder.path)))


def read(workdir: pathlib.Path) -> InitialNetwork | None:
  """Returns the network that a run started from, or None if none is recorded.

  Args:
    workdir: The run directory; it need not exist.

  Raises:
    DamagedError: If init_from.json is not what this run has written.
  """
  path = workdir / FILE_NAME
  content = durable.read_json(path)
  if content is None:
    return None
  content = digests.unsealed(path, content, _bound(workdir))
  try:
    if content['format_version'] != FORMAT_VERSION:
      raise ValueError(f'format_version {content["format_version"]!r}')
    names, texts = (
      content['class_names'],
      (content['location'], content[digests.WEIGHTS]),
    )
    if not all(isinstance(text, str) for text in (*names, *texts)):
      raise ValueError('values that are not text')
    return InitialNetwork(texts[0], Genotype.from_json(content), tuple(names), texts[1])
  except (LookupError, TypeError, ValueError) as error:
    raise DamagedError(
      f'init_from: got {path} with {error}, want it as written'
    ) from error


def read_weights(folder: durable.Folder, network: InitialNetwork) -> dict[str, Any]:
  """Returns the weights of a recorded network.

  Raises:
    DamagedError: If they are missing, damaged, or another network's.
  """
  return weights.read(folder, WEIGHTS, network.weights_sha256)


def _bound(workdir: pathlib.Path) -> dict[str, str]:
  """Returns the digest of the configuration that the record belongs to."""
  return {digests.CONFIG: reading.run_digest(workdir) or ''}
