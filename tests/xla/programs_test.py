"""The cache of programs keeps those used last, and JAX's own caches bounded."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from lamarck_jax.data.augmentation import NO_AUGMENTATION
from lamarck_jax.data.on_device import Images, Order, Targets
from lamarck_jax.xla import programs, sharding


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


def forward(block, params, stats, x):
  x = jnp.zeros((2, 4, 4, 1)) if isinstance(x, Images) else x
  y = jnp.broadcast_to(x[..., :1] * params['factor'], (*x.shape[:3], block.filters))
  return (
    y,
    jax.tree_util.Partial(lambda factor, dy: factor * dy, params['factor']),
    stats,
  )


def backward(pullback, gradient, params, opt_state, rate):
  factor = params['factor'] + pullback(gradient).sum() * rate
  return None, {'factor': factor}, opt_state


def infer(block, params, stats, x):
  return forward(block, params, stats, x)[0]


def train_head(head, params, x, targets, opt_state, rate, total):
  return x, params, opt_state, targets.step + 1, total + jnp.sum(x)


def count(head, params, x, targets, num_examples, total):
  return targets.step + 1, total


@pytest.fixture
def network():
  """Compiles a network of some blocks; with the number of blocks and heads so far."""
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  variables = {'params': {'factor': scalar}, 'batch_stats': {}}
  cache = programs.ProgramCache(
    programs.BlockFunctions(
      lambda *_: variables, lambda params: params, forward, backward, infer
    ),
    programs.HeadFunctions(lambda *_: variables, lambda p: p, train_head, count),
    batch_size=2,
    num_threads=2,
  )
  mesh = sharding.batch_mesh(2, (4, 4, 1))

  def struct(dtype, *shape):
    replicated = sharding.replicated(mesh)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated)

  order, step = struct(jnp.int32, 3, 2), struct(jnp.int32)
  pixels, vector = struct(jnp.uint8, 6, 4, 4, 1), struct(jnp.float32, 1)
  images = Images(pixels, vector, vector, Order(order, None), step, NO_AUGMENTATION)
  targets = Targets(struct(jnp.int32, 6), order, step)

  def compile_network(*filters):
    cache.network([Scaling(n) for n in filters], Sum(), images, targets)
    return cache.num_compiled

  return compile_network


def test_a_block_is_compiled_once_and_again_when_it_was_used_long_ago(network):
  assert network(1, 2) == 3
  assert network(1, 2) == 3
  for n in range(3, 3 + programs.MAX_BLOCKS_IN_MEMORY):
    compiled = network(n)
  assert network(n) == compiled
  assert network(1, 2) > compiled


def test_jaxs_own_caches_do_not_grow_with_every_block_ever_compiled(network):
  # The number of traces that JAX keeps of a function is that of its distinct inputs.
  function = jax.jit(lambda x: x + 1)
  function(1.0)
  for n in range(1, 1 + programs.MAX_BLOCKS_IN_MEMORY // 2):
    network(n)  # A block and a head.
  assert function._cache_size() == 0


class Output:
  """An array that notes when it is waited for."""

  def __init__(self, index, waited):
    self.index, self.waited = index, waited

  def block_until_ready(self):
    self.waited.append(self.index)


def test_programs_in_flight_are_bounded_and_waited_for_in_order():
  in_flight, waited = programs.InFlight(), []
  for index in range(programs.MAX_IN_FLIGHT + 3):
    in_flight.add(Output(index, waited))
  assert waited == [0, 1, 2]
