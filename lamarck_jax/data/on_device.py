"""A data set on the device, as uint8, and the batches that programs take from it.

The first block's program and the head get the whole data set, the order of this pass
and the index of the batch: nothing goes from host to device inside an epoch.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lamarck_jax.data import datasets
from lamarck_jax.data.datasets import Dataset
from lamarck_jax.xla import sharding


class Images(NamedTuple):
  """The input of the first block.

  Attributes:
    pixels: uint8 [num_examples, height, width, channels], all splits.
    mean: float32 [channels], of the training split, in units of uint8.
    std: float32 [channels], likewise.
    order: int32 [steps, batch_size], the examples in the order of this pass.
    step: int32 scalar, index of the batch.
  """

  pixels: jax.Array
  mean: jax.Array
  std: jax.Array
  order: jax.Array
  step: jax.Array

  def batch(self, dtype: Any) -> jax.Array:
    """Returns the standardised batch [batch_size, height, width, channels]."""
    indices = sharding.constrain(self.order[self.step])
    pixels = self.pixels[indices].astype(jnp.float32)
    return ((pixels - self.mean) / self.std).astype(dtype)


class Targets(NamedTuple):
  """What the head compares its predictions with.

  Attributes:
    labels: int32 [num_examples], all splits.
    order: int32 [steps, batch_size], the examples in the order of this pass.
    step: int32 scalar, index of the batch.
  """

  labels: jax.Array
  order: jax.Array
  step: jax.Array

  def batch(self) -> jax.Array:
    """Returns the labels of the batch, int32 [batch_size]."""
    return self.labels[sharding.constrain(self.order[self.step])]


@functools.partial(jax.jit, static_argnames=('num_examples', 'shape'))
def epoch_order(
  key: jax.Array, *, num_examples: int, shape: tuple[int, int]
) -> jax.Array:
  """Returns a permutation of the training examples, padded to int32 [*shape]."""
  order = jax.random.permutation(key, jnp.arange(num_examples, dtype=jnp.int32))
  return jnp.resize(order, shape)


class DeviceData:
  """The three splits of a data set on the devices that share a batch.

  Attributes:
    mesh: The devices.
    batch_size: Examples per batch.
    examples: The examples of each split, by its name.
    num_examples: Their number by class, int64 [num_classes], by split.
  """

  def __init__(self, dataset: Dataset, batch_size: int):
    """Replicates the data set over the devices."""
    self.mesh = sharding.batch_mesh(batch_size, dataset.image_shape)
    self.batch_size = batch_size
    splits = {name: getattr(dataset, name) for name in ('train', 'validation', 'test')}
    ends = list(itertools.accumulate(len(split.labels) for split in splits.values()))
    self.examples = dict(zip(splits, map(range, [0, *ends], ends)))
    self.num_examples = {
      name: np.bincount(split.labels, minlength=dataset.num_classes)
      for name, split in splits.items()
    }
    # One shape for all splits, so that all share the first block's programs.
    steps = max(map(self.num_steps, splits))
    self._order_shape = steps, batch_size
    mean, std = datasets.channel_statistics(dataset.train.images)
    self._pixels, self._labels, self._mean, self._std = self.put(
      (
        np.concatenate([split.images for split in splits.values()]),
        np.concatenate([split.labels for split in splits.values()]),
        mean,
        std,
      )
    )

  def put(self, tree: Any) -> Any:
    """Puts arrays on the devices, replicated if there are several."""
    return jax.device_put(tree, sharding.replicated(self.mesh))

  def num_steps(self, split: str) -> int:
    """Returns the number of batches that hold all examples of a split."""
    return -(-len(self.examples[split]) // self.batch_size)

  def shuffled(self, key: jax.Array) -> jax.Array:
    """Returns an order of the training split drawn with a key."""
    num_examples = len(self.examples['train'])
    return self.put(
      epoch_order(key, num_examples=num_examples, shape=self._order_shape)
    )

  def in_order(self, split: str) -> jax.Array:
    """Returns the order of a pass over a split, repeated as far as it is padded."""
    examples = np.asarray(self.examples[split], np.int32)
    return self.put(np.resize(examples, self._order_shape))

  def images(self, order: Any, step: Any) -> Images:
    """Returns the input of the first block."""
    return Images(self._pixels, self._mean, self._std, order, step)

  def targets(self, order: Any, step: Any) -> Targets:
    """Returns the input of the head."""
    return Targets(self._labels, order, step)

  def shapes(self) -> tuple[Images, Targets]:
    """Returns shapes, dtypes and shardings of `images` and `targets`."""
    order = jax.ShapeDtypeStruct(self._order_shape, jnp.int32)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    replicated = sharding.replicated(self.mesh)
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
      (self.images(order, step), self.targets(order, step)),
    )
