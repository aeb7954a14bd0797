"""Floating-point operations of a network and of its training.

As the paper's footnote counts them: those of one example through the network, times
the number of examples seen. A block counts as inference engines run it, a convolution
with the batch normalisation folded into a scale and a shift of its output, and ReLU.
A multiply-add is two operations, and what a kernel reads beyond the border is none. The
figures are those of XLA's cost analysis, which a test compares, without its tracing.
"""

from lamarck_jax.genotype import Genotype


def network_flops(
  genotype: Genotype, image_shape: tuple[int, int, int], num_classes: int
) -> int:
  """Returns the operations to classify one example.

  Args:
    genotype: The architecture.
    image_shape: (height, width, channels).
    num_classes: Number of classes.
  """
  height, width, channels = image_shape
  total = 0
  for block in genotype.blocks:
    taps = [
      _num_taps(side, block.kernel_size, block.stride) for side in (height, width)
    ]
    height, width = -(-height // block.stride), -(-width // block.stride)
    total += 2 * taps[0] * taps[1] * channels * block.filters
    total += 3 * height * width * block.filters  # Scale, shift and ReLU.
    total += 5 * block.filters  # The scale and the shift.
    channels = block.filters
  pooling, dense = height * width * channels, (2 * channels + 1) * num_classes
  return total + pooling + dense


def _num_taps(size: int, kernel_size: int, stride: int) -> int:
  """Returns the number of (output, tap) pairs along a side within the image."""
  outputs = -(-size // stride)
  padding = max((outputs - 1) * stride + kernel_size - size, 0)  # SAME.
  starts = [output * stride - padding // 2 for output in range(outputs)]
  return sum(min(start + kernel_size, size) - max(start, 0) for start in starts)
