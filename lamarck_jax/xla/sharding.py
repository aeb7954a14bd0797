"""Data parallelism: a batch is sharded over devices, parameters are replicated."""

from collections.abc import Callable
from typing import Any

import jax
from jax import flatten_util, lax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Name of the mesh's axis.
BATCH = 'batch'

# With a smaller shard, devices, and threads that divide an operation, wait for one
# another longer than they compute.
_MIN_EXAMPLES = 16
_MIN_PIXELS = 4096


def max_shards(batch_size: int, num_pixels: int) -> int:
  """Returns how many shards of sufficient size a batch has, at least 1."""
  by_pixels = batch_size * num_pixels // _MIN_PIXELS
  return max(1, min(batch_size // _MIN_EXAMPLES, by_pixels))


def batch_mesh(batch_size: int, image_shape: tuple[int, ...]) -> Mesh:
  """Returns the devices that share a batch.

  These are as many of the CPU's as can have equal shards of sufficient size, or one GPU
  or TPU: several of those are kept busy by several searches, not by one.

  Args:
    batch_size: Examples per batch.
    image_shape: (height, width, channels).
  """
  devices = jax.local_devices()
  count = 1
  if devices[0].platform == 'cpu':
    height, width, _ = image_shape
    most = min(len(devices), max_shards(batch_size, height * width))
    count = max(n for n in range(1, most + 1) if batch_size % n == 0)
  return jax.make_mesh((count,), (BATCH,), (AxisType.Auto,), devices=devices[:count])


def mesh_of(inputs: Any) -> Mesh:
  """Returns the devices over which a tree of shapes with shardings is laid."""
  return jax.tree.leaves(inputs)[0].sharding.mesh


def sharded(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of activations: the first axis over the mesh."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of parameters and of the data set: whole on each device."""
  return NamedSharding(mesh, PartitionSpec())


# ------------------------------------------------------------------------------
# Inside a traced function, by the mesh that is set
# ------------------------------------------------------------------------------


def by_platform(
  *arrays: jax.Array, cpu: Callable[..., Any], default: Callable[..., Any]
) -> Any:
  """Applies the function for the CPU, or the one for all other platforms.

  Args:
    *arrays: What the function gets.
    cpu: The function on the CPU.
    default: The function on any other platform.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None:
    return lax.platform_dependent(*arrays, cpu=cpu, default=default)
  # That would trace both, and Python takes longer for the CPU's than for all else.
  return cpu(*arrays) if device.device_kind == 'cpu' else default(*arrays)


def num_shards() -> int:
  """Returns the number of devices that share a batch."""
  return jax.sharding.get_abstract_mesh().shape.get(BATCH, 1)


def map_shards(function: Callable[..., Any], examples: Any, parameters: Any) -> Any:
  """Applies a function to every device's shard of a batch.

  Args:
    function: `(*examples, *parameters)` to two tuples, one of arrays whose first axis
      is the batch and one of arrays that are equal on all devices.
    examples: Arrays whose first axis is the batch.
    parameters: Replicated arrays.

  Returns:
    What the function returns, for the whole batch.
  """
  if num_shards() == 1:
    return function(*examples, *parameters)
  shard, replica = PartitionSpec(BATCH), PartitionSpec()
  return jax.shard_map(
    function,
    in_specs=(*[shard] * len(examples), *[replica] * len(parameters)),
    out_specs=(shard, replica),
    check_vma=False,
  )(*examples, *parameters)


def sum_over_shards(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Returns each array summed over the devices, inside `map_shards`."""
  if num_shards() == 1:
    return arrays
  # Each collective costs some 0.3 ms on a CPU, whatever its size: one for all.
  flat, unravel = flatten_util.ravel_pytree(arrays)
  return unravel(lax.psum(flat, BATCH))


def join_moments(mean: jax.Array, var: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns mean and biased variance over all devices, from those of each shard."""
  if num_shards() == 1:
    return mean, var
  gathered = lax.all_gather(jnp.stack([mean, var]), BATCH)
  means, variances = gathered[:, 0], gathered[:, 1]
  return jnp.mean(means, 0), jnp.mean(variances, 0) + jnp.var(means, 0)


def constrain(examples: jax.Array) -> jax.Array:
  """Shards an array whose first axis is the batch."""
  return lax.with_sharding_constraint(examples, PartitionSpec(BATCH))
