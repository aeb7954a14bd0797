"""How a program joins a Ray cluster, and what its processes there are given."""

from collections.abc import Mapping
import logging
import signal
import socket
import threading
from types import ModuleType

from lamarck_jax.errors import UserError
from lamarck_jax.runtime import gpu_sharing


def join(address: str | None, needed: Mapping[str, float], what: str) -> ModuleType:
  """Joins a cluster, or starts one on this machine.

  Args:
    address: As `ray.init` takes it; None starts a cluster on this machine, unless the
      environment variable RAY_ADDRESS names one.
    needed: Resources that each process asks for, `CPU` and `GPU`; too few are logged.
    what: Name of such a process in that line.

  Returns:
    The module `ray`.

  Raises:
    UserError: If Ray is not installed, or the cluster cannot be reached.
  """
  try:
    import ray
  except ImportError as error:
    raise UserError(
      "engine: got 'ray', want Ray installed: pip install -e '.[ray]'"
    ) from error
  try:
    if address and ':' in address:  # Ray would retry for minutes.
      host, _, port = address.removeprefix('ray://').rpartition(':')
      socket.create_connection((host, int(port)), timeout=10).close()
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
    if threading.current_thread() is threading.main_thread():
      signal.signal(signal.SIGTERM, handler)  # Ray has set its own.
  except (ConnectionError, OSError, ValueError) as error:
    raise UserError(
      f'ray_address: got {address!r}, want that of a running cluster: {error}'
    ) from error
  # Only a warning: nodes may still join the cluster.
  for resource, number in needed.items():
    available = ray.cluster_resources().get(resource, 0)
    if available < number:
      logging.warning(
        '%s asks for %g %s, but the cluster has %g now',
        what,
        number,
        resource,
        available,
      )
  return ray


def environment(cpus: float, gpus: float) -> dict[str, str]:
  """Returns the environment variables of a process on Ray, which chooses cores and GPU.

  Args:
    cpus: CPUs that it asks for.
    gpus: GPUs that it asks for; below 1 it shares one with other processes.
  """
  variables = {'PJRT_NPROC': str(max(1, int(cpus)))}
  if 0 < gpus < 1:
    variables |= gpu_sharing.memory_share(1 / gpus)
  return variables
