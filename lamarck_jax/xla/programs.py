"""One compiled program per block, instead of one per network.

Every evaluation of a search has a new architecture, so a program for the whole network
would be compiled for every child. But a network is a chain of blocks, and a block's
programs depend on its own three integers and its input's shape alone. They are kept for
all networks of a trainer; a mutation compiles those of one or two blocks.
"""

from collections.abc import Callable
import concurrent.futures
import dataclasses
import functools
import threading
from typing import Any, NamedTuple

from flax import linen as nn
import jax
from jax import stages
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from lamarck_jax.xla import compiler, sharding

# A tree of arrays, or of their shapes, dtypes and shardings.
Tree = Any

# Compiles a traced program with XLA's options.
CompileProgram = Callable[[stages.Lowered, compiler.Options | None], stages.Compiled]

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


class BlockPrograms(NamedTuple):
  """The compiled programs of a block."""

  compiled_forward: stages.Compiled
  compiled_backward: stages.Compiled
  compiled_infer: stages.Compiled

  def forward(
    self, params: Tree, batch_stats: Tree, inputs: Tree
  ) -> tuple[jax.Array, Tree, tuple[Tree, list[jax.Array]]]:
    """Returns outputs, updated statistics and the residuals for `backward`."""
    outputs, residuals, batch_stats = self.compiled_forward(params, batch_stats, inputs)
    return outputs, batch_stats, (inputs, residuals)

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
    return self.compiled_backward(
      *residuals, gradient, params, opt_state, learning_rate
    )

  def infer(self, params: Tree, batch_stats: Tree, inputs: Tree) -> jax.Array:
    """Returns the outputs in evaluation mode."""
    return self.compiled_infer(params, batch_stats, inputs)


class HeadPrograms(NamedTuple):
  """The compiled programs of the head, with the arguments of `HeadFunctions`."""

  train: stages.Compiled
  infer: stages.Compiled


def compile_block(
  functions: BlockFunctions,
  module: nn.Module,
  inputs: Tree,
  tracing: threading.Lock,
  compile_program: CompileProgram = stages.Lowered.compile,
) -> BlockPrograms:
  """Compiles the programs of a block.

  Args:
    functions: What is compiled.
    module: The block.
    inputs: Shapes, dtypes and shardings of what it gets; the first axis of activations
      is the batch.
    tracing: Held while Python traces, not while XLA compiles.
    compile_program: Compiles a traced program with options.
  """
  mesh = sharding.mesh_of(inputs)
  sharded, replicated = sharding.sharded(mesh), sharding.replicated(mesh)
  variables = functions.shapes(module, _num_channels(inputs))
  params, batch_stats = variables['params'], variables['batch_stats']
  opt_state = jax.eval_shape(functions.init_optimizer, params)
  params, batch_stats, opt_state = _structs(
    (params, batch_stats, opt_state), replicated
  )
  options = compiler.block_options(mesh.devices.flat[0].platform)
  structures: list[jax.tree_util.PyTreeDef] = []
  with jax.set_mesh(mesh), concurrent.futures.ThreadPoolExecutor(1) as thread:
    with tracing:
      forward = jax.jit(
        functools.partial(
          _forward_with_residuals, functions.forward, module, sharded, structures
        ),
        out_shardings=(sharded, None, replicated),
      ).lower(params, batch_stats, inputs)
    compiled_forward = thread.submit(compile_program, forward, options)
    outputs, residuals, _ = forward.out_info
    with tracing:
      backward = jax.jit(
        functools.partial(_backward_of_residuals, functions.backward, structures[-1]),
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
    compiled_backward = compile_program(backward, options)
    with tracing:
      infer = jax.jit(
        functools.partial(functions.infer, module), out_shardings=sharded
      ).lower(params, batch_stats, inputs)
    compiled_infer = compile_program(infer, options)
  return BlockPrograms(compiled_forward.result(), compiled_backward, compiled_infer)


def _forward_with_residuals(
  forward: Callable[..., Any],
  module: nn.Module,
  sharded: NamedSharding,
  structures: list[jax.tree_util.PyTreeDef],
  params: Tree,
  batch_stats: Tree,
  inputs: Tree,
) -> Any:
  """Returns the pullback's leaves in its place, and adds its structure to `structures`.

  JAX keeps the structures of the arguments and outputs of compiled programs for good,
  and a pullback's holds jaxprs, some 40 KB a block.
  """
  outputs, pullback, batch_stats = forward(module, params, batch_stats, inputs)
  arguments = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves((params, inputs)))}

  def keep(leaf: Any) -> Any:
    if id(leaf) in arguments:
      # A program that returned an argument would copy it.
      return _Argument(arguments[id(leaf)])
    # Without the constraint XLA's partitioner would choose the sharding.
    return jax.lax.with_sharding_constraint(leaf, _kept(leaf, outputs, sharded))

  residuals, structure = jax.tree.flatten(jax.tree.map(keep, pullback))
  structures.append(structure)
  return outputs, residuals, batch_stats


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
  """Takes the leaves of the pullback in its place."""
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
  compile_program: CompileProgram = stages.Lowered.compile,
) -> HeadPrograms:
  """Compiles the programs of a classifier.

  Args:
    functions: What is compiled.
    module: The classifier.
    inputs: Shape, dtype and sharding of the last block's outputs.
    targets: Shapes, dtypes and shardings of the labels.
    tracing: Held while Python traces, not while XLA compiles.
    compile_program: Compiles a traced program with options.
  """
  mesh = sharding.mesh_of(inputs)
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
    return HeadPrograms(
      compile_program(train, options), compile_program(infer, options)
    )


def _num_channels(inputs: Tree) -> int:
  return jax.tree.leaves(inputs)[0].shape[-1]


def _struct(leaf: Any, leaf_sharding: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf_sharding)


def _structs(tree: Tree, leaf_sharding: NamedSharding) -> Any:
  return jax.tree.map(lambda leaf: _struct(leaf, leaf_sharding), tree)


def _scalar(dtype: Any, replicated: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((), dtype, sharding=replicated)


class InFlight:
  """Keeps at most `MAX_IN_FLIGHT` programs waiting for the device.

  Waiting costs the host several microseconds, so one program of eight is waited for,
  when eight more have been started.
  """

  def __init__(self) -> None:
    self._num_started = 0
    self._awaited: jax.Array | None = None

  def add(self, outputs: Tree) -> None:
    """Counts a program by its outputs; waits if there may be too many."""
    self._num_started += 1
    if self._num_started % (MAX_IN_FLIGHT // 2):
      return
    if self._awaited is not None:
      self._awaited.block_until_ready()
    self._awaited = jax.tree.leaves(outputs)[0]
