"""What the benchmarks share: the machine's description, tables, JSON files."""

import argparse
from collections.abc import Mapping, Sequence
import importlib.util
import json
import os
import pathlib
import statistics
from typing import Any

from ml_collections import config_dict

from lamarck_jax.errors import UserError
from lamarck_jax.runtime import environment, paths

# Several processes of a benchmark share one GPU.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

NETWORKS = {
  'small': '32c3',
  'mid': '64c3 64c3s2 128c3 128c3s2',
  'evolved7': '64c3 96c3s2 128c3 192c3s2 192c3 256c3s2 256c1',
}
# Of `random_dataset`.
NUM_CLASSES = 10


def path(text: str) -> pathlib.Path:
  """Returns a path with `~` expanded; a type of arguments for argparse."""
  try:
    return pathlib.Path(paths.local('path', text))
  except UserError as error:
    raise argparse.ArgumentTypeError(str(error)) from error


def load_config(name: str, setting: str = 'lamarckian') -> config_dict.ConfigDict:
  """Returns the configuration of `configs/<name>.py`."""
  path = pathlib.Path(__file__).parent.parent / 'configs' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config: config_dict.ConfigDict = module.get_config(setting)
  return config


def random_dataset(size: int, channels: int, num_train: int) -> Any:
  """Returns random images; training takes the same time for them as for any."""
  import numpy as np

  from lamarck_jax.data import datasets

  rng = np.random.default_rng(0)

  def split(count: int) -> Any:
    images = rng.integers(0, 256, (count, size, size, channels)).astype(np.uint8)
    return datasets.Split(images, rng.integers(NUM_CLASSES, size=count, dtype=np.int32))

  names = tuple(map(str, range(NUM_CLASSES)))
  return datasets.Dataset('random', split(num_train), split(64), split(64), names)


def summary(values: Sequence[float]) -> dict[str, float]:
  """Returns n, median, least and greatest of some figures."""
  return {
    'n': len(values),
    'median': statistics.median(values),
    'min': min(values),
    'max': max(values),
  }


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
  """Prints a Markdown table; floats get three significant digits."""

  def text(value: Any) -> str:
    return f'{value:.3g}' if isinstance(value, float) else str(value)

  cells = [[text(value) for value in row] for row in [header, *rows]]
  widths = [max(map(len, column)) for column in zip(*cells)]
  cells.insert(1, ['-' * width for width in widths])
  for row in cells:
    print('| ' + ' | '.join(map(str.ljust, row, widths)) + ' |')


def write_json(path: pathlib.Path | None, content: Mapping[str, Any]) -> None:
  """Writes figures with the machine's description, if there is a path."""
  if path:
    text = json.dumps({'machine': environment.machine(), **content}, indent=2)
    path.write_text(text + '\n')
