"""Where figures come from: the machine and the versions."""

import contextlib
import importlib.metadata
import pathlib
import platform
from typing import Any

import jax

from lamarck_jax.runtime import devices


def machine() -> dict[str, Any]:
  """Returns what a reader must know to compare figures, ready for JSON."""
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
    'cores': devices.num_cores(),
    'versions': versions(),
  }


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that are installed."""
  found = {'python': platform.python_version()}
  packages = ('lamarck_jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'torch')
  for package in packages:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  return found
