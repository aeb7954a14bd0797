"""What the parts of `benchmarks.gpu` share: processes, files and time limits."""

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any, TextIO

from lamarck_jax.run_directory import records
from lamarck_jax.runtime import devices, environment

_ROOT = pathlib.Path(__file__).parent.parent
_WITHOUT_COMPLETION = '--config.completion.enabled=false'
DIGITS = '--config=configs/digits.py'
TINY_SEARCH = (
  DIGITS,
  '--config.dataset.num_train=96',
  '--config.dataset.num_validation=50',
  '--config.epochs_per_evaluation=1',
  '--config.search_space.filters=(4,8)',
  '--config.search_space.kernel_sizes=(1,3)',
)
TINY_EPOCHS = 2


@dataclasses.dataclass(frozen=True)
class Process:
  """A process that has ended: its exit status, None if it was cut off; its seconds."""

  status: int | None
  seconds: float

  @property
  def outcome(self) -> str:
    """`complete`, `cut off` or `failed`."""
    return {0: 'complete', None: 'cut off'}.get(self.status, 'failed')


@dataclasses.dataclass
class Session:
  """What the parts share.

  Attributes:
    args: The flags.
    machine: Its description, for the files.
    out: Directory of the results.
    work: Directory of run directories and compilation caches.
    log: Takes what the processes print.
    deadline: When the part in progress is cut off, on `time.monotonic`.
  """

  args: argparse.Namespace
  machine: Mapping[str, Any]
  out: pathlib.Path
  work: pathlib.Path
  log: TextIO
  deadline: float = 0.0

  def write(self, part: str, content: Mapping[str, Any]) -> None:
    """Writes the figures of a part."""
    text = json.dumps({'machine': self.machine, **content}, indent=2)
    (self.out / f'{part}.json').write_text(text + '\n')

  def search(
    self, name: str, cache: str, flags: Sequence[str], epochs: int
  ) -> list[str]:
    """Returns the command of a search without completion, with its own directory."""
    if self.args.tiny:
      flags, epochs = TINY_SEARCH, TINY_EPOCHS
    command = [sys.executable, 'run_evolution.py', f'--workdir={self.work / name}']
    command.append(f'--xla_cache_dir={self.work / cache}')
    return [*command, *self.with_budget(flags, epochs), _WITHOUT_COMPLETION]

  def with_budget(self, flags: Sequence[str], epochs: int) -> list[str]:
    """Returns the flags of a search, and those of its budget and data."""
    budget = [f'--config.budget_epochs={epochs}']
    budget.append(f'--config.checkpoint_epochs=({epochs},)')
    if self.args.data_dir and DIGITS not in flags:  # They are not read from disk.
      budget.append(f'--config.dataset.data_dir={self.args.data_dir}')
    return [*flags, *budget]

  def run(
    self,
    *commands: Sequence[str],
    on_wait: Callable[[], None] = lambda: None,
    **variables: str,
  ) -> list[Process]:
    """Runs commands at the same time, until all have ended or the part is cut off.

    Args:
      commands: What is run.
      on_wait: Called about once a second meanwhile.
      variables: Further environment variables.
    """
    # `common` sets it for processes that share a GPU; a search has the GPU alone.
    inherited = {**os.environ, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'true'}
    start = time.monotonic()
    running = {
      index: subprocess.Popen(
        command,
        stdout=self.log,
        stderr=subprocess.STDOUT,
        cwd=_ROOT,
        env={**inherited, **variables},
        process_group=0,  # With their own processes they can be ended.
      )
      for index, command in enumerate(commands)
    }
    ended: dict[int, Process] = {}
    try:
      while running and time.monotonic() < self.deadline:
        for _ in range(10):
          for index, process in list(running.items()):
            if process.poll() is not None:
              seconds = time.monotonic() - start
              ended[index] = Process(running.pop(index).returncode, seconds)
          if running:
            time.sleep(0.1)
        on_wait()
    finally:
      for index, process in running.items():
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        ended[index] = Process(None, time.monotonic() - start)
    return [ended[index] for index in range(len(commands))]

  def events(self, name: str) -> list[dict[str, Any]]:
    """Returns the events of a search so far."""
    path = self.work / name
    return records.read_events(path) if (path / 'config.json').exists() else []


def describe_machine() -> dict[str, Any]:
  """Returns the machine's description, without starting JAX on a GPU."""
  if not devices.available_gpus():
    return dict(environment.machine())
  query = ['nvidia-smi', '--query-gpu=name,driver_version,memory.total']
  listing = subprocess.run([*query, '--format=csv,noheader'], capture_output=True)
  name, driver, memory = listing.stdout.decode().splitlines()[0].split(', ')
  return {
    'device': name,
    'driver': driver,
    'memory': memory,
    'cores': devices.num_cores(),
    'versions': environment.versions(),
  }
