"""The paper's figures, drawn from the results of a study.

  python -m lamarck_jax.study.figures DIR [--paper]

DIR is a study's directory, or one with its results.json. The figures are written
beside it as PNG and PDF: `architecture` (the paper's Figure 1, of the best network),
`accuracy` (Figures 2 and 4) and `num_blocks` (Figure 3).
"""

from collections.abc import Sequence
import csv
import importlib.resources
import pathlib
from typing import Any, NamedTuple

from absl import flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import PercentFormatter
import numpy as np

from lamarck_jax import config
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Block, Genotype
from lamarck_jax.runtime import command_line
from lamarck_jax.study import analysis, results
from lamarck_jax.study.results import Setting, Study


class _Style(NamedTuple):
  """How a setting is drawn; each part alone tells settings apart."""

  color: str
  linestyle: str
  marker: str


# Colours of Okabe and Ito, of different lightness, safe for the colour-blind.
_STYLES = (
  _Style('#0072B2', '-', 'o'),
  _Style('#E69F00', '--', '^'),
  _Style('#009E73', ':', 's'),
  _Style('#CC79A7', '-.', 'D'),
  _Style('#000000', (0, (5, 1, 1, 1, 1, 1)), 'v'),  # type: ignore[arg-type]
)
_PAPER_BUDGET_EPOCHS = 512


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
  """Returns what a legend calls a setting: what it does, or a name of one's own."""
  how = {
    'lamarckian': 'inheritance',
    'none': 'no inheritance',
    'overlap': 'overlap inherited',
    'net2net': 'Net2Net',
  }.get(setting.inheritance, setting.inheritance)
  if setting.name not in config.SETTINGS:
    how = setting.name.replace('_', ' ')
  return f'{how}, e = {setting.epochs_per_evaluation} (n = {len(setting.runs)})'


def draw_accuracy(axes: Axes, study: Study, paper: bool = False) -> None:
  """Draws Figure 2: accuracy against the epochs used.

  A dot is the best validation accuracy of a run so far, a line their mean. A box is
  the mean test accuracy of a checkpoint trained to completion, its whiskers one
  standard deviation.

  Args:
    axes: Where to draw.
    study: The study.
    paper: Whether to draw the paper's test accuracies of the same data set beside
      ours, where the paper's budget of 512 epochs is ours.
  """
  budget = study.budget_epochs
  for index, setting in enumerate(study.settings):
    style = _STYLES[index % len(_STYLES)]
    if not setting.runs:
      continue
    grid, curves = _curves(setting, 'best_fitness')
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
    offset = (index - (len(study.settings) - 1) / 2) * 0.022 * budget
    for epochs in study.checkpoint_epochs:
      summary = analysis.summarise(setting.test_accuracies(epochs))
      if summary.n:
        _draw_box(axes, epochs + offset, summary.mean, summary.std, style)
    if paper:
      for row in paper_table_1():
        if (row['dataset'], row['inheritance'], row['e']) == (
          study.dataset,
          setting.inheritance,
          setting.epochs_per_evaluation,
        ):
          x = row['epochs'] / _PAPER_BUDGET_EPOCHS * budget + offset
          mean, std = row['mean'] / 100, row['std'] / 100
          _draw_box(axes, x, mean, std, style, hollow=True)
  example: dict[str, Any] = {
    'fmt': 'o',
    'color': 'black',
    'markersize': 7,
    'capsize': 4,
  }
  axes.errorbar([], [], [], **example, label='test accuracy, mean ± std')
  if paper and study.dataset in {row['dataset'] for row in paper_table_1()}:
    axes.errorbar([], [], [], **example, fillstyle='none', label="the paper's")
  axes.set_xlim(0, budget * 1.06)
  axes.set_xlabel('training epochs used by the search')
  axes.set_ylabel('accuracy')
  axes.yaxis.set_major_formatter(PercentFormatter(1))
  _finish(axes)


def _draw_mean(
  axes: Axes, grid: list[int], curves: np.ndarray, setting: Setting, style: _Style
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


def _finish(axes: Axes) -> None:
  axes.grid(alpha=0.25)
  # Above the axes, where it hides nothing.
  axes.legend(
    loc='lower center',
    bbox_to_anchor=(0.5, 1),
    ncols=2,
    frameon=False,
    fontsize='small',
  )


def _draw_box(
  axes: Axes, x: float, mean: float, std: float, style: _Style, hollow: bool = False
) -> None:
  axes.errorbar(
    x,
    mean,
    yerr=None if np.isnan(std) else std,
    fmt=style.marker,
    markersize=7,
    markerfacecolor='white' if hollow else style.color,
    markeredgecolor=style.color if hollow else 'black',
    ecolor=style.color if hollow else 'black',
    elinewidth=1,
    capsize=4,
    zorder=4,
  )


def draw_num_blocks(axes: Axes, study: Study) -> None:
  """Draws Figure 3: number of blocks of the best network, the mean over the runs.

  Args:
    axes: Where to draw.
    study: The study.
  """
  for index, setting in enumerate(study.settings):
    if not setting.runs:
      continue
    style = _STYLES[index % len(_STYLES)]
    grid, curves = _curves(setting, 'best_num_blocks')
    _draw_mean(axes, grid, curves, setting, style)
  axes.set_xlim(0, study.budget_epochs * 1.02)
  axes.set_ylim(bottom=0)
  axes.set_xlabel('training epochs used by the search')
  axes.set_ylabel('blocks of the best network, mean')
  _finish(axes)


def _curves(setting: Setting, name: str) -> tuple[list[int], np.ndarray]:
  """Returns the epochs at which all runs have a value, and theirs [runs, epochs]."""
  first = max(run.epochs[0] for run in setting.runs)
  grid = sorted({n for run in setting.runs for n in run.epochs if n >= first})
  value_at = {
    'best_fitness': results.Run.best_fitness_at,
    'best_num_blocks': results.Run.best_num_blocks_at,
  }[name]
  return grid, np.array([[value_at(run, n) for n in grid] for run in setting.runs])


def draw_architecture(axes: Axes, genotype: Genotype) -> None:
  """Draws Figure 1: the template with the values of a genotype, input on top.

  Args:
    axes: Where to draw; its limits are set, its axis is taken away.
    genotype: The architecture.
  """
  rows: list[tuple[str, str, str]] = [('images', '', 'white')]
  for block in genotype.blocks:
    size = f'{block.kernel_size}x{block.kernel_size}'
    filters = f'{block.filters} filters'
    rows.append(
      (
        f'convolution {size}, {filters}, stride {block.stride}',
        'batch normalisation, ReLU',
        '#9ecae9' if block.stride == 1 else '#4a90c2',
      )
    )
  rows += [
    ('global average pooling', '', 'white'),
    ('dense layer, softmax', '', 'white'),
  ]
  for index, (first, second, color) in enumerate(rows):
    y = -index
    axes.add_patch(
      FancyBboxPatch(
        (-1, y - 0.3),
        2,
        0.6,
        boxstyle='round,pad=0,rounding_size=0.1',
        facecolor=color,
        edgecolor='black',
        mutation_aspect=1,
      )
    )
    text = f'{first}\n{second}' if second else first
    axes.text(0, y, text, ha='center', va='center', fontsize=8)
    if index:
      axes.annotate(
        '',
        (0, y + 0.3),
        (0, y + 0.7),
        arrowprops={'arrowstyle': '-|>', 'color': 'black', 'shrinkA': 0, 'shrinkB': 0},
      )
  axes.set_xlim(-1.1, 1.1)
  axes.set_ylim(-len(rows) + 0.5, 0.5)
  axes.axis('off')


def architecture_figure(genotype: Genotype, title: str = '') -> Figure:
  """Returns Figure 1 for a genotype, as tall as it needs to be."""
  figure = Figure(figsize=(3.6, 0.5 * (len(genotype.blocks) + 3) + 0.4))
  axes = figure.add_axes((0.02, 0.02, 0.96, 0.9))
  draw_architecture(axes, genotype)
  if title:
    figure.suptitle(title, fontsize=9)
  return figure


def figures(study: Study, paper: bool = False) -> dict[str, Figure]:
  """Returns all figures of a study, by name.

  Args:
    study: The study.
    paper: Whether to draw the paper's values beside ours.
  """
  drawn = {}
  for name, draw in (
    ('accuracy', lambda axes: draw_accuracy(axes, study, paper)),
    ('num_blocks', lambda axes: draw_num_blocks(axes, study)),
  ):
    figure = Figure(figsize=(6.4, 4), layout='constrained')
    draw(figure.subplots())
    drawn[name] = figure
  candidates = [(s, run) for s in study.settings for run in s.runs]
  if candidates:
    setting, run = max(candidates, key=lambda pair: pair[1].best_fitness[-1])
    genotype = Genotype(tuple(Block(*block) for block in run.best))
    title = f'best network: {setting.name}, seed {run.seed}'
    drawn['architecture'] = architecture_figure(
      genotype, f'{title}, {run.best_fitness[-1]:.1%}'
    )
  return drawn


def write_figures(
  study: Study, directory: str | pathlib.Path, paper: bool = False
) -> None:
  """Writes every figure as PNG and PDF; the same results give the same files.

  Args:
    study: The study.
    directory: Where to write.
    paper: Whether to draw the paper's values beside ours.
  """
  for name, figure in figures(study, paper).items():
    path = pathlib.Path(directory, name)
    figure.savefig(path.with_suffix('.png'), dpi=150, metadata={'Software': None})
    figure.savefig(path.with_suffix('.pdf'), metadata={'CreationDate': None})


def main(argv: Sequence[str]) -> None:
  """Draws the figures of a study beside it."""
  if len(argv) != 2:
    raise UserError(
      f'arguments: got {len(argv) - 1}, want one, the directory of a study'
    )
  study = results.load(argv[1])
  write_figures(study, argv[1], flags.FLAGS.paper)
  print(f'figures are in {argv[1]}')


if __name__ == '__main__':
  flags.DEFINE_bool('paper', False, "Draw the paper's Table 1 beside ours.")
  command_line.run(main)
