"""Searches that are killed repeatedly, compared with uninterrupted ones.

  python -m benchmarks.soak [--kills=100] [--out=FILE] [--config.FIELD=VALUE ...]

The digits search of a seed runs once without interruption. Then it runs in another
directory, where it is killed (SIGKILL) at random moments and resumed until it finishes;
then the next seed follows, until there were enough kills. After each kill, every
evaluation recorded before it must still be on disk; at the end, events (except for
`seconds`), weights and result must equal those of the uninterrupted search.
"""

import argparse
import hashlib
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import common

ROOT = pathlib.Path(__file__).parent.parent


def start(workdir: pathlib.Path, seed: int, overrides: list[str]) -> subprocess.Popen:
  """Starts or resumes a search."""
  return subprocess.Popen(
    [
      sys.executable,
      str(ROOT / 'run_evolution.py'),
      f'--workdir={workdir}',
      f'--config.seed={seed}',
      *overrides,
    ],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def run_undisturbed(
  workdir: pathlib.Path, seed: int, overrides: list[str]
) -> tuple[float, float]:
  """Runs a search; returns the seconds until its first event and until its end."""
  begin, first = time.monotonic(), 0.0
  process = start(workdir, seed, overrides)
  while process.poll() is None:
    time.sleep(0.02)
    if not first and read_events(workdir):
      first = time.monotonic() - begin
  if process.returncode:
    raise SystemExit(f'the uninterrupted search failed: {process.communicate()[1]}')
  return first, time.monotonic() - begin


def read_events(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the complete lines of events.jsonl, without durations."""
  path = workdir / 'events.jsonl'
  if not path.exists():
    return []
  lines = path.read_bytes().split(b'\n')[:-1]
  return [{**json.loads(line), 'seconds': None} for line in lines]


def contents(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns what must be equal: events, digests of the weights, and the result."""

  def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
      return {k: without_seconds(v) for k, v in value.items() if k != 'seconds'}
    if isinstance(value, list):
      return [without_seconds(item) for item in value]
    return value

  return {
    'events': read_events(workdir),
    'weights': {
      path.name: hashlib.sha256(path.read_bytes()).hexdigest()
      for path in sorted((workdir / 'weights').iterdir())
    },
    'result': without_seconds(json.loads((workdir / 'result.json').read_text())),
  }


def run_with_kills(
  workdir: pathlib.Path, seed: int, overrides: list[str], longest: float
) -> tuple[int, int]:
  """Kills a search until it finishes; returns the kills, and the kills with loss.

  Args:
    workdir: Its run directory.
    seed: Of the search, and of the moments.
    overrides: Flags of the search.
    longest: Seconds after which it is killed at the latest. They grow where a start
      gets nothing done, as on a machine that has become busier.
  """
  rng = random.Random(seed)
  kills = lost = recorded = 0
  while True:
    process = start(workdir, seed, overrides)
    try:
      _, stderr = process.communicate(timeout=rng.uniform(0, longest))
    except subprocess.TimeoutExpired:
      before = read_events(workdir)
      process.kill()
      process.communicate()
      kills += 1
      lost += read_events(workdir)[: len(before)] != before
      if len(before) <= recorded:
        longest *= 1.05
      recorded = len(before)
      continue
    if process.returncode:
      raise SystemExit(f'after {kills} kills the search failed: {stderr}')
    return kills, lost


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0],
    epilog='Further flags, as --config.FIELD=VALUE, go to the searches.',
  )
  parser.add_argument('--kills', type=int, default=100)
  parser.add_argument('--out', type=common.path, help='JSON file for the figures')
  args, overrides = parser.parse_known_args()
  rows: list[list[Any]] = []
  while sum(row[1] for row in rows) < args.kills:
    seed = len(rows)
    with tempfile.TemporaryDirectory() as directory:
      uninterrupted = pathlib.Path(directory, 'uninterrupted')
      killed = pathlib.Path(directory, 'killed')
      first, total = run_undisturbed(uninterrupted, seed, overrides)
      # Long enough to record some evaluations, short enough for many kills.
      longest = first + 0.2 * (total - first)
      kills, lost = run_with_kills(killed, seed, overrides, longest)
      same = contents(uninterrupted) == contents(killed)
      num_evaluations = len(read_events(killed))
    rows.append([seed, kills, num_evaluations, lost, 'yes' if same else 'NO'])
    print(*rows[-1], flush=True)
  header = ['seed', 'kills', 'evaluations', 'kills that lost any', 'same at the end']
  common.write_json(args.out, {'header': header, 'rows': rows})
  common.print_table(header, rows)
  if any(row[3] or row[4] != 'yes' for row in rows):
    raise SystemExit('a killed search differs from the uninterrupted one')


if __name__ == '__main__':
  main()
