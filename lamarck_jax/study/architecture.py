"""A network as a figure: Figure 1 of the paper with the values of a genotype."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from lamarck_jax.genotype import Block, Genotype

_COLORS = {1: '#9ecae9', 2: '#4a90c2'}  # By stride.


def draw_architecture(axes: Axes, genotype: Genotype) -> None:
  """Draws a network, the input on top; sets the limits of the axes and hides them."""
  rows = [
    ('images', 'white'),
    *((_text(block), _COLORS[min(block.stride, 2)]) for block in genotype.blocks),
    ('global average pooling', 'white'),
    ('dense layer, softmax', 'white'),
  ]
  for index, (text, color) in enumerate(rows):
    _draw_row(axes, -index, text, color)
    if index:
      _draw_arrow(axes, -index)
  axes.set_xlim(-1.1, 1.1)
  axes.set_ylim(-len(rows) + 0.5, 0.5)
  axes.axis('off')


def _text(block: Block) -> str:
  size = f'{block.kernel_size}x{block.kernel_size}'
  return (
    f'convolution {size}, {block.filters} filters, stride {block.stride}\n'
    'batch normalisation, ReLU'
  )


def _draw_row(axes: Axes, y: float, text: str, color: str) -> None:
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
  axes.text(0, y, text, ha='center', va='center', fontsize=8)


def _draw_arrow(axes: Axes, y: float) -> None:
  """Draws an arrow from the row above to the row at `y`."""
  axes.annotate(
    '',
    (0, y + 0.3),
    (0, y + 0.7),
    arrowprops={'arrowstyle': '-|>', 'color': 'black', 'shrinkA': 0, 'shrinkB': 0},
  )


def architecture_figure(genotype: Genotype, title: str = '') -> Figure:
  """Returns a figure of a network, as tall as its blocks need."""
  figure = Figure(figsize=(3.6, 0.5 * (len(genotype.blocks) + 3) + 0.4))
  axes = figure.add_axes((0.02, 0.02, 0.96, 0.9))
  draw_architecture(axes, genotype)
  if title:
    figure.suptitle(title, fontsize=9)
  return figure
