"""The programs of the blocks used last, compiled or loaded in threads."""

from collections.abc import Callable, Sequence
import concurrent.futures
import functools
from typing import Any

from flax import linen as nn
import jax

from lamarck_jax.xla import programs, sharding
from lamarck_jax.xla.fused_block import ConvBlock
from lamarck_jax.xla.programs import (
  BlockFunctions,
  BlockPrograms,
  HeadFunctions,
  HeadPrograms,
)
from lamarck_jax.xla.stored_programs import StoredPrograms
from lamarck_jax.xla.vectors import Tree

# The programs of this many blocks stay in memory. On CPU a block's have some 110 memory
# maps and 3 MB, and the kernel allows a process 65,530 maps. An individual has some ten
# blocks; what is dropped comes back from disk.
MAX_BLOCKS_IN_MEMORY = 32


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
    stored: StoredPrograms | None = None,
  ):
    """Starts without any program.

    Args:
      block, head: What is compiled for each, for batches of `batch_size`.
      num_threads: Number of blocks compiled at a time.
      decorator: Applied to what runs in these threads, for JAX's settings.
      max_blocks: Number of blocks and heads whose programs stay in memory.
      stored: Programs on disk.
    """
    self.num_compiled = 0
    self._num_traced = 0  # Since JAX's caches were dropped last.
    self._batch_size = batch_size
    self._compilers: dict[type, tuple[Callable[..., Any], Any]] = {
      BlockPrograms: (programs.compile_block, block),
      HeadPrograms: (programs.compile_head, head),
    }
    self._max_blocks, self._stored = max_blocks, stored
    self._load_or_compile = decorator(self._load_or_compile_undecorated)
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
    sharded = sharding.sharded(sharding.mesh_of(images))
    _, height, width, _ = images.pixels.shape
    for block in blocks:
      futures.append(self._future(BlockPrograms, block, inputs))
      height, width = -(-height // block.stride), -(-width // block.stride)
      shape = (self._batch_size, height, width, block.filters)
      inputs = jax.ShapeDtypeStruct(shape, block.dtype, sharding=sharded)
    return [*futures, self._future(HeadPrograms, head, inputs, targets)]

  def _submit(self, kind: type, *arguments: Any) -> concurrent.futures.Future[Any]:
    self.num_compiled += 1
    return self._threads.submit(self._load_or_compile, kind, *arguments)

  def _load_or_compile_undecorated(
    self, kind: type, module: nn.Module, inputs: Tree, *targets: Tree
  ) -> Any:
    """Returns a block's or a head's programs, from disk where they are there.

    Args:
      kind: `BlockPrograms` or `HeadPrograms`.
      module: The block or the head.
      inputs: Shapes, dtypes and shardings of what it gets.
      *targets: Those of the labels, for a head.
    """
    compile_programs, functions = self._compilers[kind]
    arguments = module, inputs, *targets
    if not self._stored:
      self._num_traced += 1
      return compile_programs(functions, *arguments)
    made_from = kind.__name__, module, *targets
    if loaded := self._stored.load(*made_from, inputs=inputs):
      return kind(*loaded)
    self._num_traced += 1
    compiled = compile_programs(functions, *arguments, self._stored.compile)
    self._stored.save(*made_from, inputs=inputs, programs=compiled)
    return compiled

  def close(self) -> None:
    """Cancels what is not being compiled yet, or an exit would wait for all of it."""
    self._threads.shutdown(wait=False, cancel_futures=True)
