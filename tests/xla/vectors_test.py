"""A vector has what its tree has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamarck_jax.xla import vectors


@pytest.fixture
def tree():
  return {
    'kernel': np.arange(6, dtype=np.float32).reshape(3, 2),
    'empty': {},
    'count': np.int32(2**24),
    'bias': np.full(4, -0.5, np.float32),
  }


@pytest.mark.parametrize(
  'ravel', [vectors.ravel_on_host, vectors.ravel, jax.jit(vectors.ravel)]
)
@pytest.mark.parametrize('more', [0, 3])
def test_a_tree_comes_back_from_its_vector(tree, ravel, more):
  vector = ravel(tree)
  assert vector.dtype == np.float32
  assert vector.shape == (vectors.size(tree),) == (11,)
  longer = np.concatenate([vector, np.ones(more, np.float32)])
  shapes = jax.eval_shape(lambda: tree)
  for got in (
    vectors.unravel(longer, shapes),
    jax.jit(lambda vector: vectors.unravel(vector, shapes))(longer),
  ):
    jax.tree.map(np.testing.assert_array_equal, got, tree)
    assert jax.tree.map(lambda leaf: leaf.dtype, got) == jax.tree.map(
      lambda leaf: leaf.dtype, tree
    )


def test_a_tree_without_arrays_is_an_empty_vector():
  assert jax.jit(lambda: vectors.ravel({}))().shape == (0,)
  assert vectors.unravel(jnp.zeros(0), {}) == {}
