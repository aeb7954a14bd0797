"""A data set on the device, as uint8, and the batches that programs take from it.

The first block's program and the head get the whole data set, the order of this pass
and the index of the batch: nothing goes from host to device inside an epoch.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lamarck_jax.data import datasets
from lamarck_jax.data.augmentation import Augmentation
from lamarck_jax.data.datasets import Dataset
from lamarck_jax.xla import sharding

# Folded into the key of an epoch for its augmentation. `permutation` splits that key,
# which folds in the smallest numbers.
_AUGMENTATION = 2**31


class Order(NamedTuple):
  """One pass over a split.

  Attributes:
    examples: int32 [steps, batch_size], indices into all splits.
    variants: int32 [steps, batch_size], how training augments each of them; None
      without augmentation.
  """

  examples: jax.Array
  variants: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Images:
  """The input of the first block.

  Attributes:
    pixels: uint8 [num_examples, height, width, channels], all splits.
    mean: float32 [channels], of the training split, in units of uint8.
    std: float32 [channels], likewise.
    order: This pass.
    step: int32 scalar, index of the batch.
    augmentation: A constant of the programs.
  """

  pixels: jax.Array
  mean: jax.Array
  std: jax.Array
  order: Order
  step: jax.Array
  augmentation: Augmentation = dataclasses.field(metadata={'static': True})

  def batch(self, dtype: Any, train: bool) -> jax.Array:
    """Returns the standardised batch [batch_size, height, width, channels].

    Where it is to `train`, it is augmented as well.
    """
    indices = sharding.constrain(self.order.examples[self.step])
    if train and self.order.variants is not None:
      variants = sharding.constrain(self.order.variants[self.step])
      pixels = self.augmentation.gather(self.pixels, indices, variants)
    else:
      pixels = self.pixels[indices]
    return ((pixels.astype(jnp.float32) - self.mean) / self.std).astype(dtype)


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
  """Returns a permutation of the training examples, padded to a shape, int32."""
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

  def __init__(self, dataset: Dataset, batch_size: int, augmentation: Augmentation):
    """Replicates the data set over the devices.

    Raises:
      UserError: If the images are too small for the augmentation.
    """
    augmentation.check(dataset.image_shape)
    self._augmentation = augmentation
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
    # What evaluation leaves unused: every pass has the leaves that were compiled for.
    unused = np.zeros(self._order_shape, np.int32)
    self._unused_variants = self.put(unused) if augmentation else None
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

  def shuffled(self, key: jax.Array) -> Order:
    """Returns an order of the training split drawn with a key."""
    num_examples = len(self.examples['train'])
    examples = epoch_order(key, num_examples=num_examples, shape=self._order_shape)
    if not self._augmentation:
      return self.put(Order(examples, None))
    key = jax.random.fold_in(key, _AUGMENTATION)
    return self.put(Order(examples, self._augmentation.draw(key, self._order_shape)))

  def in_order(self, split: str) -> Order:
    """Returns the order of a pass over a split, repeated as far as it is padded."""
    examples = np.asarray(self.examples[split], np.int32)
    examples = np.resize(examples, self._order_shape)
    return Order(self.put(examples), self._unused_variants)

  def images(self, order: Order, step: Any) -> Images:
    """Returns the input of the first block."""
    return Images(self._pixels, self._mean, self._std, order, step, self._augmentation)

  def targets(self, order: Order, step: Any) -> Targets:
    """Returns the input of the head."""
    return Targets(self._labels, order.examples, step)

  def shapes(self) -> tuple[Images, Targets]:
    """Returns shapes, dtypes and shardings of `images` and `targets`."""
    examples: Any = jax.ShapeDtypeStruct(self._order_shape, jnp.int32)
    order = Order(examples, self._unused_variants)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    replicated = sharding.replicated(self.mesh)
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
      (self.images(order, step), self.targets(order, step)),
    )
