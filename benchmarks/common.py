"""What the benchmarks share: the machine's description, tables, JSON files."""

from collections.abc import Mapping, Sequence
import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
from typing import Any

import jax

NETWORKS = {
  'small': '32c3',
  'mid': '64c3 64c3s2 128c3 128c3s2',
  'evolved7': '64c3 96c3s2 128c3 192c3s2 192c3 256c3s2 256c1',
}


def machine() -> dict[str, Any]:
  """Returns what a reader must know to compare figures."""
  processor = platform.processor()
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.exists():
    for line in cpuinfo.read_text().splitlines():
      if line.startswith('model name'):
        processor = line.split(':', 1)[1].strip()
        break
  return {
    'device': jax.devices()[0].device_kind,
    'processor': processor,
    'cores': os.cpu_count(),
    'versions': versions(),
  }


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that are installed."""
  found = {'python': platform.python_version()}
  for package in ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'torch'):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  return found


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


def write_json(path: str | None, content: Mapping[str, Any]) -> None:
  """Writes figures with the machine's description, if there is a path."""
  if path:
    text = json.dumps({'machine': machine(), **content}, indent=2)
    pathlib.Path(path).write_text(text + '\n')
