import dataclasses

from matplotlib.figure import Figure
import pytest

from lamarck_jax.study import plots


@pytest.fixture
def axes():
  return Figure().subplots()


def test_the_accuracy_figure_shows_every_run_the_means_and_the_tests(study, axes):
  plots.draw_accuracy(axes, study)
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
  plots.draw_accuracy(axes, study, paper=True)
  assert len(axes.containers) == 4 + 4 + 2
  texts = [text.get_text() for text in axes.get_legend().get_texts()]
  assert "the paper's" in texts


def test_settings_differ_without_colour():
  assert len({style.linestyle for style in plots.STYLES}) == len(plots.STYLES)
  assert len({style.marker for style in plots.STYLES}) == len(plots.STYLES)


def test_the_number_of_blocks_is_the_mean_over_the_runs(study, axes):
  plots.draw_num_blocks(axes, study)
  assert list(axes.get_lines()[0].get_ydata()) == [1, 2, 3]


def test_the_papers_table_has_its_twelve_cells():
  rows = plots.paper_table_1()
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


def test_a_legend_shows_the_names_that_users_give(study):
  setting = study.settings[0]
  assert plots.label(setting) == 'inheritance, e = 4 (n = 3)'
  renamed = dataclasses.replace(setting, name='lamarckian_cosine')
  assert plots.label(renamed) == 'lamarckian cosine, e = 4 (n = 3)'
