"""A study's figures against the epochs used: Figures 2, 3 and 4 of the paper."""

from collections.abc import Callable
import csv
import importlib.resources
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
import numpy as np

from lamarck_jax.study import analysis
from lamarck_jax.study.results import Run, Setting, Study


class Style(NamedTuple):
  """How a setting is drawn; each of the three alone tells settings apart."""

  color: str
  linestyle: str
  marker: str


# The colours of Okabe and Ito differ in lightness and are safe for the colour-blind.
# Gray and a darker yellow stand for its black and yellow: boxes have a black mean, and
# the page is white.
STYLES = (
  Style('#0072B2', '-', 'o'),
  Style('#E69F00', '--', '^'),
  Style('#009E73', ':', 's'),
  Style('#CC79A7', '-.', 'D'),
  Style('#7F7F7F', (0, (5, 1, 1, 1, 1, 1)), 'v'),  # type: ignore[arg-type]
  Style('#D55E00', (0, (8, 3)), 'P'),  # type: ignore[arg-type]
  Style('#56B4E9', (0, (1, 3)), 'X'),  # type: ignore[arg-type]
  Style('#B8A100', (0, (8, 2, 2, 2)), '<'),  # type: ignore[arg-type]
)
_PAPER_BUDGET_EPOCHS = 512
# Between the boxes of two settings, as a share of the budget.
_BOX_DISTANCE = 0.022


def paper_table_1() -> list[dict[str, Any]]:
  """Returns the paper's Table 1.

  Returns:
    A row per data set, setting and checkpoint: `dataset`, `inheritance`, `e`,
    `epochs`, and `min`, `mean`, `std`, `max` of the test accuracy, in percent.
  """
  path = importlib.resources.files('lamarck_jax.study') / 'paper_table_1.csv'
  with path.open() as file:
    return [
      {
        key: value if key in ('dataset', 'inheritance') else float(value)
        for key, value in row.items()
      }
      for row in csv.DictReader(file)
    ]


def label(setting: Setting) -> str:
  """Returns a setting's label in a legend: its mode, or the name the user gave it."""
  how = {
    'lamarckian': 'inheritance',
    'none': 'no inheritance',
    'overlap': 'overlap inherited',
    'net2net': 'Net2Net',
  }.get(setting.short_name, setting.short_name.replace('_', ' '))
  return f'{how}, e = {setting.epochs_per_evaluation} (n = {len(setting.runs)})'


def draw_accuracy(axes: Axes, study: Study, paper: bool = False) -> None:
  """Draws Figure 2: accuracy against the epochs used.

  A dot is the best validation accuracy of a run so far, a line their mean. A box shows
  the test accuracies of a checkpoint trained to completion: their quartiles, the mean,
  and as whiskers, like the paper's, one standard deviation.

  Args:
    axes: Where to draw.
    study: The study.
    paper: Whether to add the paper's test accuracies on the same data set, with its
      budget of 512 epochs scaled to ours.
  """
  budget = study.max_budget_epochs
  for index, setting in enumerate(study.settings):
    if not setting.runs:
      continue
    style = STYLES[index % len(STYLES)]
    _draw_runs(axes, setting, style)
    # Side by side, since all settings are tested at the same budgets.
    offset = (index - (len(study.settings) - 1) / 2) * _BOX_DISTANCE * budget
    for epochs in study.checkpoint_epochs:
      accuracies = setting.test_accuracies(epochs)
      if accuracies:
        width = 0.8 * _BOX_DISTANCE * budget
        _draw_box(axes, epochs + offset, width, accuracies, style)
    if paper:
      _draw_paper(axes, study, setting, offset, style)
  _add_box_labels(axes, paper and _is_in_paper(study))
  margin = (len(study.settings) / 2 + 1) * _BOX_DISTANCE
  axes.set_xlim(0, budget * (1 + max(margin, 0.06)))
  axes.set_xlabel('training epochs used by the search')
  axes.set_ylabel('accuracy')
  axes.yaxis.set_major_formatter(PercentFormatter(1))
  _finish(axes)


def draw_num_blocks(axes: Axes, study: Study) -> None:
  """Draws Figure 3: the number of blocks of the best network, mean over the runs."""
  for index, setting in enumerate(study.settings):
    if not setting.runs:
      continue
    style = STYLES[index % len(STYLES)]
    grid, curves = _curves(setting, Run.best_num_blocks_at)
    _draw_mean(axes, grid, curves, setting, style)
  axes.set_xlim(0, study.max_budget_epochs * 1.02)
  axes.set_ylim(bottom=0)
  axes.set_xlabel('training epochs used by the search')
  axes.set_ylabel('blocks of the best network, mean')
  _finish(axes)


def _curves(
  setting: Setting, value_at: Callable[[Run, int], float]
) -> tuple[list[int], np.ndarray]:
  """Returns epochs at which all runs have a value, and the values [runs, epochs]."""
  first = max(run.epochs[0] for run in setting.runs)
  grid = sorted({n for run in setting.runs for n in run.epochs if n >= first})
  return grid, np.array([[value_at(run, n) for n in grid] for run in setting.runs])


def _draw_runs(axes: Axes, setting: Setting, style: Style) -> None:
  grid, curves = _curves(setting, Run.best_fitness_at)
  for curve in curves:
    axes.plot(
      grid,
      curve,
      linestyle='none',
      marker=style.marker,
      markersize=3,
      markeredgewidth=0,
      color=style.color,
      alpha=0.35,
    )
  _draw_mean(axes, grid, curves, setting, style)


def _draw_mean(
  axes: Axes, grid: list[int], curves: np.ndarray, setting: Setting, style: Style
) -> None:
  axes.plot(
    grid,
    curves.mean(axis=0),
    linestyle=style.linestyle,
    linewidth=2,
    marker=style.marker,
    markersize=5,
    markevery=max(1, len(grid) // 12),
    color=style.color,
    label=label(setting),
  )


def _draw_paper(
  axes: Axes, study: Study, setting: Setting, offset: float, style: Style
) -> None:
  dataset = setting.dataset or study.dataset
  ours = (dataset, setting.inheritance, setting.epochs_per_evaluation)
  for row in paper_table_1():
    if (row['dataset'], row['inheritance'], row['e']) == ours:
      x = row['epochs'] / _PAPER_BUDGET_EPOCHS * study.budget_of(setting) + offset
      axes.errorbar(
        x,
        row['mean'] / 100,
        yerr=row['std'] / 100,
        fmt=style.marker,
        markersize=7,
        markerfacecolor='white',
        color=style.color,
        elinewidth=1,
        capsize=4,
        zorder=5,
      )


def _is_in_paper(study: Study) -> bool:
  return study.dataset in {row['dataset'] for row in paper_table_1()}


def _draw_box(
  axes: Axes, x: float, width: float, accuracies: list[float], style: Style
) -> None:
  summary = analysis.summarise(accuracies)
  low, high = np.quantile(accuracies, (0.25, 0.75))
  std = 0 if np.isnan(summary.std) else summary.std
  black = {'color': 'black', 'linewidth': 1}
  axes.bxp(
    [
      {
        'med': summary.mean,
        'q1': low,
        'q3': high,
        'whislo': summary.mean - std,
        'whishi': summary.mean + std,
      }
    ],
    positions=[x],
    widths=width,
    patch_artist=True,
    showfliers=False,
    manage_ticks=False,
    boxprops={'facecolor': style.color, 'edgecolor': 'black', 'linewidth': 1},
    medianprops={**black, 'linewidth': 2},
    whiskerprops=black,
    capprops=black,
    zorder=4,
  )


def _add_box_labels(axes: Axes, paper: bool) -> None:
  """Adds entries to the legend that explain the boxes of all settings."""
  axes.fill(
    [],
    [],
    facecolor='0.8',
    edgecolor='black',
    label='test accuracy: quartiles, mean ± std',
  )
  if paper:
    axes.errorbar(
      [],
      [],
      [],
      fmt='o',
      color='black',
      markersize=7,
      markerfacecolor='white',
      capsize=4,
      label="the paper's mean ± std",
    )


def _finish(axes: Axes) -> None:
  axes.grid(alpha=0.25)
  # Above the axes, where it covers no data.
  axes.legend(
    loc='lower center',
    bbox_to_anchor=(0.5, 1),
    ncols=2,
    frameon=False,
    fontsize='small',
  )
