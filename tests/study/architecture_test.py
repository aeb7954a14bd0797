from matplotlib.figure import Figure

from lamarck_jax.genotype import Genotype
from lamarck_jax.study import architecture


def test_the_architecture_figure_shows_every_block():
  axes = Figure().subplots()
  architecture.draw_architecture(axes, Genotype.parse('64c3 96c5s2 128c1'))
  texts = [text.get_text() for text in axes.texts if text.get_text()]
  assert len(texts) == 6  # The images, three blocks, pooling, the classifier.
  assert '5x5' in texts[2]
  assert '96 filters' in texts[2]
  assert 'stride 2' in texts[2]
