"""A whole search, beside PyTorch training the same networks.

  python -m benchmarks.search_speed [--config=configs/cifar10_small.py] [--out=FILE]

Four processes, one after another, each timed from its start to its end:
  cold    a search with an empty compilation cache
  warm    the same search again, with the cache of the first
  second  another seed with that cache, as the next run of a study would find it
  torch   benchmarks/torch_replay.py on the networks of the first: the same data, the
          same number of steps, its parent's weights
Completion is left out. The ratios are PyTorch's time to ours, above 1 we are faster.
Give --rounds for more than one round of the four.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import common
from lamarck_jax import environment


def timed(command: list[str]) -> tuple[float, float]:
  """Runs a command; returns its seconds and its greatest resident memory in MB."""
  start = time.perf_counter()
  process = subprocess.Popen(
    command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )
  _, status, usage = os.wait4(process.pid, 0)
  seconds = time.perf_counter() - start
  if status:
    raise SystemExit(f'failed: {" ".join(command)}')
  return seconds, usage.ru_maxrss / 1024


def phases(workdir: str) -> dict[str, float]:
  """Returns the seconds of each phase, summed over the events of a run."""
  sums: dict[str, float] = {}
  for line in pathlib.Path(workdir, 'events.jsonl').read_text().splitlines():
    for phase, seconds in json.loads(line)['seconds'].items():
      sums[phase] = sums.get(phase, 0) + seconds
  return sums


def measure(config: str, overrides: list[str], directory: str) -> dict[str, Any]:
  """Runs the four processes once."""
  root = pathlib.Path(__file__).parent.parent
  results: dict[str, Any] = {}
  for name, seed in (('cold', 0), ('warm', 0), ('second', 1)):
    workdir = os.path.join(directory, name)
    seconds, memory = timed(
      [
        sys.executable,
        str(root / 'run_evolution.py'),
        f'--config={config}',
        f'--workdir={workdir}',
        f'--xla_cache_dir={directory}/xla',
        '--config.completion.enabled=false',
        f'--config.seed={seed}',
        *overrides,
      ]
    )
    sums = phases(workdir)
    results[name] = {
      'seconds': seconds,
      'peak_memory_mb': memory,
      'phases': sums,
      'share_compiling': sums['compile'] / seconds,
    }
    print(name, json.dumps(results[name]), flush=True)
  if 'torch' in environment.versions():
    seconds, memory = timed(
      [sys.executable, '-m', 'benchmarks.torch_replay', os.path.join(directory, 'cold')]
    )
    results['torch'] = {'seconds': seconds, 'peak_memory_mb': memory}
    print('torch', json.dumps(results['torch']), flush=True)
  return results


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0],
    epilog='Further flags, as --config.FIELD=VALUE, go to the searches.',
  )
  parser.add_argument('--config', default='configs/cifar10_small.py')
  parser.add_argument('--rounds', type=int, default=1)
  parser.add_argument('--out', help='JSON file for the figures')
  args, overrides = parser.parse_known_args()
  rounds = []
  for _ in range(args.rounds):
    with tempfile.TemporaryDirectory() as directory:
      rounds.append(measure(args.config, overrides, directory))
  rows = []
  for name in rounds[0]:
    seconds = common.summary([result[name]['seconds'] for result in rounds])
    shares = [result[name].get('share_compiling') for result in rounds]
    ratio: Any = '-'
    if name in ('cold', 'warm') and 'torch' in rounds[0]:
      ratio = common.summary(
        [result['torch']['seconds'] / result[name]['seconds'] for result in rounds]
      )['median']
    rows.append(
      [
        name,
        seconds['median'],
        ratio,
        '-' if shares[0] is None else common.summary(shares)['median'],
        max(result[name]['peak_memory_mb'] for result in rounds),
        args.rounds,
      ]
    )
  common.write_json(args.out, {'config': args.config, 'rounds': rounds})
  common.print_table(
    ['run', 'seconds', 'PyTorch / ours', 'share compiling', 'peak MB', 'n'], rows
  )


if __name__ == '__main__':
  main()
