"""Tests of `flops`, against counting by hand."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import pytest

from lamarck_jax import flops, model
from lamarck_jax.genotype import Block, Genotype


def _num_taps(size: int, kernel_size: int, stride: int) -> int:
  """Counts the (output, tap) pairs along one side whose tap is no padding."""
  out = -(-size // stride)
  low = max((out - 1) * stride + kernel_size - size, 0) // 2
  return sum(
    0 <= position * stride + tap - low < size
    for position in range(out)
    for tap in range(kernel_size)
  )


def _flops(text: str, size: tuple[int, int, int], num_classes: int = 10) -> int:
  return flops.network_flops(Genotype.parse(text), size, num_classes)


@pytest.mark.parametrize('kernel_size', [1, 3, 5])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [(8, 8), (9, 14), (32, 32)])
def test_a_convolution_costs_two_operations_per_weight_and_pixel(
  size, stride, kernel_size
):
  # All else costs the same whatever the number of input channels.
  text = f'16c{kernel_size}s{stride}'
  difference = _flops(text, (*size, 7)) - _flops(text, (*size, 3))
  taps = [_num_taps(side, kernel_size, stride) for side in size]
  assert difference == 2 * taps[0] * taps[1] * (7 - 3) * 16


@pytest.mark.parametrize('stride', [1, 2])
def test_a_convolution_of_kernel_size_one_costs_the_closed_formula(stride):
  pixels = (32 // stride) ** 2
  text = f'64c1s{stride}'
  difference = _flops(text, (32, 32, 64)) - _flops(text, (32, 32, 32))
  assert difference == 2 * 32 * 64 * pixels


@pytest.mark.parametrize('kernel_size', [3, 5])
def test_away_from_the_borders_a_pixel_costs_the_closed_formula(kernel_size):
  # Four larger images differ in an inner pixel: the borders cancel.
  def convolution(height: int, width: int) -> int:
    text = f'16c{kernel_size}'
    return _flops(text, (height, width, 5)) - _flops(text, (height, width, 4))

  inner = (
    convolution(13, 13)
    - convolution(12, 13)
    - convolution(13, 12)
    + convolution(12, 12)
  )
  assert inner == 2 * kernel_size**2 * 16


def test_a_block_costs_little_more_than_its_convolution():
  convolution = 2 * _num_taps(32, 3, 1) ** 2 * 64 * 128
  rest = _flops('64c1 128c3', (32, 32, 3)) - _flops('64c1', (32, 32, 3)) - convolution
  # Bias, normalisation and ReLU: a handful of operations per output.
  assert 3 * 32 * 32 * 128 < rest < 10 * 32 * 32 * 128


def test_the_classifier_costs_two_operations_per_weight_and_a_mean():
  per_class = _flops('16c1', (8, 8, 3), 11) - _flops('16c1', (8, 8, 3), 10)
  assert per_class == 2 * 16 + 1


_blocks = st.builds(
  Block,
  filters=st.sampled_from([4, 8]),
  kernel_size=st.sampled_from([1, 3, 5]),
  stride=st.sampled_from([1, 2]),
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(_blocks, min_size=1, max_size=4), st.sampled_from([1, 3, 8, 9]))
def test_a_network_costs_its_plain_modules_with_the_normalisation_folded(blocks, size):
  # XLA's figure for the whole network at once.
  genotype = Genotype(tuple(blocks))
  network = model.ConvNet(genotype, 10)
  whole = jax.jit(network.apply).lower(
    model.variable_shapes(genotype, 3, 10),
    jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
  )
  analysis: Any = whole.cost_analysis()
  # Unfolded, a block adds the bias and subtracts the mean at every output.
  side, folded = size, 0
  for block in blocks:
    side = -(-side // block.stride)
    folded += (2 * side**2 - 3) * block.filters
  whole_flops = analysis['flops'] - folded
  assert flops.network_flops(genotype, (size, size, 3), 10) == whole_flops


def test_a_further_block_adds_the_same_wherever_its_input_is_the_same():
  def added(text: str) -> int:
    return _flops(f'{text} 8c3 8c5', (16, 16, 3)) - _flops(f'{text} 8c3', (16, 16, 3))

  assert added('4c3') == added('64c5') == added('16c1 4c3')


def test_a_stride_of_two_quarters_what_comes_after():
  def second(stride: int) -> int:
    texts = (f'8c1s{stride} 8c1 8c1', f'8c1s{stride} 8c1')
    return _flops(texts[0], (32, 32, 3)) - _flops(texts[1], (32, 32, 3))

  # Constants per channel, such as of the statistics, do not shrink.
  assert second(1) / second(2) == pytest.approx(4, rel=0.01)


def test_lineages_do_not_change_the_cost():
  one = Genotype((Block(4, 3, 1, lineage=9), Block(8, 1, 2, lineage=3)))
  assert flops.network_flops(one, (8, 8, 1), 10) == _flops('4c3 8c1s2', (8, 8, 1))


def test_the_figure_is_a_plain_integer():
  assert type(_flops('4c3', (8, 8, 1))) is int
