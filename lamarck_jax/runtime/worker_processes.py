"""What worker processes on one machine share: its cores and GPUs, and their end."""

from collections.abc import Mapping, Sequence
import multiprocessing
import os
import signal
import threading

import jax

from lamarck_jax.runtime import gpu_sharing


def resources(
  num_workers: int, cores: Sequence[int], gpus: Sequence[str]
) -> list[tuple[list[int], dict[str, str]]]:
  """Divides the cores and GPUs of a machine among workers.

  Args:
    num_workers: Number of workers.
    cores: Numbers of the available cores.
    gpus: Identifiers of the available GPUs, as CUDA_VISIBLE_DEVICES takes them.

  Returns:
    For each worker its cores, and the environment variables that give it JAX's platform
    and a GPU, or one thread where workers share cores.
  """
  cores_per_worker = max(1, len(cores) // num_workers)
  workers = []
  for worker in range(num_workers):
    environment = {}
    if platforms := jax.config.jax_platforms:  # type: ignore[attr-defined]
      # A program may have set it, of which a new process would know nothing.
      environment['JAX_PLATFORMS'] = platforms
    if gpus:
      workers_per_gpu = -(-num_workers // len(gpus))
      environment['CUDA_VISIBLE_DEVICES'] = gpus[worker % len(gpus)]
      environment |= gpu_sharing.memory_share(workers_per_gpu)
    first = worker * len(cores) // num_workers
    share = list(cores[first : first + cores_per_worker])
    if num_workers > len(cores):
      # Confined to one core each, two could take turns while another core is idle.
      share, environment['PJRT_NPROC'] = list(cores), '1'
    workers.append((share, environment))
  return workers


def initialise(environment: Mapping[str, str]) -> None:
  """Makes this process, started by `multiprocessing`, a worker of its parent.

  Args:
    environment: Variables that JAX finds when it initialises, so this comes first.
  """
  os.environ.update(environment)
  if 'JAX_PLATFORMS' in environment:  # JAX has been imported, and has read its own.
    jax.config.update('jax_platforms', environment['JAX_PLATFORMS'])
  # Both reach the whole process group; the parent decides what ends.
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C.
  signal.signal(signal.SIGHUP, signal.SIG_IGN)  # A closed terminal.
  parent = multiprocessing.parent_process()
  assert parent is not None

  # Also after kill -9 of the parent, which could end nobody.
  def end_with_parent() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()
