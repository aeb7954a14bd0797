"""Draws how the network of a search grows, as an animation with a frame an evaluation.

  python docs/draw_growth.py RUN_DIRECTORY growth.gif

The picture in the documentation is of a published run, so that it can be drawn again:
docs/results/digits/lamarckian/seed0.
"""

import io
import pathlib
import sys
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from PIL import Image

from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import records

_INHERITED, _NEW, _QUIET = '#2f6db5', '#e08a2e', '#b8bec6'
_INCHES, _DPI = (7.2, 4.4), 100
_FRAME_MS, _LAST_FRAME_MS = 900, 4000
_COLOURS = 48
_MAX_BLOCKS = 7  # Wide enough for the networks of a short search.


def draw(run: pathlib.Path, out: pathlib.Path) -> None:
  """Writes the animation of a run to a file."""
  events = records.read_events(run)
  frames = [_frame(events, number) for number in range(len(events))]
  # One palette for all keeps colours from flickering, and the file small.
  palette = frames[-1].quantize(_COLOURS)
  frames = [
    frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames
  ]
  durations = [_FRAME_MS] * (len(frames) - 1) + [_LAST_FRAME_MS]
  frames[0].save(
    out, save_all=True, append_images=frames[1:], duration=durations, loop=0
  )


def _frame(events: list[dict[str, Any]], number: int) -> Image.Image:
  """Returns the picture of a search after an evaluation."""
  figure, (above, below) = plt.subplots(
    2, 1, figsize=_INCHES, dpi=_DPI, layout='constrained', height_ratios=(2.2, 1)
  )
  _draw_accuracies(above, events, number)
  _draw_network(below, events, number)
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png')
  plt.close(figure)
  return Image.open(buffer).convert('RGB')


def _draw_accuracies(axes: Axes, events: list[dict[str, Any]], number: int) -> None:
  """Draws each evaluation at its accuracy, joined to its parent's."""
  for event in events[: number + 1]:
    x, y = event['epochs_used'], event['fitness']
    if event['parent'] is not None:
      parent = events[event['parent']]
      colour = _INHERITED if event['accepted'] else _QUIET
      axes.plot(
        (parent['epochs_used'], x), (parent['fitness'], y), color=colour, lw=1.5
      )
  for event in events[: number + 1]:
    face = _INHERITED if event['accepted'] else 'white'
    edge = _INHERITED if event['accepted'] else _QUIET
    size = 90 if event is events[number] else 36
    axes.scatter(event['epochs_used'], event['fitness'], size, face, ec=edge, zorder=3)
  best = max(event['fitness'] for event in events[: number + 1])
  axes.set_title(f'best validation accuracy {best:.3f}', loc='left', fontsize=11)
  axes.set_xlim(0, events[-1]['epochs_used'] + 2)
  axes.set_ylim(0, 1.05)
  axes.set_xlabel('training epochs')
  axes.spines[['top', 'right']].set_visible(False)


def _draw_network(axes: Axes, events: list[dict[str, Any]], number: int) -> None:
  """Draws the blocks of a child, of which some have the weights of its parent."""
  event = events[number]
  child, parent = Genotype.from_json(event), event['parent']
  known = _kernels(Genotype.from_json(events[parent])) if parent is not None else {}
  most = max(block[0] for other in events for block in other['genotype'])
  for index, (lineage, kernel) in enumerate(_kernels(child).items()):
    block = child.blocks[index]
    height = 0.25 + 0.75 * block.filters / most
    colour = _INHERITED if known.get(lineage) == kernel else _NEW
    axes.bar(index, height, 0.72, color=colour)
    axes.text(index, height / 2, str(block), ha='center', va='center', color='white')
  change = event['mutation'][0].replace('_', ' ') if event['mutation'] else 'start'
  outcome = 'kept' if event['accepted'] else 'rejected'
  axes.set_title(
    f'evaluation {event["evaluation"]}: {change}, {event["fitness"]:.3f}, {outcome}',
    loc='left',
    fontsize=11,
  )
  axes.text(
    1, 1.02, 'inherited', color=_INHERITED, transform=axes.transAxes, ha='right'
  )
  axes.text(0.86, 1.02, 'new', color=_NEW, transform=axes.transAxes, ha='right')
  axes.set_xlim(-0.6, _MAX_BLOCKS - 0.4)
  axes.set_ylim(0, 1)
  axes.set_axis_off()


def _kernels(genotype: Genotype) -> dict[int, tuple[int, int | None, int]]:
  """Returns the shape of each block's kernel by lineage; equal ones are inherited."""
  filters = [None, *(block.filters for block in genotype.blocks)]
  return {
    block.lineage: (block.kernel_size, channels, block.filters)
    for block, channels in zip(genotype.blocks, filters)
  }


if __name__ == '__main__':
  draw(*map(pathlib.Path, sys.argv[1:]))
