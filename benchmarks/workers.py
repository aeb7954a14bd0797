"""A population trained by one process and by workers, interleaved.

  python -m benchmarks.workers [--config=configs/digits.py] [--rounds=3] [--out=FILE]

Searches, each a process timed from its start to its end:
  in_process  children one after another, in the process of the search
  1, 2, ...   that number of workers
  one_core    one worker, and the search itself, on one core (Linux's `taskset`)
  shared      in the process of the search, each batch shared by all cores
The order rotates from round to round. All but `shared`, which rounds differently, must
have the same events. Completion is left out. Further flags go to the searches, such as
--config.population.children=2. A ratio is the time of a search to that of the first one
in `--searches`, within a round.

With --cache=cold each search starts with an empty cache of compiled programs; with
warm, the default, an untimed search of each kind fills it.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import common
from lamarck_jax.runtime import devices

_ROOT = pathlib.Path(__file__).parent.parent
_DEFAULTS = (
  '--config.algorithm=population',
  '--config.budget_epochs=256',
  '--config.completion.enabled=false',
)


def measure(name: str, flags: list[str], directory: str, cache: str) -> dict[str, Any]:
  """Runs a search; returns its wall-clock seconds and its events.

  Args:
    name: Which of the searches.
    flags: Of all searches.
    directory: For the run directory, which must not be there yet.
    cache: Folder of compiled programs.
  """
  own = []
  if name == 'shared':
    own.append(f'--config.population.cores_per_child={devices.num_cores()}')
  elif name == 'one_core':
    own.append('--num_workers=1')
  elif name != 'in_process':
    own.append(f'--num_workers={name}')
  workdir = pathlib.Path(directory, name)
  command = [sys.executable, 'run_evolution.py', *flags, *own]
  if name == 'one_core':
    command = ['taskset', '--cpu-list', f'{devices.available_cores()[0]}', *command]
  start = time.perf_counter()
  subprocess.run(
    [*command, f'--workdir={workdir}', f'--xla_cache_dir={cache}'],
    cwd=_ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    check=True,
  )
  seconds = time.perf_counter() - start
  lines = (workdir / 'events.jsonl').read_text().splitlines()
  events = [{**json.loads(line), 'seconds': None} for line in lines]
  return {'seconds': seconds, 'events': events}


def run_round(
  names: list[str], flags: list[str], cache: str | None
) -> dict[str, dict[str, Any]]:
  """Runs the searches in an order; returns their figures.

  Args:
    cache: Folder of compiled programs; None: an empty one for each.
  """
  figures: dict[str, dict[str, Any]] = {}
  with tempfile.TemporaryDirectory() as directory:
    for name in names:
      own_cache = cache or str(pathlib.Path(directory, f'xla_{name}'))
      figures[name] = measure(name, flags, directory, own_cache)
  events = {name: found.pop('events') for name, found in figures.items()}
  events.pop('shared', None)
  if any(other != next(iter(events.values())) for other in events.values()):
    raise SystemExit(f'events: got different ones in {", ".join(events)}, want equal')
  return figures


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', default='configs/digits.py')
  parser.add_argument('--searches', default='1,2', help='Which; the first is the base.')
  parser.add_argument('--cache', choices=('warm', 'cold'), default='warm')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--out', type=common.path, help='JSON file for the figures')
  args, overrides = parser.parse_known_args()
  names = args.searches.split(',')
  flags = [f'--config={args.config}', *_DEFAULTS, *overrides]
  rounds: list[dict[str, dict[str, Any]]] = []
  with tempfile.TemporaryDirectory() as shared_cache:
    cache = shared_cache if args.cache == 'warm' else None
    if cache:
      run_round(names, flags, cache)
    for number in range(args.rounds):
      shift = number % len(names)
      rounds.append(run_round(names[shift:] + names[:shift], flags, cache))
      print(json.dumps(rounds[-1]), flush=True)
      content = {'config': args.config, 'overrides': overrides, 'cache': args.cache}
      common.write_json(args.out, {**content, 'rounds': rounds})
  rows = []
  for name in names:
    seconds = common.summary([found[name]['seconds'] for found in rounds])
    ratio = common.summary(
      [found[name]['seconds'] / found[names[0]]['seconds'] for found in rounds]
    )
    spread = f'{ratio["min"]:.2f} to {ratio["max"]:.2f}'
    rows.append([name, seconds['median'], ratio['median'], spread])
  header = ['search', 'seconds', f'to {names[0]}', 'spread', 'n']
  common.print_table(header, [[*row, args.rounds] for row in rows])


if __name__ == '__main__':
  main()
