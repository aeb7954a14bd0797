"""Training and evaluation of networks (Section 4.2).

Cross-entropy, Adam, batches of one size in a fresh permutation each epoch. The training
step stands below as functions of one block or of the head; `Trainer` chains them. How
they become compiled programs, one per block, is in `xla.programs`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lamarck_jax import metrics, model
from lamarck_jax.data.augmentation import NO_AUGMENTATION, Augmentation
from lamarck_jax.data.datasets import Dataset
from lamarck_jax.data.on_device import DeviceData, Images, Targets
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Genotype
from lamarck_jax.model import CLASSIFIER, Variables
from lamarck_jax.runtime import compilation_cache, devices, jax_settings
from lamarck_jax.xla import (
  cross_entropy,
  fused_block,
  program_cache,
  programs,
  vectors,
)
from lamarck_jax.xla.programs import BlockPrograms, HeadPrograms
from lamarck_jax.xla.stored_programs import StoredPrograms
from lamarck_jax.xla.vectors import Tree

# A network between two epochs of its training, on the device: for each module its
# parameters, running statistics and Adam's state, as one vector; see `xla.vectors`.
TrainingState = dict[str, jax.Array]


# ------------------------------------------------------------------------------
# The training step
# ------------------------------------------------------------------------------


def forward(
  block: fused_block.ConvBlock,
  params: Tree,
  batch_stats: Tree,
  inputs: Any,
  train: bool | jax.Array,
) -> tuple[jax.Array, Callable[..., Any], Tree]:
  """Applies a block to `Images` or to the block before's activations.

  Args:
    train: Bool scalar: in training mode, or in evaluation mode.

  Returns:
    The activations, their pullback in training mode, and the running statistics after
    this batch.
  """
  x = inputs.batch(block.dtype) if isinstance(inputs, Images) else inputs

  def apply(params: Tree, x: jax.Array = x) -> tuple[jax.Array, Tree]:
    variables = {'params': params, 'batch_stats': batch_stats}
    outputs: Any
    outputs, updated = block.apply(variables, x, train, mutable=['batch_stats'])
    return outputs, updated['batch_stats']

  # Nobody needs the gradient of the images.
  primals = (params,) if isinstance(inputs, Images) else (params, x)
  return jax.vjp(apply, *primals, has_aux=True)


def head_gradients(
  head: model.Classifier, params: Tree, x: jax.Array, targets: Targets, total: jax.Array
) -> tuple[tuple[Tree, jax.Array], jax.Array, jax.Array]:
  """Takes the gradients of the loss on a batch, and adds the loss to `total`.

  Returns the gradients of the parameters and of x, the next step, and the total.
  """
  labels = targets.batch()

  def loss(params: Tree, x: jax.Array) -> jax.Array:
    logits: Any = head.apply({'params': params}, x)
    return targets.mean(cross_entropy.softmax_cross_entropy(logits, labels), labels)

  value, gradients = jax.value_and_grad(loss, (0, 1))(params, x)
  return gradients, targets.step + 1, total + value


def adam_update(
  gradients: Tree, params: Tree, opt_state: Tree, learning_rate: Any
) -> tuple[Tree, Tree]:
  """Returns the parameters and Adam's state of a module after a step."""
  updates, opt_state = optax.adam(learning_rate).update(gradients, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


def count_predictions(
  head: model.Classifier,
  params: Tree,
  x: jax.Array,
  targets: Targets,
  num_examples: jax.Array,
  total: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns the next step, and `total` [class, predicted class] with a batch added."""
  labels = targets.batch()
  batch_size = len(labels)
  # The last batch is padded with examples that have been counted.
  position = targets.step * batch_size + jnp.arange(batch_size)
  logits: Any = head.apply({'params': params}, x)
  true, predicted = (
    jax.nn.one_hot(classes, head.num_classes)
    for classes in (labels, jnp.argmax(logits, axis=-1))
  )
  # A product of one-hot labels, since a scatter is slow on a GPU; exact up to 2**24.
  counts = (true * (position < num_examples)[:, None]).T @ predicted
  return targets.step + 1, total + counts.astype(jnp.int32)


_init_adam = optax.adam(0.0).init
BLOCK_FUNCTIONS = programs.BlockFunctions(
  model.block_shapes, _init_adam, adam_update, forward
)
HEAD_FUNCTIONS = programs.HeadFunctions(
  model.classifier_shapes, _init_adam, adam_update, head_gradients, count_predictions
)


# ------------------------------------------------------------------------------
# Epochs and evaluations
# ------------------------------------------------------------------------------


def not_finite(variables: Variables) -> str | None:
  """Returns the name of a leaf with a value that is not finite, if there is one."""
  for path, leaf in jax.tree.leaves_with_path(variables):
    if not np.isfinite(np.asarray(leaf, np.float32)).all():
      return jax.tree_util.keystr(path, simple=True, separator='/')
  return None


class Trainer:
  """Trains and evaluates networks on one data set.

  Attributes:
    batch_size: Examples per batch.
    steps_per_epoch: Training steps per epoch; the remainder is dropped.
    examples_per_epoch: Examples that these see.
    class_names: Names of the classes, by label.
    image_shape: (height, width, channels).
    description: Name, shape, sizes and classes of the data set, ready for JSON.
    data: The data set on the device.
    training, evaluation: The two modes of `BlockPrograms.forward`, on the device.
  """

  def __init__(
    self,
    dataset: Dataset,
    *,
    batch_size: int,
    compute_dtype: str = 'float32',
    augmentation: Augmentation = NO_AUGMENTATION,
    class_weights: str = 'none',
  ):
    """Puts the data set on the device.

    Args:
      compute_dtype: Of the blocks, `float32` or `bfloat16`.
      augmentation: Of the training images; evaluation sees them as they are.
      class_weights: Of the loss, `none`, or `balanced`: see `DeviceData`.

    Raises:
      UserError: If there are fewer training examples than a batch has, or images are
        too small for the augmentation.
    """
    if len(dataset.train.labels) < batch_size:
      raise UserError(
        f'config.batch_size: got {batch_size}, want at most the number of training'
        f' examples, {len(dataset.train.labels)}'
      )
    self.batch_size = batch_size
    self.steps_per_epoch = len(dataset.train.labels) // batch_size
    self.examples_per_epoch = self.steps_per_epoch * batch_size
    self.num_classes = dataset.num_classes
    self.class_names = dataset.class_names
    self.image_shape = dataset.image_shape
    self.description = dataset.description
    cache = compilation_cache.current()
    self.programs = program_cache.ProgramCache(
      BLOCK_FUNCTIONS,
      HEAD_FUNCTIONS,
      batch_size=batch_size,
      num_threads=devices.num_cores(),
      decorator=jax_settings.applied(),
      stored=StoredPrograms(cache) if cache else None,
    )
    self._dtype = jnp.dtype(compute_dtype).type
    self.data = DeviceData(dataset, batch_size, augmentation, class_weights)
    counts = np.zeros((self.num_classes, self.num_classes), np.int32)
    self._zero_step, self._zero_loss, self._zero_counts = self.data.put(
      (np.int32(0), np.float32(0), counts)
    )
    self.training, self.evaluation = self.data.put((np.bool_(True), np.bool_(False)))

  def train(
    self,
    key: jax.Array,
    genotype: Genotype,
    variables: Variables,
    learning_rates: Sequence[float],
    on_epoch: Callable[[int, float], None] | None = None,
  ) -> dict[str, Any]:
    """Returns trained variables, on the host; Adam's moments start at zero.

    Args:
      key: Draws the permutations and the augmentation.
      variables: They are not modified.
      learning_rates: Adam's learning rate of each epoch.
      on_epoch: Called after every epoch with its index and its mean loss.
    """
    state = self.initial_state(genotype, variables)
    for epoch, learning_rate in enumerate(learning_rates):
      state, loss = self.train_epoch(key, genotype, state, epoch, learning_rate)
      if on_epoch:
        on_epoch(epoch, loss)
    return self.variables(genotype, state)

  def train_epoch(
    self,
    key: jax.Array,
    genotype: Genotype,
    state: TrainingState,
    epoch: int,
    learning_rate: float,
  ) -> tuple[TrainingState, float]:
    """Returns the state after an epoch, and its mean loss.

    Args:
      key: The same for all epochs; `epoch`, the index, is folded in.
      state: The state before.
    """
    blocks, head = self.network(genotype)
    state = dict(state)
    order = self.data.shuffled(jax.random.fold_in(key, epoch))
    rate = self.data.put(np.float32(learning_rate))
    step, total = self._zero_step, self._zero_loss
    in_flight = programs.InFlight()
    for _ in range(self.steps_per_epoch):
      x: Any = self.data.images(order, step)
      targets, residuals = self.data.targets(order, step), {}
      for name, block in blocks.items():
        x, residuals[name] = block.forward(state[name], x, self.training)
        in_flight.add(residuals[name].batch_stats)
      gradient, state[CLASSIFIER], step, total = head.train(
        state[CLASSIFIER], x, targets, rate, total
      )
      in_flight.add(total)
      for name, block in reversed(blocks.items()):
        gradient, state[name] = block.backward(
          residuals.pop(name), gradient, state[name], rate
        )
        in_flight.add(state[name])

    # The next epoch counts the programs in flight from none.
    jax.block_until_ready(state)
    return state, float(total) / self.steps_per_epoch

  def accuracy(self, genotype: Genotype, variables: Variables, split: str) -> float:
    """Returns the share of a split's examples that a network classifies right."""
    return metrics.accuracy(self.confusion(genotype, variables, split))

  def confusion(
    self, genotype: Genotype, variables: Variables, split: str
  ) -> np.ndarray:
    """Returns the number of examples by class and predicted class, int32.

    Every example of the split, `train`, `validation` or `test`, counts once.
    """
    blocks, head = self.network(genotype)
    state = self.initial_state(genotype, variables)
    order = self.data.in_order(split)
    num_examples = self.data.put(np.int32(self.data.num_examples(split)))
    step, total = self._zero_step, self._zero_counts
    in_flight = programs.InFlight()
    for _ in range(self.data.num_steps(split)):
      x: Any = self.data.images(order, step)
      targets = self.data.targets(order, step)
      for name, block in blocks.items():
        x, residuals = block.forward(state[name], x, self.evaluation)
        in_flight.add(residuals.batch_stats)
      step, total = head.infer(state[CLASSIFIER], x, targets, num_examples, total)
      in_flight.add(total)
    return np.asarray(total)

  def initial_state(self, genotype: Genotype, variables: Variables) -> TrainingState:
    """Returns the state before the first epoch, with Adam's moments at zero."""
    params, batch_stats = variables['params'], variables['batch_stats']
    state = {}
    for name, (*_, opt_state) in self.state_shapes(genotype).items():
      zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), opt_state)
      tree = params[name], batch_stats.get(name, {}), zeros
      state[name] = vectors.ravel_on_host(tree)
    return self.put_state(state)

  def put_state(self, state: Mapping[str, Any]) -> TrainingState:
    """Puts a state on the device."""
    on_device: TrainingState = self.data.put(dict(state))
    return on_device

  def variables(self, genotype: Genotype, state: TrainingState) -> dict[str, Any]:
    """Returns the variables of a network in a state, on the host."""
    params, batch_stats = {}, {}
    for name, shapes in self.state_shapes(genotype).items():
      vector = np.asarray(state[name])
      params[name], batch_stats[name], _ = vectors.unravel(vector, shapes)
    del batch_stats[CLASSIFIER]
    return {'params': params, 'batch_stats': batch_stats}

  def state_shapes(self, genotype: Genotype) -> dict[str, Any]:
    """Returns the `programs.state_shapes` of each module."""
    blocks, head, *_ = self._modules(genotype)
    names, channels = map(model.block_name, genotype.blocks), self.image_shape[-1]
    shapes = {}
    for name, block in zip(names, blocks):
      shapes[name] = programs.state_shapes(BLOCK_FUNCTIONS, block, channels)
      channels = block.filters
    shapes[CLASSIFIER] = programs.state_shapes(HEAD_FUNCTIONS, head, channels)
    return shapes

  def compile(self, genotype: Genotype) -> None:
    """Compiles a network's programs, in threads, unless they are in memory."""
    self.network(genotype)

  def compile_ahead(self, genotypes: Sequence[Genotype]) -> None:
    """Begins to compile what may be trained next, if training leaves cores idle.

    It does not wait. Where all cores train, the compiler would take its time from them,
    and some of it for networks that never come.
    """
    if self.data.mesh.size < devices.num_cores():
      for genotype in genotypes:
        self.programs.submit(*self._modules(genotype))

  def close(self) -> None:
    """Cancels what is not being compiled yet, and compiles nothing more."""
    self.programs.close()

  def check_device(self) -> None:
    """Raises JAX's error if the device computes nothing any more."""
    (self._zero_loss + 1).block_until_ready()

  def network(
    self, genotype: Genotype
  ) -> tuple[dict[str, BlockPrograms], HeadPrograms]:
    """Returns the programs of a network by block, once they are compiled."""
    names = map(model.block_name, genotype.blocks)
    blocks, head = self.programs.network(*self._modules(genotype))
    return dict(zip(names, blocks)), head

  def _modules(self, genotype: Genotype) -> tuple[Any, ...]:
    """Returns the modules of a network, and the shapes that they get."""
    blocks = tuple(
      fused_block.ConvBlock(b.filters, b.kernel_size, b.stride, self._dtype)
      for b in genotype.blocks
    )
    return blocks, model.Classifier(self.num_classes), *self.data.shapes()
