"""A whole search, beside PyTorch training the same networks.

  python -m benchmarks.search_speed [--config=configs/cifar10_small.py] [--out=FILE]

Three searches, one after another, each a process timed from its start to its end:
  cold    a search with an empty compilation cache
  warm    the same search again, with the cache of the first
  second  another seed with that cache, as the next run of a study would find it
Beside each of them `benchmarks/torch_replay.py` trains the same networks: the same
data, the same number of steps, its parent's weights. The two take turns, network by
network: a machine that is slower for some minutes is slower for both. While it is not
its turn the search is stopped, all of its threads, and so is its clock.

Completion is left out. The ratio is PyTorch's time to ours, above 1 we are faster.
`--searches=cold` runs the first alone; `--rounds=3` runs all of them three times.
"""

import argparse
from collections.abc import Callable
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import common
from lamarck_jax.runtime import environment

_ROOT = pathlib.Path(__file__).parent.parent
_SEEDS = {'cold': 0, 'warm': 0, 'second': 1}


class TorchReplay:
  """PyTorch's process, which trains a network when told to.

  Attributes:
    seconds: The time it has taken so far, from its start.
  """

  def __init__(self, workdir: str):
    """Starts it, with the configuration of a run directory."""
    start = time.perf_counter()
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'benchmarks.torch_replay', workdir],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=_ROOT,
    )
    assert self._process.stdin and self._process.stdout
    self._input, self._output = self._process.stdin, self._process.stdout
    self._wait_for_a_line()
    self.seconds = time.perf_counter() - start

  def train(self, event: str) -> None:
    """Trains and evaluates the network of an event, and waits for the end."""
    start = time.perf_counter()
    self._input.write(event + '\n')
    self._input.flush()
    self._wait_for_a_line()
    self.seconds += time.perf_counter() - start

  def end(self) -> float:
    """Ends it; returns its greatest resident memory in MB."""
    self._input.close()
    _, status, usage = os.wait4(self._process.pid, 0)
    if status:
      raise SystemExit('PyTorch failed')
    return usage.ru_maxrss / 1024

  def _wait_for_a_line(self) -> None:
    if not self._output.readline():
      raise SystemExit('PyTorch ended early')


def measure(
  command: list[str],
  workdir: str,
  with_torch: bool,
  on_event: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
  """Runs a search that stops after every event, and PyTorch interleaved with it.

  Args:
    command: Starts the search.
    workdir: Its run directory.
    with_torch: Whether PyTorch trains the same networks.
    on_event: Called after every event with the figures so far.
  """
  events = pathlib.Path(workdir, 'events.jsonl')
  replay, stopped = None, 0.0
  start = time.perf_counter()
  search = subprocess.Popen(
    command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=_ROOT
  )
  try:
    while True:
      _, status, usage = os.wait4(search.pid, os.WUNTRACED)
      if not os.WIFSTOPPED(status):
        break
      turn = time.perf_counter()
      if with_torch:
        replay = replay or TorchReplay(workdir)
        replay.train(events.read_text().splitlines()[-1])
      so_far = _figures(events, turn - start - stopped, replay)
      on_event({'incomplete': True, **so_far})
      stopped += time.perf_counter() - turn
      search.send_signal(signal.SIGCONT)
  except BaseException:
    search.kill()  # Or it would stay stopped for ever.
    raise
  seconds = time.perf_counter() - start - stopped
  if status:
    raise SystemExit(f'failed: {" ".join(command)}')
  result = _figures(events, seconds, replay)
  result['peak_memory_mb'] = usage.ru_maxrss / 1024
  if replay:
    result['torch']['peak_memory_mb'] = replay.end()
  return result


def _figures(
  events: pathlib.Path, seconds: float, replay: TorchReplay | None
) -> dict[str, Any]:
  sums = phases(events)
  result: dict[str, Any] = {
    'seconds': seconds,
    'phases': sums,
    'share_compiling': sums['compile'] / seconds,
  }
  if replay:
    result['torch'] = {'seconds': replay.seconds}
    result['ratio'] = replay.seconds / seconds
  return result


def phases(events: pathlib.Path) -> dict[str, float]:
  """Returns the seconds of each phase, summed over the events of a run."""
  sums: dict[str, float] = {}
  for line in events.read_text().splitlines():
    for phase, seconds in json.loads(line)['seconds'].items():
      sums[phase] = sums.get(phase, 0) + seconds
  return sums


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0],
    epilog='Further flags, as --config.FIELD=VALUE, go to the searches.',
  )
  parser.add_argument('--config', default='configs/cifar10_small.py')
  parser.add_argument('--searches', default=','.join(_SEEDS), help='Which, in order.')
  parser.add_argument('--rounds', type=int, default=1)
  parser.add_argument('--out', type=common.path, help='JSON file for the figures')
  args, overrides = parser.parse_known_args()
  names = args.searches.split(',')
  with_torch = 'torch' in environment.versions()
  rounds: list[dict[str, Any]] = []

  def record(name: str, figures: dict[str, Any]) -> None:
    rounds[-1][name] = figures
    content = {'config': args.config, 'overrides': overrides, 'rounds': rounds}
    common.write_json(args.out, content)

  for _ in range(args.rounds):
    rounds.append({})
    with tempfile.TemporaryDirectory() as directory:
      for name in names:
        workdir = os.path.join(directory, name)
        command = [
          sys.executable,
          *('-m', 'benchmarks.stopping_search'),
          f'--config={args.config}',
          f'--workdir={workdir}',
          f'--xla_cache_dir={directory}/xla',
          '--config.completion.enabled=false',
          f'--config.seed={_SEEDS[name]}',
          *overrides,
        ]
        on_event = functools.partial(record, name)
        record(name, measure(command, workdir, with_torch, on_event))
        print(name, json.dumps(rounds[-1][name]), flush=True)

  def median(name: str, *keys: str) -> Any:
    values: list[Any] = [result[name] for result in rounds]
    for key in keys:
      values = [value.get(key, {}) for value in values]
    return common.summary(values)['median'] if values[0] != {} else '-'

  columns = [
    ('seconds',),
    ('torch', 'seconds'),
    ('ratio',),
    ('share_compiling',),
    ('peak_memory_mb',),
    ('torch', 'peak_memory_mb'),
  ]
  common.print_table(
    ['run', 'ours, s', 'PyTorch, s', 'ratio', 'compiling', 'MB', 'PyTorch, MB', 'n'],
    [
      [name, *(median(name, *column) for column in columns), args.rounds]
      for name in names
    ],
  )


if __name__ == '__main__':
  main()
