"""Networks with random variables, and what they compute."""

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from lamarck_jax import genotype as genotype_lib
from lamarck_jax import model, mutation
from lamarck_jax.genotype import Genotype, SearchSpace
from lamarck_jax.moments import Moments, measure

SPACE = SearchSpace(filters=(6, 8, 12))
NUM_CLASSES = 5


def random_parent(seed: int, num_mutations: int = 5) -> Genotype:
  key = jax.random.key(seed)
  genotype = genotype_lib.random_genotype(key, SPACE)
  for index in range(num_mutations):
    genotype = mutation.mutate(jax.random.fold_in(key, index), genotype, SPACE)
  return genotype


def trained_variables(seed: int, genotype: Genotype, channels: int = 3) -> dict:
  """Variables in which no two channels are alike, as after training."""
  rng = np.random.default_rng(seed)
  leaves = traverse_util.flatten_dict(
    model.init_variables(jax.random.key(seed), genotype, channels, NUM_CLASSES)
  )
  for path, leaf in leaves.items():
    if path[-1] in ('scale', 'var'):
      leaves[path] = rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    elif path[-1] in ('bias', 'mean'):
      leaves[path] = rng.normal(0, 0.3, leaf.shape).astype(np.float32)
  return traverse_util.unflatten_dict(leaves)


def images(height: int, width: int, count: int = 6, channels: int = 3) -> jax.Array:
  shape = (count, height, width, channels)
  return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def network(genotype: Genotype) -> model.ConvNet:
  return model.ConvNet(genotype, NUM_CLASSES)


def logits(genotype: Genotype, variables: dict, x: jax.Array) -> np.ndarray:
  return np.asarray(network(genotype).apply(variables, x))


def measured_moments(
  genotype: Genotype, variables: dict, x: jax.Array
) -> list[Moments]:
  _, state = network(genotype).apply(
    variables, x, capture_intermediates=True, mutable=['intermediates']
  )
  names = [model.block_name(block) for block in genotype.blocks]
  outputs = [state['intermediates'][name]['__call__'][0] for name in names]
  return measure(map(np.asarray, [x, *outputs]))


def assert_same_function(
  parent, parent_variables, child, variables, x, tolerance=1e-4
) -> None:
  expected = logits(parent, parent_variables, x)
  np.testing.assert_allclose(
    logits(child, variables, x),
    expected,
    rtol=tolerance,
    atol=tolerance * np.abs(expected).max(),
  )
