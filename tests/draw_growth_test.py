"""The animation of the documentation can be drawn again from a published run."""

import itertools
import pathlib
import shutil

from PIL import Image

from docs import draw_growth

_RUN = pathlib.Path(__file__).parents[1] / 'docs/results/digits/lamarckian/seed0'


def test_a_frame_is_drawn_for_each_evaluation_of_a_run(tmp_path):
  shutil.copy(_RUN / 'config.json', tmp_path)
  with open(_RUN / 'events.jsonl') as events:
    (tmp_path / 'events.jsonl').write_text(''.join(itertools.islice(events, 3)))
  draw_growth.draw(tmp_path, tmp_path / 'growth.gif')
  with Image.open(tmp_path / 'growth.gif') as animation:
    assert animation.n_frames == 3
