"""Training and evaluation of networks, one compiled program per block.

Every evaluation of a search has a new architecture, so a program for the whole
network would be compiled for every child. But a network is a chain of blocks,
and a block's program depends on its own few integers alone. So each block has
its own programs (forward, backward with the optimizer's update inside, and
inference), built from the same Linen modules as the whole network, kept for all
networks of the process, and chained here. A mutation compiles one or two blocks.

The data set lives on the device as uint8. A batch is gathered and standardised
inside the first block's program, and nothing inside an epoch waits for the host,
which is some programs ahead.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import contextlib
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
import numpy as np
import optax

from lamarck_jax import model
from lamarck_jax.data import datasets
from lamarck_jax.data.datasets import Dataset
from lamarck_jax.genotype import Genotype
from lamarck_jax.model import Variables
from lamarck_jax.runtime import devices

# The programs of this many blocks stay in memory. On CPU a block's three have some 120
# memory maps and 3 MB, and the kernel allows a process 65,530 maps. An individual has
# some ten blocks; what is dropped comes back from the cache on disk.
MAX_BLOCKS_IN_MEMORY = 32

# So many programs may wait for the device at once. The CPU's client takes 32 for each
# device. The next one waits in a thread of its pool, and where devices share a batch
# one of them may then lack the thread in which the others would meet it.
_MAX_IN_FLIGHT = 16


class Images(NamedTuple):
  """The input of the first block: the data set, and where to find the batch.

  Attributes:
    pixels: uint8 [num_examples, height, width, channels], all splits.
    mean: float32 [channels], of the training split, in units of uint8.
    std: float32 [channels], likewise.
    order: int32 [steps * batch_size], the examples in the order of this pass.
    step: int32 scalar, index of the batch.
  """

  pixels: jax.Array
  mean: jax.Array
  std: jax.Array
  order: jax.Array
  step: jax.Array


class Targets(NamedTuple):
  """What the head compares its predictions with, and what it has seen so far.

  Attributes:
    labels: int32 [num_examples], all splits.
    order: int32 [steps * batch_size], the examples in the order of this pass.
    step: int32 scalar, index of the batch.
    total: Summed over the batches so far: the loss in training, float32 scalar; the
      correct predictions of each class in evaluation, int32 [num_classes].
  """

  labels: jax.Array
  order: jax.Array
  step: jax.Array
  total: jax.Array


class TrainingState(NamedTuple):
  """A network between two epochs of its training, on the device.

  Attributes:
    params: Parameters, by module.
    batch_stats: Running statistics, by block.
    opt_state: State of the optimizer, by module.
  """

  params: dict[str, Any]
  batch_stats: dict[str, Any]
  opt_state: dict[str, Any]

  @property
  def variables(self) -> dict[str, Any]:
    """The variables of the network."""
    return {'params': self.params, 'batch_stats': self.batch_stats}


class BlockPrograms(NamedTuple):
  """The compiled programs of a block.

  Attributes:
    forward: (params, batch_stats, inputs) -> (outputs, batch_stats, residuals),
      in training mode.
    backward: (residuals, gradient, params, opt_state, learning_rate) ->
      (gradient of the inputs or None, params, opt_state).
    infer: (params, batch_stats, inputs) -> outputs, in evaluation mode.
  """

  forward: Callable[..., Any]
  backward: Callable[..., Any]
  infer: Callable[..., Any]


class HeadPrograms(NamedTuple):
  """The compiled programs of the classifier with the loss.

  Attributes:
    train: (params, inputs, targets, opt_state, learning_rate) ->
      (gradient of the inputs, params, opt_state, step, total).
    infer: (params, inputs, targets, num_examples) -> (step, total).
  """

  train: Callable[..., Any]
  infer: Callable[..., Any]


# ------------------------------------------------------------------------------
# Programs
# ------------------------------------------------------------------------------


def block_programs(
  module: model.ConvBlock,
  inputs: Images | jax.ShapeDtypeStruct,
  batch_size: int,
) -> BlockPrograms:
  """Compiles the programs of a block.

  Args:
    module: The block.
    inputs: Shapes, dtypes and shardings of what it gets: `Images`, or the activations
      [batch_size, height, width, channels] of the block before it.
    batch_size: Examples per batch.
  """
  pullback_structure: Any = None

  def forward(params: Any, batch_stats: Any, inputs: Any) -> Any:
    def apply(params: Any, x: jax.Array) -> Any:
      variables = {'params': params, 'batch_stats': batch_stats}
      outputs, updated = module.apply(variables, x, train=True, mutable=['batch_stats'])
      return outputs, updated['batch_stats']

    if isinstance(inputs, Images):  # Nobody needs the gradient of the images.
      images = _batch_images(inputs, batch_size, module.dtype)
      outputs, pullback, batch_stats = jax.vjp(
        lambda params: apply(params, images), params, has_aux=True
      )
    else:
      outputs, pullback, batch_stats = jax.vjp(apply, params, inputs, has_aux=True)
    # JAX keeps the structures of what goes into programs, and this one holds jaxprs.
    nonlocal pullback_structure
    residuals, pullback_structure = jax.tree.flatten(pullback)
    return (
      outputs,
      batch_stats,
      [jax.lax.with_sharding_constraint(leaf, kept(leaf)) for leaf in residuals],
    )

  def kept(residual: Any) -> NamedSharding:
    """Returns how a residual is kept: shared are activations, not parameters."""
    return share if residual.ndim == 4 and residual.shape[0] == batch_size else alike

  def backward(
    residuals: Any, gradient: Any, params: Any, opt_state: Any, learning_rate: Any
  ) -> Any:
    pullback = jax.tree.unflatten(pullback_structure, residuals)
    param_gradients, *input_gradient = pullback(gradient)
    params, opt_state = _update(param_gradients, params, opt_state, learning_rate)
    return (input_gradient or [None])[0], params, opt_state

  def infer(params: Any, batch_stats: Any, inputs: Any) -> Any:
    if isinstance(inputs, Images):
      inputs = _batch_images(inputs, batch_size, module.dtype)
    return module.apply(
      {'params': params, 'batch_stats': batch_stats}, inputs, train=False
    )

  mesh, share, alike = _shardings(inputs)
  shapes = model.block_shapes(module, _num_channels(inputs))
  params, batch_stats = _structs((shapes['params'], shapes['batch_stats']), alike)
  opt_state, learning_rate = _structs((_opt_state_shapes(params), _SCALAR), alike)
  options = quick_compiler_options(mesh.devices.flat[0].platform)
  with jax.set_mesh(mesh), concurrent.futures.ThreadPoolExecutor(1) as thread:
    lowered = jax.jit(forward, out_shardings=(share, alike, None)).lower(
      params, batch_stats, inputs
    )
    compiled_forward = thread.submit(lowered.compile, options)
    outputs, _, residuals = lowered.out_info
    compiled_backward = (
      jax.jit(
        backward, donate_argnames='opt_state', out_shardings=(share, alike, alike)
      )
      .lower(
        [_struct(leaf, kept(leaf)) for leaf in residuals],
        _struct(outputs, share),
        params,
        opt_state,
        learning_rate,
      )
      .compile(options)
    )
    compiled_infer = (
      jax.jit(infer, out_shardings=share)
      .lower(params, batch_stats, inputs)
      .compile(options)
    )
  return BlockPrograms(compiled_forward.result(), compiled_backward, compiled_infer)


def head_programs(
  module: model.Classifier, inputs: jax.ShapeDtypeStruct, targets: Targets
) -> HeadPrograms:
  """Compiles the programs of a classifier.

  Args:
    module: The classifier.
    inputs: Shape, dtype and sharding of the last block's outputs.
    targets: Shapes, dtypes and shardings of the targets in training.
  """
  batch_size = inputs.shape[0]

  def train(
    params: Any, inputs: Any, targets: Targets, opt_state: Any, learning_rate: Any
  ) -> Any:
    labels = targets.labels[_batch_indices(targets.order, targets.step, batch_size)]

    def mean_loss(params: Any, inputs: jax.Array) -> jax.Array:
      logits = module.apply({'params': params}, inputs)
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, (param_gradients, input_gradient) = jax.value_and_grad(
      mean_loss, argnums=(0, 1)
    )(params, inputs)
    params, opt_state = _update(param_gradients, params, opt_state, learning_rate)
    total = targets.total + loss
    return input_gradient, params, opt_state, targets.step + 1, total

  def infer(params: Any, inputs: Any, targets: Targets, num_examples: Any) -> Any:
    labels = targets.labels[_batch_indices(targets.order, targets.step, batch_size)]
    position = targets.step * batch_size + jnp.arange(batch_size)
    logits: Any = module.apply({'params': params}, inputs)
    correct = (jnp.argmax(logits, axis=-1) == labels) & (position < num_examples)
    return targets.step + 1, targets.total.at[labels].add(correct.astype(jnp.int32))

  mesh, share, alike = _shardings(inputs)
  shapes = model.classifier_shapes(module, _num_channels(inputs))
  params = _structs(shapes['params'], alike)
  count = jax.ShapeDtypeStruct((), jnp.int32)
  counts = jax.ShapeDtypeStruct((module.num_classes,), jnp.int32)
  opt_state, learning_rate, num_examples, num_correct = _structs(
    (_opt_state_shapes(params), _SCALAR, count, counts), alike
  )
  with jax.set_mesh(mesh):
    compiled_train = (
      jax.jit(
        train,
        donate_argnames='opt_state',
        out_shardings=(share, alike, alike, alike, alike),
      )
      .lower(params, inputs, targets, opt_state, learning_rate)
      .compile()
    )
    compiled_infer = (
      jax.jit(infer, out_shardings=alike)
      .lower(params, inputs, targets._replace(total=num_correct), num_examples)
      .compile()
    )
  return HeadPrograms(compiled_train, compiled_infer)


@functools.cache
def quick_compiler_options(platform: str) -> dict[str, str | bool] | None:
  """Returns options with which XLA compiles faster; None if it has none.

  Args:
    platform: JAX's name of the platform; all but `cpu` have none.
  """
  if platform != 'cpu':
    return None
  candidates: list[dict[str, str | bool]] = [
    {'xla_cpu_use_fusion_emitters': False},  # Its older code generator: jax 0.10.
    {'xla_backend_optimization_level': '2'},
  ]
  for options in candidates:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # No such option.
      jax.jit(lambda: 0).lower().compile(options)
      return options
  return None


_NUM_CORES = devices.num_cores()
_COMPILERS = concurrent.futures.ThreadPoolExecutor(
  _NUM_CORES, thread_name_prefix='compile'
)


_num_traced = 0  # Blocks, since JAX's caches were dropped last.


@functools.lru_cache(maxsize=MAX_BLOCKS_IN_MEMORY)
def _compiled(
  compile_programs: Callable[..., Any], *arguments: Any
) -> concurrent.futures.Future[Any]:
  """Returns the programs to be, compiled in a thread unless they are in memory."""
  global _num_traced
  _num_traced += 1
  return _COMPILERS.submit(compile_programs, *arguments)


def _forget_traces() -> None:
  """Drops JAX's own caches once they hold the traces of many blocks.

  They keep some 0.8 MB of Python objects for every block ever compiled.
  """
  global _num_traced
  if _num_traced >= MAX_BLOCKS_IN_MEMORY:
    _num_traced = 0
    jax.clear_caches()


_SCALAR: Any = jax.ShapeDtypeStruct((), jnp.float32)


def _update(
  gradients: Any, params: Any, opt_state: Any, learning_rate: Any
) -> tuple[Any, Any]:
  optimizer = _optimizer(learning_rate)
  updates, opt_state = optimizer.update(gradients, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


def _opt_state_shapes(params: Any) -> Any:
  return jax.eval_shape(_optimizer(0.0).init, params)


def _optimizer(learning_rate: Any) -> optax.GradientTransformation:
  # One vector of moments for all leaves of a module: fewer loops to compile.
  return optax.flatten(optax.adam(learning_rate))


@functools.partial(jax.jit, static_argnames=('num_examples', 'length'))
def _shuffle(key: jax.Array, *, num_examples: int, length: int) -> jax.Array:
  """Returns a permutation of the training examples, padded to int32 [length]."""
  order = jax.random.permutation(key, jnp.arange(num_examples, dtype=jnp.int32))
  return jnp.resize(order, (length,))


def _batch_indices(order: jax.Array, step: jax.Array, batch_size: int) -> jax.Array:
  indices = jax.lax.dynamic_slice_in_dim(order, step * batch_size, batch_size)
  return jax.lax.with_sharding_constraint(indices, PartitionSpec(devices.BATCH))


def _batch_images(images: Images, batch_size: int, dtype: Any) -> jax.Array:
  """Returns the standardised batch [batch_size, height, width, channels]."""
  indices = _batch_indices(images.order, images.step, batch_size)
  pixels = images.pixels[indices].astype(jnp.float32)
  return ((pixels - images.mean) / images.std).astype(dtype)


def _num_channels(inputs: Images | jax.ShapeDtypeStruct) -> int:
  return (inputs.pixels if isinstance(inputs, Images) else inputs).shape[-1]


def _struct(leaf: Any, sharding: Sharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _structs(tree: Any, sharding: Sharding) -> Any:
  return jax.tree.map(lambda leaf: _struct(leaf, sharding), tree)


def _shardings(
  inputs: Images | jax.ShapeDtypeStruct,
) -> tuple[Mesh, NamedSharding, NamedSharding]:
  """Returns the mesh of inputs, and how it has examples and how parameters."""
  mesh = jax.tree.leaves(inputs)[0].sharding.mesh
  return (
    mesh,
    NamedSharding(mesh, PartitionSpec(devices.BATCH)),
    NamedSharding(mesh, PartitionSpec()),
  )


# ------------------------------------------------------------------------------
# Chains of programs
# ------------------------------------------------------------------------------


class _InFlight:
  """The programs that the device has not ended yet, as far as the host knows."""

  def __init__(self) -> None:
    self._outputs: collections.deque[jax.Array] = collections.deque()

  def add(self, outputs: Any) -> None:
    """Counts one in by its outputs, of which a leaf is kept, and waits if need be."""
    self._outputs.append(jax.tree.leaves(outputs)[0])
    if len(self._outputs) > _MAX_IN_FLIGHT:
      self._outputs.popleft().block_until_ready()


class Trainer:
  """Trains and evaluates networks on one data set.

  Attributes:
    batch_size: Examples per batch.
    steps_per_epoch: Training steps per epoch; the remainder is dropped.
    examples_per_epoch: Examples that these see.
    num_classes: Number of classes.
    class_names: Names of the classes, by label.
    image_shape: (height, width, channels).
  """

  def __init__(
    self, dataset: Dataset, *, batch_size: int, compute_dtype: str = 'float32'
  ):
    """Puts the data set on the device.

    Args:
      dataset: Images and labels of the three splits.
      batch_size: Examples per batch, at most the number of training examples.
      compute_dtype: Type of the blocks' computation, `float32` or `bfloat16`.
    """
    splits = {
      'train': dataset.train,
      'validation': dataset.validation,
      'test': dataset.test,
    }
    self.batch_size = batch_size
    self.steps_per_epoch = len(dataset.train.labels) // batch_size
    self.examples_per_epoch = self.steps_per_epoch * batch_size
    self.num_classes = dataset.num_classes
    self.class_names = dataset.class_names
    self.image_shape = dataset.image_shape
    self._dtype = jnp.dtype(compute_dtype).type
    self._examples: dict[str, range] = {}
    start = 0
    for name, split in splits.items():
      self._examples[name] = range(start, start + len(split.labels))
      start += len(split.labels)

    mesh = devices.batch_mesh(batch_size, self.image_shape)
    self._share = NamedSharding(mesh, PartitionSpec(devices.BATCH))
    self._alike = NamedSharding(mesh, PartitionSpec())
    mean, std = datasets.channel_statistics(dataset.train.images)
    self._pixels, self._labels, self._mean, self._std = self._put(
      (
        np.concatenate([split.images for split in splits.values()]),
        np.concatenate([split.labels for split in splits.values()]),
        mean,
        std,
      )
    )
    self._num_examples = {
      name: np.bincount(split.labels, minlength=self.num_classes)
      for name, split in splits.items()
    }
    self._zero_step, self._zero_loss, self._zero_correct = self._put(
      (np.int32(0), np.float32(0), np.zeros(self.num_classes, np.int32))
    )
    # One length for all splits, so that all share the first block's programs.
    longest = max(map(len, self._examples.values()))
    self._order_length = -(-longest // batch_size) * batch_size
    self._shuffle = functools.partial(
      _shuffle, num_examples=len(dataset.train.labels), length=self._order_length
    )

  def compile(self, genotype: Genotype) -> None:
    """Compiles a network's programs, in threads, unless they are in memory."""
    self._programs(genotype)

  def check_device(self) -> None:
    """Raises JAX's error if the device computes nothing any more."""
    (self._zero_loss + 1).block_until_ready()

  def compile_ahead(self, genotypes: Sequence[Genotype]) -> None:
    """Begins to compile what may be trained next, if training leaves cores idle.

    It does not wait. Where all cores train, the compiler would take its time from them,
    and some of it for networks that never come.

    Args:
      genotypes: The architectures.
    """
    if self._share.mesh.size < _NUM_CORES:
      for genotype in genotypes:
        self._futures(genotype)

  def train(
    self,
    key: jax.Array,
    genotype: Genotype,
    variables: Variables,
    learning_rates: Sequence[float],
    on_epoch: Callable[[int, float], None] | None = None,
  ) -> dict[str, Any]:
    """Trains a network with Adam on the cross-entropy (Section 4.2).

    Adam starts from zero moments. Each epoch is a fresh permutation.

    Args:
      key: A JAX random key, for the permutations.
      genotype: The architecture.
      variables: Its variables; they are left as they are.
      learning_rates: Adam's learning rate of each epoch.
      on_epoch: Called after every epoch with its index and its mean loss.

    Returns:
      The trained variables, on the device.
    """
    state = self.initial_state(genotype, variables)
    for epoch, learning_rate in enumerate(learning_rates):
      state, loss = self.train_epoch(key, genotype, state, epoch, learning_rate)
      if on_epoch:
        on_epoch(epoch, loss)
    return state.variables

  def initial_state(self, genotype: Genotype, variables: Variables) -> TrainingState:
    """Returns the state before the first epoch, with Adam's moments at zero.

    Args:
      genotype: The architecture.
      variables: Its variables; they are left as they are.
    """
    modules = [*map(model.block_name, genotype.blocks), model.CLASSIFIER]
    params, batch_stats = dict(variables['params']), dict(variables['batch_stats'])
    zeros = jax.tree.map(
      lambda leaf: np.zeros(leaf.shape, leaf.dtype),
      {name: _opt_state_shapes(params[name]) for name in modules},
    )
    return self.put_state(TrainingState(params, batch_stats, zeros))

  def put_state(self, state: TrainingState) -> TrainingState:
    """Puts a state on the device, in buffers that training may overwrite."""
    opt_state = jax.device_put(state.opt_state, self._alike, may_alias=False)
    return TrainingState(
      self._put(state.params), self._put(state.batch_stats), opt_state
    )

  def train_epoch(
    self,
    key: jax.Array,
    genotype: Genotype,
    state: TrainingState,
    epoch: int,
    learning_rate: float,
  ) -> tuple[TrainingState, float]:
    """Trains a network for one epoch.

    Args:
      key: A JAX random key, the same for all epochs.
      genotype: The architecture.
      state: The state before the epoch; its optimizer state cannot be used again.
      epoch: Index of the epoch, for its permutation.
      learning_rate: Adam's learning rate.

    Returns:
      The state after the epoch, and its mean loss.
    """
    blocks, head = self._programs(genotype)
    names = [model.block_name(block) for block in genotype.blocks]
    params = [state.params[name] for name in names]
    stats = [state.batch_stats[name] for name in names]
    opt_states = [state.opt_state[name] for name in names]
    head_params = state.params[model.CLASSIFIER]
    head_opt_state = state.opt_state[model.CLASSIFIER]

    order = self._put(self._shuffle(jax.random.fold_in(key, epoch)))
    rate = self._put(np.float32(learning_rate))
    step, total = self._zero_step, self._zero_loss
    in_flight = _InFlight()
    for _ in range(self.steps_per_epoch):
      x, residuals = self._images(order, step), []
      for index, block in enumerate(blocks):
        x, stats[index], saved = block.forward(params[index], stats[index], x)
        residuals.append(saved)
        in_flight.add(stats[index])
      targets = Targets(self._labels, order, step, total)
      gradient, head_params, head_opt_state, step, total = head.train(
        head_params, x, targets, head_opt_state, rate
      )
      in_flight.add(total)
      for index in reversed(range(len(blocks))):
        gradient, params[index], opt_states[index] = blocks[index].backward(
          residuals.pop(), gradient, params[index], opt_states[index], rate
        )
        in_flight.add(params[index])

    state = TrainingState(
      dict(zip(names, params), **{model.CLASSIFIER: head_params}),
      dict(zip(names, stats)),
      dict(zip(names, opt_states), **{model.CLASSIFIER: head_opt_state}),
    )
    # The next epoch counts the programs in flight from none.
    jax.block_until_ready(params)
    return state, float(total) / self.steps_per_epoch

  def accuracy(self, genotype: Genotype, variables: Variables, split: str) -> float:
    """Returns the share of a split's examples that a network classifies right.

    Args:
      genotype: The architecture.
      variables: Its variables.
      split: `train`, `validation` or `test`; every example counts once.
    """
    correct = self.num_correct(genotype, variables, split)
    return int(correct.sum()) / len(self._examples[split])

  def num_examples(self, split: str) -> np.ndarray:
    """Returns how many examples of each class a split has, int64 [num_classes]."""
    return self._num_examples[split]

  def num_correct(
    self, genotype: Genotype, variables: Variables, split: str
  ) -> np.ndarray:
    """Returns how many examples of each class a network classifies right.

    Args:
      genotype: The architecture.
      variables: Its variables.
      split: `train`, `validation` or `test`; every example counts once.

    Returns:
      int32 [num_classes].
    """
    blocks, head = self._programs(genotype)
    names = [model.block_name(block) for block in genotype.blocks]
    params, stats = self._put((variables['params'], variables['batch_stats']))
    examples = self._examples[split]
    num_steps = -(-len(examples) // self.batch_size)
    order = np.resize(np.asarray(examples, np.int32), self._order_length)
    order, num_examples = self._put((order, np.int32(len(examples))))
    step, correct = self._zero_step, self._zero_correct
    # `_InFlight` would keep activations alive, so every eighth block is waited for:
    # half of what may be in flight, since there can be a head for each block.
    waits = itertools.cycle([False] * (_MAX_IN_FLIGHT // 2 - 1) + [True])
    for _ in range(num_steps):
      x = self._images(order, step)
      for name, block in zip(names, blocks):
        x = block.infer(params[name], stats[name], x)
        if next(waits):
          x.block_until_ready()
      targets = Targets(self._labels, order, step, correct)
      step, correct = head.infer(params[model.CLASSIFIER], x, targets, num_examples)
    return np.asarray(correct)

  def activations(
    self, genotype: Genotype, variables: Variables
  ) -> Iterator[np.ndarray]:
    """Yields a network's activations on a batch of the training split.

    They are those of evaluation mode.

    Args:
      genotype: The architecture.
      variables: Its variables.

    Yields:
      The images as the network sees them, and each block's outputs,
      float32 [batch, height, width, channels].
    """
    blocks, _ = self._programs(genotype)
    params, stats = self._put((variables['params'], variables['batch_stats']))
    order = np.resize(np.asarray(self._examples['train'], np.int32), self._order_length)
    x: Any = self._images(self._put(order), self._zero_step)
    yield np.asarray((x.pixels[order[: self.batch_size]] - x.mean) / x.std)
    for block, programs in zip(genotype.blocks, blocks):
      name = model.block_name(block)
      x = programs.infer(params[name], stats[name], x)
      yield np.asarray(x).astype(np.float32)

  def _put(self, tree: Any) -> Any:
    """Puts arrays on the device, whole on each if there are several."""
    return jax.device_put(tree, self._alike)

  def _images(self, order: Any, step: Any) -> Images:
    return Images(self._pixels, self._mean, self._std, order, step)

  def _programs(self, genotype: Genotype) -> tuple[list[BlockPrograms], HeadPrograms]:
    """Returns the programs of a network, once they are compiled."""
    try:
      *blocks, head = [future.result() for future in self._futures(genotype)]
    except (jax.errors.JaxRuntimeError, MemoryError):
      # Compiled ahead it may have failed for want of memory; now it gets all there is.
      _compiled.cache_clear()
      *blocks, head = [future.result() for future in self._futures(genotype)]
    _forget_traces()
    return blocks, head

  def _futures(self, genotype: Genotype) -> list[concurrent.futures.Future[Any]]:
    """Returns the programs of a network's blocks and of its classifier, to be."""
    order = jax.ShapeDtypeStruct((self._order_length,), jnp.int32)
    inputs: Any = _structs(self._images(order, self._zero_step), self._alike)
    labels, total = _structs((self._labels, self._zero_loss), self._alike)
    targets = Targets(labels, inputs.order, inputs.step, total)
    _, height, width, _ = inputs.pixels.shape
    futures = []
    for block in genotype.blocks:
      # Evaluations are some hundredths of the work: in them XLA's own convolution
      # gains more by compiling three times faster than it loses by running slower.
      module = model.conv_block(
        block,
        dtype=self._dtype,
        conv_general_dilated=jax.lax.conv_general_dilated,
      )
      futures.append(_compiled(block_programs, module, inputs, self.batch_size))
      height, width = -(-height // block.stride), -(-width // block.stride)
      shape = (self.batch_size, height, width, block.filters)
      inputs = jax.ShapeDtypeStruct(shape, self._dtype, sharding=self._share)
    classifier = model.Classifier(self.num_classes)
    return [*futures, _compiled(head_programs, classifier, inputs, targets)]
