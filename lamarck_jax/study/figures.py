"""The paper's figures, drawn from the results of a study.

  python -m lamarck_jax.study.figures DIR [--paper]

DIR is a study's directory, or one with its results.json. The figures are written into
it as PNG and PDF: `architecture` (the paper's Figure 1, of the best network),
`accuracy` (Figures 2 and 4) and `num_blocks` (Figure 3).
"""

from collections.abc import Sequence
import io
import pathlib
from typing import Any

from absl import flags
from matplotlib.figure import Figure

from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Block, Genotype
from lamarck_jax.run_directory import durable
from lamarck_jax.runtime import command_line
from lamarck_jax.study import architecture, plots, results
from lamarck_jax.study.results import Study

# Without times and versions, so that the same results give the same files.
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
  'png': {'dpi': 150, 'metadata': {'Software': None}},
  'pdf': {'metadata': {'CreationDate': None}},
}


def figures(study: Study, paper: bool = False) -> dict[str, Figure]:
  """Returns all figures of a study, by name.

  Args:
    study: The study.
    paper: Whether to draw the paper's values next to ours.
  """
  drawn = {}
  for name, draw in (
    ('accuracy', lambda axes: plots.draw_accuracy(axes, study, paper)),
    ('num_blocks', lambda axes: plots.draw_num_blocks(axes, study)),
  ):
    figure = Figure(figsize=(6.4, 4), layout='constrained')
    draw(figure.subplots())
    drawn[name] = figure
  candidates = [(s, run) for s in study.settings for run in s.runs]
  if candidates:
    setting, run = max(candidates, key=lambda pair: pair[1].best_fitness[-1])
    genotype = Genotype(tuple(Block(*block) for block in run.best))
    title = f'best network: {setting.name}, seed {run.seed}'
    drawn['architecture'] = architecture.architecture_figure(
      genotype, f'{title}, {run.best_fitness[-1]:.1%}'
    )
  return drawn


def to_bytes(figure: Figure, kind: str) -> bytes:
  """Returns a figure as a file of a kind, 'png' or 'pdf'."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format=kind, **_SAVE_OPTIONS[kind])
  return buffer.getvalue()


def write_figures(
  study: Study, directory: str | pathlib.Path, paper: bool = False
) -> None:
  """Writes every figure as PNG and PDF; the same results give the same files.

  Args:
    study: The study.
    directory: Where to write.
    paper: Whether to draw the paper's values next to ours.

  Raises:
    StorageError: If they cannot be written.
  """
  for name, figure in figures(study, paper).items():
    for kind in _SAVE_OPTIONS:
      path = pathlib.Path(directory, f'{name}.{kind}')
      durable.write(path, to_bytes(figure, kind))


def main(argv: Sequence[str]) -> None:
  """Draws the figures of a study into its directory."""
  if len(argv) != 2:
    raise UserError(
      f'arguments: got {len(argv) - 1}, want one, the directory of a study'
    )
  study = results.load(argv[1])
  write_figures(study, argv[1], flags.FLAGS.paper)
  print(f'figures are in {argv[1]}')


if __name__ == '__main__':
  flags.DEFINE_bool('paper', False, "Draw the paper's Table 1 next to ours.")
  command_line.run(main)
