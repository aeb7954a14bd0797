"""The model of a training step on a GPU, and what the documentation says of it."""

import json
import re

import pytest

from benchmarks import step_model
from lamarck_jax.genotype import Genotype
from tests.conftest import ROOT

PERFORMANCE = (ROOT / 'docs' / 'performance.md').read_text()


def test_a_block_takes_the_time_of_its_operations_and_of_its_bytes():
  one = step_model.step_seconds(Genotype.parse('64c3'), 'float32')
  pixels = 512 * 32 * 32
  operations = 2 * 2 * pixels * 9 * 3 * 64
  values = 2 * pixels * 3 + 10 * pixels * 64
  assert one == pytest.approx(operations / 270e12 + 4 * values / 3.9e12)
  # The second has a gradient of its input, and its kernel is extended to 4x4.
  both = step_model.step_seconds(Genotype.parse('64c3 96c3s2'), 'float32')
  operations = 3 * 2 * (pixels / 4) * 16 * 64 * 96
  values = 3 * pixels * 64 + 11 * (pixels / 4) * 96
  assert both - one == pytest.approx(operations / 270e12 + 4 * values / 3.9e12)


def test_the_documentations_steps_are_those_of_the_model():
  section = PERFORMANCE.partition('Milliseconds a step at batch 512')[2]
  rows = re.findall(r'^\| `(.+?)` \| (\S+) \| \S+ \| (\S+) \|', section, re.MULTILINE)
  assert len(rows) == 6
  for text, *expected in rows:
    for dtype, value in zip(('float32', 'bfloat16'), expected, strict=True):
      seconds = step_model.step_seconds(Genotype.parse(text), dtype)
      assert f'{seconds * 1e3:.1f}' == value, (text, dtype)


def test_the_documentations_fits_are_those_of_the_published_evaluations():
  fits = {'float32': [], 'bfloat16': []}
  for day in ('h200_2', 'h200_3'):
    path = ROOT / 'docs' / 'results' / day / 'evaluations.json'
    for dtype, rows in json.loads(path.read_text()).items():
      fits[dtype].append(step_model.fit(rows, dtype))
      search = json.loads((path.parent / f'search_{dtype}.json').read_text())
      # Images per second are rounded in the log.
      assert fits[dtype][-1].measured == pytest.approx(search['phases']['train'], 1e-3)
  for dtype, (one, other) in fits.items():
    text = (
      f'{dtype} {one.factor:.2f} and {other.factor:.2f} times, {one.constant:.2f} and'
      f' {other.constant:.2f} s (R² {one.r2:.2f}, {other.r2:.2f}'
    )
    assert text in ' '.join(PERFORMANCE.split())


def test_a_fit_separates_what_grows_from_what_every_evaluation_costs():
  images = step_model.STEPS * step_model.BATCH_SIZE
  rows = []
  for text in ('64c3', '64c3 64c3', '256c5 256c5', '256c5 256c5 96c3s2'):
    predicted = step_model.STEPS * step_model.step_seconds(
      Genotype.parse(text), 'float32'
    )
    rows.append(
      {'genotype': text, 'images_per_second': images / (0.8 * predicted + 1.5)}
    )
  found = step_model.fit(rows, 'float32')
  assert (found.factor, found.constant, found.r2) == pytest.approx((0.8, 1.5, 1))
  measured, at_model, at_factor = found.tflops_per_second
  assert at_factor == pytest.approx(at_model / 0.8)
  assert measured < at_factor
