"""The cache of programs keeps those used last, and JAX's own caches bounded."""

import threading

from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from lamarck_jax.data.augmentation import NO_AUGMENTATION
from lamarck_jax.data.on_device import Images, Order, Targets
from lamarck_jax.xla import program_cache, programs, sharding

_MAX_BLOCKS = 6


class Scaling(nn.Module):
  """A block that compiles in an instant."""

  filters: int
  stride: int = 1
  dtype: type = jnp.float32


class Sum(nn.Module):
  """A head, likewise."""

  @nn.compact
  def __call__(self, x):
    return jnp.sum(x, (1, 2))


def forward(block, params, stats, x, train):
  x = jnp.zeros((2, 4, 4, 1)) if isinstance(x, Images) else x
  y = jnp.broadcast_to(x[..., :1] * params['factor'], (*x.shape[:3], block.filters))
  return (
    y,
    jax.tree_util.Partial(
      lambda factor, dy: ({'factor': (factor * dy).sum()},), params['factor']
    ),
    stats,
  )


def update(gradients, params, opt_state, rate):
  return params + gradients * rate, opt_state


def head_gradients(head, params, x, targets, total):
  return (params, x), targets.step + 1, total + jnp.sum(x)


def count(head, params, x, targets, num_examples, total):
  return targets.step + 1, total


def shapes(*_):
  return {
    'params': {'factor': jax.ShapeDtypeStruct((), jnp.float32)},
    'batch_stats': {},
  }


def init_optimizer(params):
  return params


def make_cache(forward=forward, num_threads=2):
  return program_cache.ProgramCache(
    programs.BlockFunctions(shapes, init_optimizer, update, forward),
    programs.HeadFunctions(shapes, init_optimizer, update, head_gradients, count),
    batch_size=2,
    num_threads=num_threads,
    max_blocks=_MAX_BLOCKS,
  )


def struct(dtype, *shape):
  mesh = sharding.batch_mesh(2, (4, 4, 1))
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.replicated(mesh))


def network_of(*filters):
  """Returns blocks and head with the shapes that they get."""
  order, step = struct(jnp.int32, 3, 2), struct(jnp.int32)
  pixels, vector = struct(jnp.uint8, 6, 4, 4, 1), struct(jnp.float32, 1)
  images = Images(pixels, vector, vector, Order(order, None), step, NO_AUGMENTATION)
  targets = Targets(struct(jnp.int32, 6), order, step)
  return [Scaling(n) for n in filters], Sum(), images, targets


@pytest.fixture
def network():
  """Compiles a network of some blocks; with the number of blocks and heads so far."""
  cache = make_cache()

  def compile_network(*filters):
    cache.network(*network_of(*filters))
    return cache.num_compiled

  return compile_network


def test_a_block_is_compiled_once_and_again_when_it_was_used_long_ago(network):
  assert network(1, 2) == 3
  assert network(1, 2) == 3
  for n in range(3, 3 + _MAX_BLOCKS):
    compiled = network(n)
  assert network(n) == compiled
  assert network(1, 2) > compiled


def test_jaxs_own_caches_do_not_grow_with_every_block_ever_compiled(network):
  # The number of traces that JAX keeps of a function is that of its distinct inputs.
  function = jax.jit(lambda x: x + 1)
  function(1.0)
  for n in range(1, 1 + _MAX_BLOCKS // 2):
    network(n)  # A block and a head.
  assert function._cache_size() == 0


def test_residuals_that_are_inputs_or_parameters_are_not_copied():
  functions = programs.BlockFunctions(shapes, init_optimizer, update, forward)
  block = programs.compile_block(functions, Scaling(1), struct(jnp.float32, 2, 4, 4, 1))
  x, state = jnp.ones((2, 4, 4, 1)), jnp.array([3.0, 7.0])  # The factor, the optimizer.
  outputs, residuals = block.forward(state, x, jnp.bool_(True))
  assert residuals.inputs is x
  assert not any(leaf.size for leaf in jax.tree.leaves(residuals[1:]))
  _, updated = block.backward(residuals, outputs, state, jnp.float32(1))
  assert updated.tolist() == [3 + 3 * float(outputs.sum()), 7]


def test_one_program_is_traced_at_a_time():
  alone, overlaps = threading.Lock(), []

  def traced_forward(*arguments):
    if not alone.acquire(blocking=False):
      overlaps.append(arguments)
      return forward(*arguments)
    try:
      return forward(*arguments)
    finally:
      alone.release()

  make_cache(traced_forward, num_threads=4).network(*network_of(*range(1, 9)))
  assert not overlaps


def test_what_is_not_being_compiled_at_the_end_never_is():
  begun, closed = threading.Event(), threading.Event()

  def waiting_forward(*arguments):
    begun.set()
    assert closed.wait(60)
    return forward(*arguments)

  cache = make_cache(waiting_forward, num_threads=1)
  first, *others = cache.submit(*network_of(1, 2, 3))
  assert begun.wait(60)
  cache.close()
  closed.set()
  assert isinstance(first.result(60), programs.BlockPrograms)
  assert all(future.cancelled() for future in others)


class Output:
  """An array that notes when it is waited for."""

  def __init__(self, index, waited):
    self.index, self.waited = index, waited

  def block_until_ready(self):
    self.waited.append(self.index)


def test_programs_in_flight_are_bounded_and_waited_for_in_order():
  in_flight, waited = programs.InFlight(), []
  for index in range(100):
    started = index + 1
    assert started - (waited[-1] + 1 if waited else 0) <= programs.MAX_IN_FLIGHT
    in_flight.add(Output(index, waited))
  assert waited == list(range(7, 92, 8))
