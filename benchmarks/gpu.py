"""What a GPU does, in one command: the most important figure comes first.

  python -m benchmarks.gpu --out=DIR [--data_dir=DIR] [--limit_s=480] [--parts=...]
  python -m benchmarks.gpu --out=DIR --tiny  # Do all parts run? Also on a CPU.

The parts, in order; each writes DIR/<part>.json as it goes, and has a time limit:
  search_float32   76 of 512 epochs of the paper's search on CIFAR-10, with TF32
  search_bfloat16  the same with `compute_dtype=bfloat16`
  beside_torch     a small search, and PyTorch training the same networks (search_speed)
  beside_tracing   a step of tiny networks beside a thread that traces (beside_tracing)
  determinism      a search on digits twice, with two empty compilation caches
  blocks           single blocks under sets of XLA's options, and strided ones with and
                   without even padding (blocks)
  concurrent       1, 2 and 4 processes of a small search at once
  training         a training step beside PyTorch's, `torch.compile` off and on, float32
                   (TF32 allowed for both) and bfloat16 (training_speed)
A part that fails, is cut off or no longer fits is reported so; the others go on. The
output of all processes goes to DIR/log.txt.
"""

import argparse
from collections.abc import Callable, Sequence
import functools
import json
import os
import pathlib
import shutil
import signal
import statistics
import sys
import tempfile
import time
from typing import Any

from benchmarks import beside_tracing, blocks, common, search_figures
from benchmarks.gpu_session import (
  DIGITS,
  TINY_EPOCHS,
  TINY_SEARCH,
  Session,
  describe_machine,
)

# ------------------------------------------------------------------------------
# The parts
# ------------------------------------------------------------------------------


def paper_search(dtype: str, session: Session) -> str:
  """Runs the beginning of the paper's search."""
  part = name = f'search_{dtype}'
  flags = ['--config=configs/cifar10.py', f'--config.compute_dtype={dtype}']
  command = session.search(name, f'xla_{dtype}', flags, epochs=76)
  if session.args.tiny:
    command.append(flags[-1])
  start = time.monotonic()

  def record() -> None:
    seconds = time.monotonic() - start
    figures = search_figures.summarize(session.events(name), seconds)
    session.write(part, {'dtype': dtype, **figures})

  (process,) = session.run(command, on_wait=record)
  figures = search_figures.summarize(session.events(name), process.seconds)
  session.write(part, {'dtype': dtype, 'outcome': process.outcome, **figures})
  rows: list[Sequence[Any]] = [
    *((key, value) for key, value in figures.items() if not isinstance(value, dict)),
    *((f'phase {key}, s', value) for key, value in figures['phases'].items()),
    *figures.get('extrapolation', {}).items(),
  ]
  common.print_table(['', dtype], rows)
  return process.outcome


def beside_torch(session: Session) -> str:
  """Runs a small search, and PyTorch interleaved with it."""
  path = session.out / 'beside_torch.json'
  flags, epochs = ['--config=configs/cifar10_small.py'], 48
  if session.args.tiny:
    flags, epochs = list(TINY_SEARCH), TINY_EPOCHS
  command = [sys.executable, '-m', 'benchmarks.search_speed', '--searches=cold']
  # The two share the GPU, and neither may take all of its memory.
  (process,) = session.run(
    [*command, f'--out={path}', *session.with_budget(flags, epochs)],
    XLA_PYTHON_CLIENT_PREALLOCATE='false',
  )
  if path.exists():
    content = json.loads(path.read_text())
    figures = content['rounds'][0]['cold']
    session.write('beside_torch', {'outcome': process.outcome, **content})
    common.print_table(
      [
        'ours, s',
        'PyTorch, s',
        'PyTorch / ours',
        'of ours: evaluations, s',
        'train, s',
      ],
      [
        [
          figures['seconds'],
          figures.get('torch', {}).get('seconds', '-'),
          figures.get('ratio', '-'),
          figures['phases']['total'],
          figures['phases']['train'],
        ]
      ],
    )
  return process.outcome


def step_beside_tracing(session: Session) -> str:
  """Times steps of tiny networks beside a thread that traces."""
  flag = '--tiny' if session.args.tiny else '--rounds=2'
  return _rows_of(session, 'beside_tracing', beside_tracing.table, flag)


def _rows_of(
  session: Session, name: str, table: Callable[[Any], None], *flags: str
) -> str:
  """Runs a benchmark that writes rows as they come, and prints them as a table."""
  path = session.out / f'{name}.json'
  command = [sys.executable, '-m', f'benchmarks.{name}', f'--out={path}', *flags]
  (process,) = session.run(command)
  if path.exists():
    rows = json.loads(path.read_text())['rows']
    session.write(name, {'outcome': process.outcome, 'rows': rows})
    table(rows)
  return process.outcome


_SMALL = ('--config=configs/cifar10_small.py',)
_SMALL_EPOCHS = 24


def determinism(session: Session) -> str:
  """Runs a search on digits twice at the same time, each with an empty cache."""
  names = ('first', 'second')
  processes = session.run(
    *(session.search(name, f'xla_{name}', [DIGITS], epochs=40) for name in names),
    XLA_PYTHON_CLIENT_MEM_FRACTION='0.4',
  )
  runs = [
    [{**event, 'seconds': None} for event in session.events(name)] for name in names
  ]
  pairs = list(zip(*runs))
  differing = [index for index, (one, other) in enumerate(pairs) if one != other]
  outcome = max((process.outcome for process in processes), key=_OUTCOMES.index)
  figures = {
    'outcome': outcome,
    'evaluations': len(pairs),
    'equal': len(pairs) - len(differing),
    'first_difference': differing[0] if differing else None,
    'fitness': [[event['fitness'] for event in run] for run in runs],
  }
  session.write('determinism', figures)
  common.print_table(
    ['evaluations', 'equal events', 'first difference'],
    [[figures['evaluations'], figures['equal'], figures['first_difference']]],
  )
  return outcome


def block_options(session: Session) -> str:
  """Times single blocks under sets of options."""
  return _rows_of(session, 'blocks', blocks.table, *['--tiny'] * session.args.tiny)


def concurrent(session: Session) -> str:
  """Runs the same small search in 1, 2 and 4 processes at once.

  The programs are in the cache, so that the time is that of processes that train.
  """
  counts = (1, 2) if session.args.tiny else (1, 2, 4)
  rows: list[dict[str, Any]] = []
  outcome = 'complete'
  for count in (1, *counts):  # The first fills the cache.
    names = [f'concurrent{len(rows)}_{count}_{index}' for index in range(count)]
    cache = 'xla_concurrent'
    fraction = f'{0.9 / count:.2f}'
    processes = session.run(
      *(session.search(name, cache, _SMALL, _SMALL_EPOCHS) for name in names),
      XLA_PYTHON_CLIENT_MEM_FRACTION=fraction,
    )
    outcome = max((process.outcome for process in processes), key=_OUTCOMES.index)
    if outcome != 'complete':
      break
    totals = [sum(e['seconds']['total'] for e in session.events(n)) for n in names]
    row = {
      'processes': count,
      'seconds': max(process.seconds for process in processes),
      'evaluations_seconds': statistics.mean(totals),
    }
    # Of the cache that was empty, and of the one full.
    alone = rows[1] if len(rows) > 1 else row
    for key in ('seconds', 'evaluations_seconds'):
      row[f'throughput_by_{key}'] = count * alone[key] / row[key]
    rows.append(row)
    session.write(
      'concurrent', {'outcome': outcome, 'empty': rows[0], 'rows': rows[1:]}
    )
  if rows[1:]:
    common.print_table(list(rows[0]), [list(row.values()) for row in rows[1:]])
  return outcome


def training_step(session: Session) -> str:
  """Times a training step beside PyTorch's."""
  networks = ['evolved7', 'mid', 'small']
  flags = ['--steps_per_epoch=88', '--round_seconds=0.3']
  if session.args.tiny:
    networks, flags = ['small'], ['--batch_size=16', '--round_seconds=0.01']
  results, rows, outcome = {}, [], 'complete'
  for network in networks:
    for dtype in blocks.DTYPES:
      path = session.work / f'{network}_{dtype}.json'
      command = [sys.executable, '-m', 'benchmarks.training_speed', f'--out={path}']
      command += [f'--network={network}', f'--dtype={dtype}', '--rounds=3', *flags]
      (process,) = session.run(command, XLA_PYTHON_CLIENT_PREALLOCATE='false')
      outcome = max(outcome, process.outcome, key=_OUTCOMES.index)
      if process.outcome == 'cut off':
        return outcome
      if path.exists():
        result = json.loads(path.read_text())['networks'][network]
        results[f'{network} {dtype}'] = result
        seconds = {key: value['median'] for key, value in result['seconds'].items()}
        ratios = {key: value['median'] for key, value in result['ratios'].items()}
        keys = ('torch', 'compiled')
        row = [
          network,
          dtype,
          seconds['jax'] * 1e3,
          *(ratios.get(k, '-') for k in keys),
        ]
        rate = result['gflops_per_second']['median'] / 1e3
        rows.append([*row, rate, result['share_of_matmul']['median']])
      session.write('training', {'outcome': outcome, 'steps': results})
  header = ['network', 'dtype', 'ours, ms', 'PyTorch / ours', 'compiled PyTorch / ours']
  if rows:
    common.print_table([*header, 'TFLOP/s', 'share of matmul'], rows)
  return outcome


# ------------------------------------------------------------------------------
# The whole
# ------------------------------------------------------------------------------

_OUTCOMES = ('complete', 'failed', 'cut off')

# Name -> the part, the seconds that it needs to begin with, and those it is cut off at.
PARTS: dict[str, tuple[Callable[[Session], str], float, float]] = {
  'search_float32': (functools.partial(paper_search, 'float32'), 40, 150),
  'search_bfloat16': (functools.partial(paper_search, 'bfloat16'), 40, 110),
  'beside_torch': (beside_torch, 40, 80),
  'beside_tracing': (step_beside_tracing, 20, 60),
  'determinism': (determinism, 25, 50),
  'blocks': (block_options, 15, 90),
  'concurrent': (concurrent, 35, 70),
  'training': (training_step, 30, 90),
}


def run_part(name: str, session: Session, end: float) -> str:
  """Runs a part if enough time is left; returns how it ended.

  Args:
    name: Its name.
    session: What the parts share.
    end: When the whole has to end, on `time.monotonic`.
  """
  part, least, most = PARTS[name]
  start = time.monotonic()
  left = end - start
  if left < least:
    return f'skipped: {max(0, left):.0f} s left, wants {least:.0f}'
  # Tiny parts are about whether they end, on a machine of any speed.
  session.deadline = start + (left if session.args.tiny else min(most, left))
  print(f'\n## {name}', flush=True)
  logged = session.log.tell()
  try:
    outcome = part(session)
  except Exception as error:  # The other parts go on.
    outcome = f'failed: {type(error).__name__}: {error}'
  if outcome != 'complete':
    session.log.flush()
    text = (session.out / 'log.txt').read_bytes()[logged:].decode(errors='replace')
    print('\n'.join(text.splitlines()[-8:]))
  return f'{outcome}, {time.monotonic() - start:.0f} s'


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--out', type=common.path, required=True, help='directory for the figures'
  )
  parser.add_argument('--parts', default=','.join(PARTS), help='which, in order')
  parser.add_argument('--limit_s', type=float, default=480, help='of the whole')
  parser.add_argument(
    '--data_dir', type=common.path, help='TFDS data folder of the searches'
  )
  parser.add_argument('--tiny', action='store_true', help='small searches and blocks')
  args = parser.parse_args()
  end = time.monotonic() + args.limit_s
  names = args.parts.split(',')
  if unknown := set(names) - PARTS.keys():
    parser.error(f'--parts: got {", ".join(unknown)}, want some of {", ".join(PARTS)}')
  if args.data_dir:
    args.data_dir = os.path.abspath(args.data_dir)
  # Ended from outside, it ends its processes.
  signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
  out = pathlib.Path(args.out).absolute()
  out.mkdir(parents=True, exist_ok=True)
  machine = describe_machine()
  print(json.dumps(machine))
  work = pathlib.Path(tempfile.mkdtemp(prefix='gpu_benchmark'))
  try:
    with (out / 'log.txt').open('w') as log:
      session = Session(args, machine, out, work, log)
      outcomes = {}
      for name in names:
        outcomes[name] = run_part(name, session, end)
        print(f'{name}: {outcomes[name]}', flush=True)
    print()
    common.print_table(['part', 'outcome'], list(outcomes.items()))
  finally:
    shutil.rmtree(work, ignore_errors=True)


if __name__ == '__main__':
  main()
