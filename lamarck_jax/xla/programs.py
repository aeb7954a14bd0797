"""Two compiled programs per block, instead of those of each network.

Every evaluation of a search has a new architecture, so a program for the whole network
would be compiled for every child. But a network is a chain of blocks, and a block's
programs depend on its own three integers and its input's shape alone. They are kept for
all networks of a trainer; a mutation compiles those of one or two blocks.
"""

from collections.abc import Callable
import concurrent.futures
import dataclasses
import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax
from jax import stages
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from lamarck_jax.xla import compiler, sharding, tracing, vectors
from lamarck_jax.xla.vectors import Tree

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
    init_optimizer: params -> opt_state, of a vector.
    update: (gradients, params, opt_state, learning_rate) -> (params, opt_state), of
      vectors.
    forward: (module, params, batch_stats, inputs, train) ->
      (outputs, pullback, batch_stats); where `train`, a bool scalar, is false, outputs
      are those of an evaluation.
  """

  shapes: Callable[..., Tree]
  init_optimizer: Callable[..., Tree]
  update: Callable[..., tuple[jax.Array, Tree]]
  forward: Callable[..., tuple[jax.Array, Callable[..., Any], Tree]]


class HeadFunctions(NamedTuple):
  """What is compiled for the classifier with the loss.

  Attributes:
    shapes, init_optimizer, update: As of a block.
    gradients: (module, params, inputs, targets, total) ->
      (gradients of params and inputs, step, total).
    infer: (module, params, inputs, targets, num_examples, total) -> (step, total).
  """

  shapes: Callable[..., Tree]
  init_optimizer: Callable[..., Tree]
  update: Callable[..., tuple[jax.Array, Tree]]
  gradients: Callable[..., tuple[tuple[Tree, jax.Array], jax.Array, jax.Array]]
  infer: Callable[..., tuple[jax.Array, jax.Array]]


def state_shapes(
  functions: BlockFunctions | HeadFunctions, module: nn.Module, channels: int
) -> tuple[Tree, Tree, Tree]:
  """Returns the shapes of what a module's training changes.

  Programs get and return them as one vector, see `vectors`.

  Returns:
    Those of params, batch_stats and opt_state.
  """
  variables = functions.shapes(module, channels)
  params = variables['params']
  opt_state = _optimizer_shapes(functions.init_optimizer, vectors.size(params))
  return params, variables.get('batch_stats', {}), opt_state


@functools.lru_cache(maxsize=1024)
def _optimizer_shapes(init_optimizer: Callable[..., Tree], size: int) -> Any:
  # Tracing takes milliseconds, and most blocks of a child have been trained before.
  return jax.eval_shape(init_optimizer, jax.ShapeDtypeStruct((size,), jnp.float32))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Argument:
  """Stands in a pullback for a residual that is an argument of `forward`.

  Attributes:
    index: Among the leaves of (params, inputs).
  """

  index: int


class Residuals(NamedTuple):
  """What `BlockPrograms.forward` keeps for `backward`.

  Attributes:
    inputs: Those of `forward`.
    kept: What it has computed on the way.
    batch_stats: The updated statistics, as a vector.
  """

  inputs: Tree
  kept: list[Any]
  batch_stats: Any


class BlockPrograms(NamedTuple):
  """The compiled programs of a block; a state is the vector of `state_shapes`."""

  compiled_forward: stages.Compiled
  compiled_backward: stages.Compiled

  def forward(
    self, state: jax.Array, inputs: Tree, train: jax.Array
  ) -> tuple[jax.Array, Residuals]:
    """Returns the outputs, and what `backward` needs.

    Args:
      state: The block's.
      inputs: What it gets.
      train: Bool scalar: whether the moments of the batch normalise it, or the running
        ones.
    """
    outputs, kept, batch_stats = self.compiled_forward(state, inputs, train)
    return outputs, Residuals(inputs, kept, batch_stats)

  def backward(
    self,
    residuals: Residuals,
    gradient: jax.Array,
    state: jax.Array,
    learning_rate: jax.Array,
  ) -> tuple[jax.Array | None, jax.Array]:
    """Returns the gradient of the inputs (or None), and the state after a step.

    Args:
      residuals: Those of `forward`.
      gradient: Of the outputs.
      state: The one that `forward` got.
      learning_rate: Adam's, float32 scalar.
    """
    input_gradient: jax.Array | None
    input_gradient, state = self.compiled_backward(
      residuals, gradient, state, learning_rate
    )
    return input_gradient, state


class HeadPrograms(NamedTuple):
  """The compiled programs of the head.

  Attributes:
    train: (state, inputs, targets, learning_rate, total) ->
      (gradient of the inputs, state, step, total).
    infer: (state, inputs, targets, num_examples, total) -> (step, total).
  """

  train: stages.Compiled
  infer: stages.Compiled


def compile_block(
  functions: BlockFunctions,
  module: nn.Module,
  inputs: Tree,
  compile_program: CompileProgram = stages.Lowered.compile,
) -> BlockPrograms:
  """Compiles the programs of a block.

  Args:
    functions: What is compiled.
    module: The block.
    inputs: Shapes, dtypes and shardings of what it gets; the first axis of activations
      is the batch.
    compile_program: Compiles a traced program with options.
  """
  mesh = sharding.mesh_of(inputs)
  sharded, replicated = sharding.sharded(mesh), sharding.replicated(mesh)
  shapes = state_shapes(functions, module, _num_channels(inputs))
  state = _vector(shapes, replicated)
  options = compiler.block_options(mesh.devices.flat[0].platform)
  structures: list[_Structure] = []
  with jax.set_mesh(mesh), concurrent.futures.ThreadPoolExecutor(1) as thread:
    with tracing.exclusive():
      forward = jax.jit(
        functools.partial(
          _forward_with_residuals, functions, module, shapes, sharded, structures
        ),
        out_shardings=(sharded, None, replicated),
      ).lower(state, inputs, _scalar(jnp.bool_, replicated))
    compiled_forward = thread.submit(compile_program, forward, options)
    outputs, kept, new_stats = forward.out_info
    with tracing.exclusive():
      backward = jax.jit(
        functools.partial(_backward_of_residuals, functions, shapes, structures[-1]),
        out_shardings=(sharded, replicated),
      ).lower(
        Residuals(
          inputs,
          [_struct(leaf, _kept(leaf, outputs, sharded)) for leaf in kept],
          _struct(new_stats, replicated),
        ),
        _struct(outputs, sharded),
        state,
        _scalar(jnp.float32, replicated),
      )
    compiled_backward = compile_program(backward, options)
  return BlockPrograms(compiled_forward.result(), compiled_backward)


class _Structure(NamedTuple):
  """How a pullback is made from what `forward` has kept.

  Attributes:
    pullback: Its structure.
    shapes: Of those of its leaves that are joined in the last array kept.
    is_joined: Which ones these are.
  """

  pullback: jax.tree_util.PyTreeDef
  shapes: list[jax.ShapeDtypeStruct]
  is_joined: list[bool]


def _forward_with_residuals(
  functions: BlockFunctions,
  module: nn.Module,
  shapes: tuple[Tree, Tree, Tree],
  sharded: NamedSharding,
  structures: list[_Structure],
  state: jax.Array,
  inputs: Tree,
  train: jax.Array,
) -> Any:
  """Returns the pullback's leaves in its place, and adds its structure to `structures`.

  JAX keeps the structures of the arguments and outputs of compiled programs for good,
  and a pullback's holds jaxprs, some 40 KB a block.
  """
  params, batch_stats, _ = vectors.unravel(state, shapes)
  outputs, pullback, batch_stats = functions.forward(
    module, params, batch_stats, inputs, train
  )
  arguments = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves((params, inputs)))}

  def keep(leaf: Any) -> Any:
    if id(leaf) in arguments:
      # A program that returned an argument would copy it.
      return _Argument(arguments[id(leaf)])
    return leaf

  leaves, structure = jax.tree.flatten(jax.tree.map(keep, pullback))
  is_joined = [leaf.ndim < 2 and leaf.dtype == jnp.float32 for leaf in leaves]
  joined = [leaf for leaf, joins in zip(leaves, is_joined) if joins]
  kept = [leaf for leaf, joins in zip(leaves, is_joined) if not joins]
  kept.append(vectors.ravel(joined))
  structures.append(
    _Structure(structure, [jax.typeof(leaf) for leaf in joined], is_joined)
  )
  # Without the constraint XLA's partitioner would choose the sharding.
  kept = [
    jax.lax.with_sharding_constraint(leaf, _kept(leaf, outputs, sharded))
    for leaf in kept
  ]
  return outputs, kept, vectors.ravel(batch_stats)


def _backward_of_residuals(
  functions: BlockFunctions,
  shapes: tuple[Tree, Tree, Tree],
  structure: _Structure,
  residuals: Residuals,
  gradient: jax.Array,
  state: jax.Array,
  learning_rate: jax.Array,
) -> Any:
  """Takes the leaves of the pullback in its place."""
  inputs, (*kept, vector), batch_stats = residuals
  params, *_ = vectors.unravel(state, shapes)
  arguments = jax.tree.leaves((params, inputs))
  separate, joined = iter(kept), iter(vectors.unravel(vector, structure.shapes))
  leaves = [next(joined if joins else separate) for joins in structure.is_joined]
  pullback = jax.tree.map(
    lambda leaf: arguments[leaf.index] if isinstance(leaf, _Argument) else leaf,
    jax.tree.unflatten(structure.pullback, leaves),
    is_leaf=lambda leaf: isinstance(leaf, _Argument),
  )
  gradients, *input_gradient = pullback(gradient)
  state = _updated(functions, shapes, state, gradients, batch_stats, learning_rate)
  return (input_gradient or [None])[0], state


def _updated(
  functions: BlockFunctions | HeadFunctions,
  shapes: tuple[Tree, Tree, Tree],
  state: jax.Array,
  gradients: Tree,
  batch_stats: Tree,
  learning_rate: jax.Array,
) -> jax.Array:
  """Returns the state after a step of the optimizer, with other statistics."""
  *_, opt_state = vectors.unravel(state, shapes)
  params, opt_state = functions.update(
    vectors.ravel(gradients), state[: vectors.size(shapes[0])], opt_state, learning_rate
  )
  return vectors.ravel((params, batch_stats, opt_state))


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
  compile_program: CompileProgram = stages.Lowered.compile,
) -> HeadPrograms:
  """Compiles the programs of a classifier.

  Args:
    functions: What is compiled.
    module: The classifier.
    inputs: Shape, dtype and sharding of the last block's outputs.
    targets: Shapes, dtypes and shardings of the labels.
    compile_program: Compiles a traced program with options.
  """
  mesh = sharding.mesh_of(inputs)
  sharded, replicated = sharding.sharded(mesh), sharding.replicated(mesh)
  shapes = state_shapes(functions, module, _num_channels(inputs))
  state = _vector(shapes, replicated)
  scalar, count = (_scalar(dtype, replicated) for dtype in (jnp.float32, jnp.int32))
  logits = jax.eval_shape(module.apply, {'params': shapes[0]}, inputs)
  counts = jax.ShapeDtypeStruct(logits.shape[1:] * 2, jnp.int32, sharding=replicated)
  options = compiler.options(mesh.devices.flat[0].platform)
  with jax.set_mesh(mesh):
    with tracing.exclusive():
      train = jax.jit(
        functools.partial(_train_head, functions, module, shapes),
        out_shardings=(sharded, *[replicated] * 3),
      ).lower(state, inputs, targets, scalar, scalar)
      infer = jax.jit(
        functools.partial(_infer_head, functions, module, shapes),
        out_shardings=replicated,
      ).lower(state, inputs, targets, count, counts)
    return HeadPrograms(
      compile_program(train, options), compile_program(infer, options)
    )


def _train_head(
  functions: HeadFunctions,
  module: nn.Module,
  shapes: tuple[Tree, Tree, Tree],
  state: jax.Array,
  inputs: jax.Array,
  targets: Tree,
  learning_rate: jax.Array,
  total: jax.Array,
) -> Any:
  """Trains the head on a batch; see `HeadPrograms.train`."""
  params, *_ = vectors.unravel(state, shapes)
  (gradients, input_gradient), step, total = functions.gradients(
    module, params, inputs, targets, total
  )
  state = _updated(functions, shapes, state, gradients, {}, learning_rate)
  return input_gradient, state, step, total


def _infer_head(
  functions: HeadFunctions,
  module: nn.Module,
  shapes: tuple[Tree, Tree, Tree],
  state: jax.Array,
  *arguments: Any,
) -> tuple[jax.Array, jax.Array]:
  """Counts the head's predictions of a batch; see `HeadPrograms.infer`."""
  params, *_ = vectors.unravel(state, shapes)
  return functions.infer(module, params, *arguments)


def _num_channels(inputs: Tree) -> int:
  return jax.tree.leaves(inputs)[0].shape[-1]


def _struct(leaf: Any, leaf_sharding: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf_sharding)


def _vector(shapes: Tree, replicated: NamedSharding) -> jax.ShapeDtypeStruct:
  shape = (vectors.size(shapes),)
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=replicated)


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

  def add(self, output: jax.Array) -> None:
    """Counts a program by one of its outputs; waits if there may be too many."""
    self._num_started += 1
    if self._num_started % (MAX_IN_FLIGHT // 2):
      return
    if self._awaited is not None:
      self._awaited.block_until_ready()
    self._awaited = output
