from lamarck_jax.study import figures


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
