"""Description of the machine and of package versions, for records and figures."""

import contextlib
import importlib.metadata
import pathlib
import platform
from typing import TypedDict

import jax

from lamarck_jax.runtime import devices

_PACKAGES = ('lamarck_jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'torch')


class Machine(TypedDict):
  """What a reader needs to compare timings, ready for JSON.

  Attributes:
    device: JAX's name of the first device.
    processor: Model name of the CPU.
    cores: Number of cores in use.
    versions: Version of Python and of each installed package, by name.
  """

  device: str
  processor: str
  cores: int
  versions: dict[str, str]


def machine() -> Machine:
  """Returns the description of this machine."""
  return {
    'device': jax.devices()[0].device_kind,
    'processor': _processor(),
    'cores': devices.num_cores(),
    'versions': versions(),
  }


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the installed packages, by name."""
  found = {'python': platform.python_version()}
  for package in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  return found


def _processor() -> str:
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.exists():
    for line in cpuinfo.read_text().splitlines():
      if line.startswith('model name'):
        return line.split(':', 1)[1].strip()
  return platform.processor()
