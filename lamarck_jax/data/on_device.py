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
from lamarck_jax.errors import UserError
from lamarck_jax.xla import sharding

# Folded into the key of an epoch for its augmentation. `permutation` splits that key,
# which folds in the smallest numbers.
_AUGMENTATION = 2**31


class Order(NamedTuple):
  """One pass over a split.

  Attributes:
    examples: int32 [steps, batch_size], indices into all splits.
    variants: int32 [steps, batch_size], how each of them is augmented; None without
      augmentation.
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

  def batch(self, dtype: Any) -> jax.Array:
    """Returns the standardised batch [batch_size, height, width, channels]."""
    indices = sharding.constrain(self.order.examples[self.step])
    if self.order.variants is not None:
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
    class_weights: float32 [num_classes], of the loss; None: all are 1.
  """

  labels: jax.Array
  order: jax.Array
  step: jax.Array
  class_weights: jax.Array | None = None

  def batch(self) -> jax.Array:
    """Returns the labels of the batch, int32 [batch_size]."""
    return self.labels[sharding.constrain(self.order[self.step])]

  def mean(self, losses: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean of a batch's losses, each weighted by its label's class."""
    if self.class_weights is None:
      return losses.mean()
    return (losses * self.class_weights[labels]).mean()


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
    class_counts: The number of examples of each class, by the split's name.
  """

  def __init__(
    self,
    dataset: Dataset,
    batch_size: int,
    augmentation: Augmentation,
    class_weights: str = 'none',
  ):
    """Replicates the data set over the devices.

    Args:
      dataset: Its three splits.
      batch_size: Examples per batch.
      augmentation: Of the training images.
      class_weights: `none`, or `balanced`: a class is weighted by the number of
        training examples over the number of classes and over its own number, so that
        all classes weigh the same in an epoch's loss, and the mean weight is 1.

    Raises:
      UserError: If the images are too small for the augmentation, or a class to be
        weighted has no training example.
    """
    augmentation.check(dataset.image_shape)
    self._augmentation = augmentation
    self.mesh = sharding.batch_mesh(batch_size, dataset.image_shape)
    self.batch_size = batch_size
    splits = {name: getattr(dataset, name) for name in ('train', 'validation', 'test')}
    self.class_counts = {
      name: np.bincount(split.labels, minlength=dataset.num_classes).tolist()
      for name, split in splits.items()
    }
    ends = list(itertools.accumulate(len(split.labels) for split in splits.values()))
    self.examples = dict(zip(splits, map(range, [0, *ends], ends)))
    # One shape for all splits, so that all share the first block's programs.
    steps = max(map(self.num_steps, splits))
    self._order_shape = steps, batch_size
    # Evaluation leaves the images as they are, by the programs of training.
    identity = np.full(self._order_shape, augmentation.identity, np.int32)
    self._unchanged = self.put(identity) if augmentation else None
    self._class_weights = None
    if class_weights == 'balanced':
      self._class_weights = self.put(_balanced_weights(dataset))
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

  def num_examples(self, split: str) -> int:
    """Returns the number of examples of a split."""
    return len(self.examples[split])

  def num_steps(self, split: str) -> int:
    """Returns the number of batches that hold all examples of a split."""
    return -(-self.num_examples(split) // self.batch_size)

  def shuffled(self, key: jax.Array) -> Order:
    """Returns an order of the training split drawn with a key."""
    num_examples = self.num_examples('train')
    examples = epoch_order(key, num_examples=num_examples, shape=self._order_shape)
    if not self._augmentation:
      return self.put(Order(examples, None))
    key = jax.random.fold_in(key, _AUGMENTATION)
    return self.put(Order(examples, self._augmentation.draw(key, self._order_shape)))

  def in_order(self, split: str) -> Order:
    """Returns the order of a pass over a split, repeated as far as it is padded.

    Its images are not augmented.
    """
    examples = np.asarray(self.examples[split], np.int32)
    examples = np.resize(examples, self._order_shape)
    return Order(self.put(examples), self._unchanged)

  def images(self, order: Order, step: Any) -> Images:
    """Returns the input of the first block."""
    return Images(self._pixels, self._mean, self._std, order, step, self._augmentation)

  def targets(self, order: Order, step: Any) -> Targets:
    """Returns the input of the head."""
    return Targets(self._labels, order.examples, step, self._class_weights)

  def shapes(self) -> tuple[Images, Targets]:
    """Returns shapes, dtypes and shardings of `images` and `targets`."""
    examples: Any = jax.ShapeDtypeStruct(self._order_shape, jnp.int32)
    order = Order(examples, self._unchanged)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    replicated = sharding.replicated(self.mesh)
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
      (self.images(order, step), self.targets(order, step)),
    )


def _balanced_weights(dataset: Dataset) -> np.ndarray:
  """Returns the weights of `balanced`, float32 [num_classes]."""
  counts = np.bincount(dataset.train.labels, minlength=dataset.num_classes)
  if not counts.all():
    name = dataset.class_names[int(counts.argmin())]
    raise UserError(
      f"class_weights: got 'balanced' where class {name!r} has no training example,"
      ' want at least one'
    )
  return (counts.sum() / (len(counts) * counts)).astype(np.float32)
