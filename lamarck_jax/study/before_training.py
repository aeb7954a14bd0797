"""What children keep of their parents' accuracy before they are trained.

  python -m lamarck_jax.study.before_training DIR

DIR is a study's directory. Section 5 of the paper asks how inheritance might do better;
a child that starts at its parent's accuracy is the most it can do.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib

import numpy as np

from lamarck_jax import net2net
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import records
from lamarck_jax.runtime import command_line
from lamarck_jax.study import analysis

# Of runs that do not say.
_DEFAULT_SHAPE = (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class Births:
  """Children of one setting made by one operator.

  Attributes:
    setting: Name of the setting.
    operator: As in `mutation.OPERATORS`; several where mutations piled up.
    exact: Whether they could compute just what their parents do (`net2net.is_exact`).
    losses: Their parents' validation accuracy less their own at birth.
  """

  setting: str
  operator: str
  exact: bool
  losses: tuple[float, ...]


def collect(root: pathlib.Path) -> list[Births]:
  """Reads the events of a study's runs, finished or not.

  Args:
    root: Directory of the study.

  Returns:
    The children by setting and operator; those that failed at birth are left out.

  Raises:
    UserError: If there is no run.
  """
  found: dict[tuple[str, str, bool], list[float]] = {}
  paths = sorted(path.parent for path in root.glob('*/seed*/config.json'))
  if not paths:
    raise UserError(f'birth: got {root}, want a study with runs')
  for path in paths:
    events = records.read_events(path)
    dataset = records.read_environment(path).get('dataset', {})
    channels = dataset.get('image_shape', _DEFAULT_SHAPE)[-1]
    for event in events:
      if event['parent'] is None or event['fitness_at_birth'] is None:
        continue
      parent = events[event['parent']]
      before, after = map(Genotype.from_json, (parent, event))
      exact = net2net.is_exact(before, after, channels)
      key = (path.parent.name, ' + '.join(event['mutation']), exact)
      loss = parent['fitness'] - event['fitness_at_birth']
      found.setdefault(key, []).append(loss)
  return [Births(*key, tuple(losses)) for key, losses in sorted(found.items())]


def table(births: Sequence[Births]) -> str:
  """Returns the losses in points of accuracy as a Markdown table, by operator."""
  header = ['operator', 'function can be kept']
  rows: list[list[str]] = []
  settings = sorted({group.setting for group in births})
  kinds = sorted({(not group.exact, group.operator) for group in births})
  by_kind: Mapping[tuple[str, bool, str], Births] = {
    (group.setting, not group.exact, group.operator): group for group in births
  }
  for inexact, operator in kinds:
    row = [operator.replace('_', ' '), 'no' if inexact else 'yes']
    for setting in settings:
      group = by_kind.get((setting, inexact, operator))
      row.append(_cell(group.losses if group else ()))
    rows.append(row)
  for name, exact in (('all of these', True), ('all of these', False)):
    row = [name, 'yes' if exact else 'no']
    for setting in settings:
      groups = [g for g in births if g.setting == setting and g.exact == exact]
      row.append(_cell([loss for group in groups for loss in group.losses]))
    rows.append(row)
  return analysis.markdown_table(header + settings, rows)


def _cell(losses: Sequence[float]) -> str:
  if not losses:
    return '-'
  low, median, high = 100 * np.quantile(losses, (0.25, 0.5, 0.75))
  return f'{median:.1f} ({low:.1f} to {high:.1f}), n = {len(losses)}'


def main(argv: list[str]) -> None:
  """Prints the table of a study."""
  if len(argv) != 2:
    raise UserError(
      f'arguments: got {len(argv) - 1}, want one, the directory of a study'
    )
  print(
    'Median loss of validation accuracy at birth, in points, with quartiles:\n\n'
    + table(collect(pathlib.Path(argv[1])))
  )


if __name__ == '__main__':
  command_line.run(main)
