"""The phenotype: Flax Linen modules built from a genotype (Section 3, Figure 1)."""

from collections.abc import Mapping
import math
from typing import Any
import zlib

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from lamarck_jax import genotype as genotype_lib
from lamarck_jax.genotype import Block, Genotype

# Collections `params` and `batch_stats` of a network, by module.
Variables = Mapping[str, Any]

CLASSIFIER = 'classifier'
BATCH_NORM_EPSILON = 1e-5


class ConvBlock(nn.Module):
  """Convolution with bias, batch normalisation, ReLU.

  Attributes:
    filters: Number of filters.
    kernel_size: Side of the square kernel, in pixels.
    stride: Stride in both directions.
    dtype: Type of the computation; parameters and statistics are float32.
  """

  filters: int
  kernel_size: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Applies the block.

    Args:
      x: [batch, height, width, channels].
      train: Whether to normalise by the batch's own statistics and to update
        the running ones (collection `batch_stats`).

    Returns:
      [batch, ceil(height / stride), ceil(width / stride), filters] of `dtype`.
    """
    x = nn.Conv(
      self.filters,
      (self.kernel_size, self.kernel_size),
      self.stride,
      padding='SAME',
      kernel_init=nn.initializers.glorot_uniform(),
      dtype=self.dtype,
      name='conv',
    )(x)
    x = nn.BatchNorm(
      use_running_average=not train,
      momentum=0.9,
      epsilon=BATCH_NORM_EPSILON,
      dtype=self.dtype,
      name='norm',
    )(x)
    return nn.relu(x)


class Classifier(nn.Module):
  """Global average pooling and a dense layer; the softmax is in the loss."""

  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns float32 logits [batch, num_classes] of x [batch, h, w, channels]."""
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    return nn.Dense(
      self.num_classes, kernel_init=nn.initializers.glorot_uniform(), name='dense'
    )(x)


class ConvNet(nn.Module):
  """The whole network of a genotype.

  Attributes:
    genotype: The architecture; its blocks' lineages name the parameters.
    num_classes: Number of classes.
    dtype: Type of the blocks' computation.
  """

  genotype: Genotype
  num_classes: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Returns float32 logits [batch, num_classes].

    Args:
      x: Standardised images [batch, height, width, channels].
      train: Whether batch normalisation uses the batch's own statistics.
    """
    for block in self.genotype.blocks:
      x = conv_block(block, dtype=self.dtype, name=block_name(block))(x, train)
    return Classifier(self.num_classes, name=CLASSIFIER)(x)


def conv_block(block: Block, **fields: Any) -> ConvBlock:
  """Returns the module of one block, with further fields of `ConvBlock`."""
  return ConvBlock(block.filters, block.kernel_size, block.stride, **fields)


def block_name(block: Block) -> str:
  """Returns the name of a block's parameters in the network's variables."""
  return f'block_{block.lineage}'


# ------------------------------------------------------------------------------
# Variables
# ------------------------------------------------------------------------------


def variable_shapes(
  genotype: Genotype, channels: int, num_classes: int
) -> dict[str, dict[str, Any]]:
  """Returns the tree that `ConvNet.init` returns, of `jax.ShapeDtypeStruct` leaves.

  The images have `channels` channels.
  """
  params, batch_stats = {}, {}
  for block in genotype.blocks:
    shapes = block_shapes(conv_block(block), channels)
    params[block_name(block)] = shapes['params']
    batch_stats[block_name(block)] = shapes['batch_stats']
    channels = block.filters
  classifier = Classifier(num_classes)
  params[CLASSIFIER] = classifier_shapes(classifier, channels)['params']
  return {'params': params, 'batch_stats': batch_stats}


def num_parameters(genotype: Genotype, channels: int, num_classes: int) -> int:
  """Returns the number of trained parameters of a network."""
  shapes = variable_shapes(genotype, channels, num_classes)['params']
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


# Written down, since tracing `init` takes 4 ms, and a child's blocks are often new.
def block_shapes(module: Any, channels: int) -> dict[str, Any]:
  """Returns the shapes of a block's variables for that number of input channels.

  Args:
    module: A `ConvBlock`, or the one of `xla.fused_block`, which has the same.
    channels: Number of input channels.
  """
  size, filters = module.kernel_size, module.filters
  return {
    'batch_stats': {'norm': {'mean': _float32(filters), 'var': _float32(filters)}},
    'params': {
      'conv': {
        'bias': _float32(filters),
        'kernel': _float32(size, size, channels, filters),
      },
      'norm': {'bias': _float32(filters), 'scale': _float32(filters)},
    },
  }


def classifier_shapes(module: Classifier, channels: int) -> dict[str, Any]:
  """Returns the shapes of a classifier's variables, likewise."""
  num_classes = module.num_classes
  dense = {'bias': _float32(num_classes), 'kernel': _float32(channels, num_classes)}
  return {'params': {'dense': dense}}


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def fresh_leaf(
  key: jax.Array, path: tuple[str, ...], shape: tuple[int, ...]
) -> np.ndarray:
  """Returns the initial value of one leaf of a network's variables, float32.

  Kernels are Glorot-uniform; biases, BatchNorm shifts and running means zero;
  BatchNorm scales and running variances one.

  Args:
    key: For the whole tree; every path draws its own numbers.
    path: The leaf's path, e.g. `('params', 'block_0', 'conv', 'kernel')`.
  """
  # The modules' own `init` draws from the same distribution. But a child has new shapes
  # nearly every time, and JAX would compile a program for each.
  if path[-1] == 'kernel':
    receptive_field = math.prod(shape[:-2])
    limit = math.sqrt(6 / (receptive_field * (shape[-2] + shape[-1])))
    leaf_key = jax.random.fold_in(key, zlib.crc32('/'.join(path).encode()))
    rng = genotype_lib.generator(leaf_key)
    return rng.uniform(-limit, limit, shape).astype(np.float32)
  value = 1 if path[-1] in ('scale', 'var') else 0
  return np.full(shape, value, np.float32)


def init_variables(
  key: jax.Array, genotype: Genotype, channels: int, num_classes: int
) -> dict[str, Any]:
  """Returns initial variables of a network for images of a number of channels.

  They are the collections `params` and `batch_stats` of `ConvNet.init`, float32.
  """
  shapes = traverse_util.flatten_dict(variable_shapes(genotype, channels, num_classes))
  return traverse_util.unflatten_dict(
    {path: fresh_leaf(key, path, leaf.shape) for path, leaf in shapes.items()}
  )
