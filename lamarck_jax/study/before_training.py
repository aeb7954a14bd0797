"""How much of their parents' accuracy children keep before they are trained.

  python -m lamarck_jax.study.before_training DIR

DIR is a study's directory. Section 5 of the paper asks how inheritance might do better;
before training, the best that it can do is to keep the parent's accuracy.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib

from absl import logging
import numpy as np

from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import records
from lamarck_jax.runtime import command_line
from lamarck_jax.study import checked_files, tables

# The shape of images, for runs that do not record it.
_DEFAULT_SHAPE = (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class AccuracyDrops:
  """The children that one operator made in one setting.

  Attributes:
    setting: Name of the setting.
    operator: As in `mutation.OPERATORS`; several where mutations piled up.
    preservable: Whether the children can compute exactly the parents' functions
      (`can_preserve_function`).
    drops: Validation accuracy of each parent less that of its child before training.
  """

  setting: str
  operator: str
  preservable: bool
  drops: tuple[float, ...]


def collect(root: pathlib.Path) -> list[AccuracyDrops]:
  """Reads the events of a study's runs, finished or not.

  Args:
    root: Directory of the study.

  Returns:
    The children by setting and operator, except those that failed before training. A
    run that cannot be read is left out, with a warning.

  Raises:
    UserError: If there is no run.
  """
  paths = sorted(path.parent for path in root.glob('*/seed*/config.json'))
  if not paths:
    raise UserError(f'study: got {root}, want a study with runs')
  found: dict[tuple[str, str, bool], list[float]] = {}
  for path in paths:
    try:
      events, channels = checked_files.read_events(path), _num_channels(path)
    except UserError as error:
      logging.warning('%s is left out: %s', path, error)
      continue
    for event in events:
      if event['parent'] is None or event.get('fitness_at_birth') is None:
        continue
      parent = events[event['parent']]
      before, after = map(Genotype.from_json, (parent, event))
      preservable = can_preserve_function(before, after, channels)
      key = (path.parent.name, ' + '.join(event['mutation']), preservable)
      drop = parent['fitness'] - event['fitness_at_birth']
      found.setdefault(key, []).append(drop)
  return [AccuracyDrops(*key, tuple(drops)) for key, drops in sorted(found.items())]


def _num_channels(path: pathlib.Path) -> int:
  """Returns the number of channels of a run's images."""
  match records.read_environment(path):
    case {'dataset': {'image_shape': [*_, int(channels)]}}:
      return channels
  return _DEFAULT_SHAPE[-1]


def can_preserve_function(parent: Genotype, child: Genotype, channels: int) -> bool:
  """Returns whether a child can compute exactly what its parent does.

  Args:
    child: A mutant of the parent.
    channels: Number of channels of the images.
  """
  removed = {block.lineage: block for block in parent.blocks}
  inputs = 2 * channels  # A first block has to pass on both halves of the images.
  for block in child.blocks:
    old = removed.pop(block.lineage, None)
    if old is None:
      exact = block.filters >= inputs
    else:
      wider = block.filters >= old.filters and block.kernel_size >= old.kernel_size
      exact = wider and block.stride == old.stride
    if not exact:
      return False
    inputs = block.filters
  return not removed


def table(groups: Sequence[AccuracyDrops]) -> str:
  """Returns the drops in points of accuracy as a Markdown table, by operator."""
  settings = sorted({group.setting for group in groups})
  by_kind: Mapping[tuple[str, bool, str], AccuracyDrops] = {
    (group.setting, group.preservable, group.operator): group for group in groups
  }
  rows: list[list[str]] = []
  # Those that can preserve the function first.
  for lossy, operator in sorted({(not g.preservable, g.operator) for g in groups}):
    row = [operator.replace('_', ' '), 'no' if lossy else 'yes']
    for setting in settings:
      group = by_kind.get((setting, not lossy, operator))
      row.append(_cell(group.drops if group else ()))
    rows.append(row)
  for preservable in (True, False):
    row = ['all of these', 'yes' if preservable else 'no']
    for setting in settings:
      kind = (setting, preservable)
      chosen = [g.drops for g in groups if (g.setting, g.preservable) == kind]
      row.append(_cell([drop for drops in chosen for drop in drops]))
    rows.append(row)
  return tables.markdown(['operator', 'function preservable', *settings], rows)


def _cell(drops: Sequence[float]) -> str:
  if not drops:
    return '-'
  low, median, high = 100 * np.quantile(drops, (0.25, 0.5, 0.75))
  return f'{median:.1f} ({low:.1f} to {high:.1f}), n = {len(drops)}'


def main(argv: list[str]) -> None:
  """Prints the table of a study."""
  if len(argv) != 2:
    raise UserError(
      f'arguments: got {len(argv) - 1}, want one, the directory of a study'
    )
  print(
    'Median drop of validation accuracy before training, in points, with quartiles:'
    '\n\n' + table(collect(pathlib.Path(argv[1])))
  )


if __name__ == '__main__':
  command_line.run(main)
