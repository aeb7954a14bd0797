import dataclasses
import itertools

from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
import numpy as np
import pytest

from lamarck_jax.study import plots


@pytest.fixture
def axes():
  return Figure().subplots()


def _boxes(axes) -> list[PathPatch]:
  return [patch for patch in axes.patches if isinstance(patch, PathPatch)]


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
  assert len(_boxes(axes)) == 4  # One per setting and checkpoint.
  assert axes.get_xlabel()
  assert axes.get_ylabel()


def test_a_box_has_quartiles_the_mean_and_one_standard_deviation(study, axes):
  plots.draw_accuracy(axes, study)
  accuracies = study.settings[0].test_accuracies(12)
  box = _boxes(axes)[1]
  heights = box.get_path().vertices[:, 1]
  assert [heights.min(), heights.max()] == pytest.approx(
    np.quantile(accuracies, (0.25, 0.75))
  )
  lines = [list(line.get_ydata()) for line in axes.get_lines()]
  mean, std = np.mean(accuracies), np.std(accuracies, ddof=1)
  for ends in ([mean, mean], [mean - std] * 2, [mean + std] * 2):
    assert any(line == pytest.approx(ends) for line in lines if len(line) == 2)


def test_boxes_of_eight_settings_lie_side_by_side_within_the_axes(study, axes):
  settings = [
    dataclasses.replace(study.settings[0], name=f'variant_{i}') for i in range(8)
  ]
  plots.draw_accuracy(axes, dataclasses.replace(study, settings=tuple(settings)))
  spans = sorted(
    (box.get_path().vertices[:, 0].min(), box.get_path().vertices[:, 0].max())
    for box in _boxes(axes)
  )
  assert len(spans) == 16
  assert all(right < left for (_, right), (left, _) in itertools.pairwise(spans))
  assert spans[-1][1] < axes.get_xlim()[1]


def test_the_papers_values_are_drawn_on_demand_for_its_data_sets(study, axes):
  plots.draw_accuracy(axes, study, paper=True)
  assert len(_boxes(axes)) == 4
  assert len(axes.containers) == 4 + 1  # One per setting and checkpoint; the legend.
  texts = [text.get_text() for text in axes.get_legend().get_texts()]
  assert "the paper's mean ± std" in texts


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


def test_random_search_is_not_called_no_inheritance(study):
  setting = dataclasses.replace(
    study.settings[0], name='random_search', inheritance='none'
  )
  assert plots.label(setting) == 'random search, e = 4 (n = 3)'
