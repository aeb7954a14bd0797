"""One compiled program per block, instead of one per network.

Every evaluation of a search has a new architecture, so a program for the whole network
would be compiled for every child. But a network is a chain of blocks, and a block's
programs depend on its own three integers and its input's shape alone. They are kept for
all networks of a trainer; a mutation compiles those of one or two blocks.
"""

import collections
from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import functools
import threading
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lamarck_jax.xla import compiler, sharding
from lamarck_jax.xla.fused_block import ConvBlock

# A tree of arrays, or of their shapes, dtypes and shardings.
Tree = Any

# The programs of this many blocks stay in memory. On CPU a block's three have some 120
# memory maps and 3 MB, and the kernel allows a process 65,530 maps. An individual has
# some ten blocks; what is dropped comes back from the cache on disk.
MAX_BLOCKS_IN_MEMORY = 32

# The number of programs that may wait for the device at once. The CPU's client takes 32
# for each device. The next one waits in a thread of its pool, and where devices share a
# batch one of them may then lack the thread in which the others would meet it.
MAX_IN_FLIGHT = 16


class BlockFunctions(NamedTuple):
  """What is compiled for a block; `module` is its Linen module.

  Attributes:
    shapes: (module, channels) -> the shapes of its variables.
    init_optimizer: params -> opt_state.
    forward: (module, params, batch_stats, inputs) -> (outputs, pullback, batch_stats).
    backward: (pullback, gradient, params, opt_state, learning_rate) ->
      (gradient of the inputs or None, params, opt_state).
    infer: (module, params, batch_stats, inputs) -> outputs.
  """

  shapes: Callable[..., Tree]
  init_optimizer: Callable[..., Tree]
  forward: Callable[..., tuple[jax.Array, Callable[..., Any], Tree]]
  backward: Callable[..., tuple[Any, Tree, Tree]]
  infer: Callable[..., jax.Array]


class HeadFunctions(NamedTuple):
  """What is compiled for the classifier with the loss.

  Attributes:
    shapes: (module, channels) -> the shapes of its variables.
    init_optimizer: params -> opt_state.
    train: (module, params, inputs, targets, opt_state, learning_rate, total) ->
      (gradient of the inputs, params, opt_state, step, total).
    infer: (module, params, inputs, targets, num_examples, total) -> (step, total).
  """

  shapes: Callable[..., Tree]
  init_optimizer: Callable[..., Tree]
  train: Callable[..., tuple[jax.Array, Tree, Tree, jax.Array, jax.Array]]
  infer: Callable[..., tuple[jax.Array, jax.Array]]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Argument:
  """Stands in a pullback for a residual that is an argument of `forward`.

  Attributes:
    index: Among the leaves of (params, inputs).
  """

  index: int


@dataclasses.dataclass(frozen=True)
class BlockPrograms:
  """The compiled programs of a block."""

  _forward: Callable[..., Any]
  _backward: Callable[..., Any]
  _infer: Callable[..., Any]

  def forward(
    self, params: Tree, batch_stats: Tree, inputs: Tree
  ) -> tuple[jax.Array, Tree, tuple[Tree, list[jax.Array]]]:
    """Returns outputs, updated statistics and the residuals for `backward`."""
    outputs, pullback, batch_stats = self._forward(params, batch_stats, inputs)
    return outputs, batch_stats, (inputs, jax.tree.leaves(pullback))

  def backward(
    self,
    residuals: tuple[Tree, list[jax.Array]],
    gradient: jax.Array,
    params: Tree,
    opt_state: Tree,
    learning_rate: jax.Array,
  ) -> tuple[Any, Tree, Tree]:
    """Returns the gradient of the inputs (or None), params and opt_state.

    Args:
      residuals: Those of `forward`.
      gradient: Of the outputs.
      params: Those that `forward` got.
      opt_state: It is overwritten.
      learning_rate: Adam's, float32 scalar.
    """
    return self._backward(*residuals, gradient, params, opt_state, learning_rate)

  def infer(self, params: Tree, batch_stats: Tree, inputs: Tree) -> jax.Array:
    """Returns the outputs in evaluation mode."""
    return self._infer(params, batch_stats, inputs)


class HeadPrograms(NamedTuple):
  """The compiled programs of the head, with the arguments of `HeadFunctions`."""

  train: Callable[..., Any]
  infer: Callable[..., Any]


def compile_block(
  functions: BlockFunctions, module: nn.Module, inputs: Tree, tracing: threading.Lock
) -> BlockPrograms:
  """Compiles the programs of a block.

  Args:
    functions: What is compiled.
    module: The block.
    inputs: Shapes, dtypes and shardings of what it gets; the first axis of activations
      is the batch.
    tracing: Held while Python traces, not while XLA compiles.
  """
  mesh = _mesh(inputs)
  sharded, replicated = sharding.sharded(mesh), sharding.replicated(mesh)
  variables = functions.shapes(module, _num_channels(inputs))
  params, batch_stats = variables['params'], variables['batch_stats']
  opt_state = jax.eval_shape(functions.init_optimizer, params)
  params, batch_stats, opt_state = _structs(
    (params, batch_stats, opt_state), replicated
  )
  options = compiler.block_options(mesh.devices.flat[0].platform)
  with jax.set_mesh(mesh), concurrent.futures.ThreadPoolExecutor(1) as thread:
    with tracing:
      forward = jax.jit(
        functools.partial(_forward_sharded, functions.forward, module, sharded),
        out_shardings=(sharded, None, replicated),
      ).lower(params, batch_stats, inputs)
    compiled_forward = thread.submit(forward.compile, options)
    outputs, pullback, _ = forward.out_info
    residuals, structure = jax.tree.flatten(pullback)
    with tracing:
      backward = jax.jit(
        functools.partial(_backward_of_residuals, functions.backward, structure),
        donate_argnames='opt_state',
        out_shardings=(sharded, replicated, replicated),
      ).lower(
        inputs,
        [_struct(leaf, _kept(leaf, outputs, sharded)) for leaf in residuals],
        _struct(outputs, sharded),
        params,
        opt_state,
        _scalar(jnp.float32, replicated),
      )
    compiled_backward = backward.compile(options)
    with tracing:
      infer = jax.jit(
        functools.partial(functions.infer, module), out_shardings=sharded
      ).lower(params, batch_stats, inputs)
    compiled_infer = infer.compile(options)
  return BlockPrograms(compiled_forward.result(), compiled_backward, compiled_infer)


def _forward_sharded(
  forward: Callable[..., Any],
  module: nn.Module,
  sharded: NamedSharding,
  params: Tree,
  batch_stats: Tree,
  inputs: Tree,
) -> Any:
  """Leaves arguments out of the residuals, and fixes how the others are kept.

  A program that returned an argument would copy it. Without the constraint XLA's
  partitioner would choose the sharding.
  """
  outputs, pullback, batch_stats = forward(module, params, batch_stats, inputs)
  arguments = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves((params, inputs)))}

  def keep(leaf: Any) -> Any:
    if id(leaf) in arguments:
      return _Argument(arguments[id(leaf)])
    return jax.lax.with_sharding_constraint(leaf, _kept(leaf, outputs, sharded))

  return outputs, jax.tree.map(keep, pullback), batch_stats


def _backward_of_residuals(
  backward: Callable[..., Any],
  structure: jax.tree_util.PyTreeDef,
  inputs: Tree,
  residuals: list[jax.Array],
  gradient: jax.Array,
  params: Tree,
  opt_state: Tree,
  learning_rate: jax.Array,
) -> Any:
  """Takes the leaves of the pullback in its place.

  JAX keeps the structures of the arguments of compiled programs for good, and a
  pullback's holds jaxprs, some 40 KB a block.
  """
  arguments = jax.tree.leaves((params, inputs))
  pullback = jax.tree.map(
    lambda leaf: arguments[leaf.index] if isinstance(leaf, _Argument) else leaf,
    jax.tree.unflatten(structure, residuals),
    is_leaf=lambda leaf: isinstance(leaf, _Argument),
  )
  return backward(pullback, gradient, params, opt_state, learning_rate)


def _kept(leaf: Any, outputs: Any, sharded: NamedSharding) -> NamedSharding:
  """Returns a residual's sharding: shards activations, replicates parameters."""
  is_activation = leaf.ndim == 4 and leaf.shape[0] == outputs.shape[0]
  replicated = NamedSharding(sharded.mesh, PartitionSpec())
  return sharded if is_activation else replicated


def compile_head(
  functions: HeadFunctions,
  module: nn.Module,
  inputs: jax.ShapeDtypeStruct,
  targets: Tree,
  tracing: threading.Lock,
) -> HeadPrograms:
  """Compiles the programs of a classifier.

  Args:
    functions: What is compiled.
    module: The classifier.
    inputs: Shape, dtype and sharding of the last block's outputs.
    targets: Shapes, dtypes and shardings of the labels.
    tracing: Held while Python traces, not while XLA compiles.
  """
  mesh = _mesh(inputs)
  sharded, replicated = sharding.sharded(mesh), sharding.replicated(mesh)
  params = functions.shapes(module, _num_channels(inputs))['params']
  opt_state = jax.eval_shape(functions.init_optimizer, params)
  params, opt_state = _structs((params, opt_state), replicated)
  scalar, count = (_scalar(dtype, replicated) for dtype in (jnp.float32, jnp.int32))
  logits = jax.eval_shape(module.apply, {'params': params}, inputs)
  counts = jax.ShapeDtypeStruct(logits.shape[1:] * 2, jnp.int32, sharding=replicated)
  options = compiler.options(mesh.devices.flat[0].platform)
  with jax.set_mesh(mesh):
    with tracing:
      train = jax.jit(
        functools.partial(functions.train, module),
        donate_argnames='opt_state',
        out_shardings=(sharded, *[replicated] * 4),
      ).lower(params, inputs, targets, opt_state, scalar, scalar)
      infer = jax.jit(
        functools.partial(functions.infer, module), out_shardings=replicated
      ).lower(params, inputs, targets, count, counts)
    return HeadPrograms(train.compile(options), infer.compile(options))


def _num_channels(inputs: Tree) -> int:
  return jax.tree.leaves(inputs)[0].shape[-1]


def _mesh(inputs: Tree) -> Mesh:
  return jax.tree.leaves(inputs)[0].sharding.mesh


def _struct(leaf: Any, leaf_sharding: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf_sharding)


def _structs(tree: Tree, leaf_sharding: NamedSharding) -> Any:
  return jax.tree.map(lambda leaf: _struct(leaf, leaf_sharding), tree)


def _scalar(dtype: Any, replicated: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((), dtype, sharding=replicated)


class ProgramCache:
  """The programs of the blocks and heads used last, compiled in threads.

  Attributes:
    num_compiled: Number of blocks and heads compiled so far.
  """

  def __init__(
    self,
    block: BlockFunctions,
    head: HeadFunctions,
    *,
    batch_size: int,
    num_threads: int,
    decorator: Callable[[Any], Callable[..., Any]] = lambda function: function,
    max_blocks: int = MAX_BLOCKS_IN_MEMORY,
  ):
    """Starts without any program.

    Args:
      block, head: What is compiled for each, for batches of `batch_size`.
      num_threads: Number of blocks compiled at a time.
      decorator: Applied to what runs in these threads, for JAX's settings.
      max_blocks: Number of blocks and heads whose programs stay in memory.
    """
    self.num_compiled = 0
    self._num_traced = 0  # Since JAX's caches were dropped last.
    self._block, self._head, self._batch_size = block, head, batch_size
    self._max_blocks, self._decorator = max_blocks, decorator
    # Threads that trace take the interpreter from one another, and from the one that
    # trains: on a GPU it starts a program in 0.16 ms beside one of them, in 0.70 ms
    # beside four.
    self._tracing = threading.Lock()
    self._threads = concurrent.futures.ThreadPoolExecutor(
      num_threads, thread_name_prefix='compile'
    )
    self._future = functools.lru_cache(maxsize=max_blocks)(self._submit)

  def network(
    self, blocks: Sequence[ConvBlock], head: nn.Module, images: Tree, targets: Tree
  ) -> tuple[list[BlockPrograms], HeadPrograms]:
    """Returns a network's programs once they are compiled; arguments of `submit`."""
    futures = self.submit(blocks, head, images, targets)
    try:
      *block_programs, head_programs = [future.result() for future in futures]
    except (jax.errors.JaxRuntimeError, MemoryError):
      # Compiled ahead it may have failed for want of memory; now it gets all there is.
      self._future.cache_clear()
      futures = self.submit(blocks, head, images, targets)
      *block_programs, head_programs = [future.result() for future in futures]
    if self._num_traced >= self._max_blocks:
      # JAX keeps some 0.8 MB of Python objects for every block ever compiled.
      self._num_traced = 0
      jax.clear_caches()
    return block_programs, head_programs

  def submit(
    self, blocks: Sequence[ConvBlock], head: nn.Module, images: Tree, targets: Tree
  ) -> list[concurrent.futures.Future[Any]]:
    """Begins to compile a network's programs, unless they are in memory.

    Args:
      blocks, head: Its modules.
      images: Shapes, dtypes and shardings of what the first block gets.
      targets: Those of the labels.

    Returns:
      Futures of the programs of each block and of the head.
    """
    inputs, futures = images, []
    sharded = sharding.sharded(_mesh(images))
    _, height, width, _ = images.pixels.shape
    for block in blocks:
      futures.append(self._future(compile_block, self._block, block, inputs))
      height, width = -(-height // block.stride), -(-width // block.stride)
      shape = (self._batch_size, height, width, block.filters)
      inputs = jax.ShapeDtypeStruct(shape, block.dtype, sharding=sharded)
    return [*futures, self._future(compile_head, self._head, head, inputs, targets)]

  def _submit(
    self, compile_programs: Callable[..., Any], *arguments: Any
  ) -> concurrent.futures.Future[Any]:
    self.num_compiled += 1
    self._num_traced += 1
    compile_programs = self._decorator(compile_programs)
    return self._threads.submit(compile_programs, *arguments, self._tracing)

  def close(self) -> None:
    """Cancels what is not being compiled yet, or an exit would wait for all of it."""
    self._threads.shutdown(wait=False, cancel_futures=True)


class InFlight:
  """The programs that the device has not ended yet, as far as the host knows."""

  def __init__(self) -> None:
    self._outputs: collections.deque[jax.Array] = collections.deque()

  def add(self, outputs: Tree) -> None:
    """Counts a program by its outputs; waits if there are too many."""
    self._outputs.append(jax.tree.leaves(outputs)[0])
    if len(self._outputs) > MAX_IN_FLIGHT:
      self._outputs.popleft().block_until_ready()
