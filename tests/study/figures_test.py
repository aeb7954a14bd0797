import dataclasses

from matplotlib.figure import Figure
import pytest

from lamarck_jax.genotype import Genotype
from lamarck_jax.study import figures


@pytest.fixture
def axes():
  return Figure().subplots()


def test_every_figure_is_written_and_the_same_results_give_the_same_files(
  study, tmp_path
):
  contents = []
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
    figures.write_figures(study, tmp_path / name)
    contents.append(
      {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    )
  names = {'accuracy', 'num_blocks', 'architecture'}
  assert contents[0].keys() == {f'{n}.{s}' for n in names for s in ('png', 'pdf')}
  assert contents[0] == contents[1]


def test_the_accuracy_figure_shows_every_run_the_means_and_the_tests(study, axes):
  figures.draw_accuracy(axes, study)
  lines = axes.get_lines()
  dots = [line for line in lines if line.get_linestyle() == 'None']
  runs = [line for line in dots if len(line.get_xdata()) == 3]
  assert len(runs) == 5
  means = [line for line in lines if line.get_label().startswith(('inherit', 'no inh'))]
  assert [list(line.get_ydata()) for line in means] == [
    pytest.approx([0.3, 0.3, 0.6]),
    pytest.approx([0.3, 0.35, 0.35]),
  ]
  assert len(axes.containers) == 4 + 1  # A box per setting and checkpoint; the legend.
  assert axes.get_xlabel()
  assert axes.get_ylabel()


def test_the_papers_values_are_drawn_on_demand_for_its_data_sets(study, axes):
  figures.draw_accuracy(axes, study, paper=True)
  assert len(axes.containers) == 4 + 4 + 2
  texts = [text.get_text() for text in axes.get_legend().get_texts()]
  assert "the paper's" in texts


def test_settings_differ_without_colour():
  styles = figures._STYLES
  assert len({style.linestyle for style in styles}) == len(styles)
  assert len({style.marker for style in styles}) == len(styles)


def test_the_number_of_blocks_is_the_mean_over_the_runs(study, axes):
  figures.draw_num_blocks(axes, study)
  assert list(axes.get_lines()[0].get_ydata()) == [1, 2, 3]


def test_the_architecture_figure_shows_every_block(axes):
  figures.draw_architecture(axes, Genotype.parse('64c3 96c5s2 128c1'))
  texts = [text.get_text() for text in axes.texts if text.get_text()]
  assert len(texts) == 6  # The images, three blocks, pooling, the classifier.
  assert '5x5' in texts[2]
  assert '96 filters' in texts[2]
  assert 'stride 2' in texts[2]


def test_the_papers_table_has_its_twelve_cells():
  rows = figures.paper_table_1()
  assert len(rows) == 12
  best = next(
    row
    for row in rows
    if (row['dataset'], row['inheritance'], row['epochs'])
    == ('cifar10', 'lamarckian', 512)
  )
  assert (best['min'], best['mean'], best['std'], best['max']) == (
    83.3,
    87.2,
    1.5,
    89.3,
  )
  for row in rows:
    assert row['min'] < row['mean'] < row['max']


def test_a_legend_has_names_of_ones_own_as_they_are(study):
  setting = study.settings[0]
  assert figures.label(setting) == 'inheritance, e = 4 (n = 3)'
  renamed = dataclasses.replace(setting, name='lamarckian_cosine')
  assert figures.label(renamed) == 'lamarckian cosine, e = 4 (n = 3)'
