"""Trees of arrays as one vector: a program starts faster, the fewer arrays it gets.

JAX's `ravel_pytree` takes shapes from arrays, of which a block has none when it is
compiled, and would compile a program for each tree of NumPy arrays.
"""

import itertools
import math
from typing import Any

import jax
from jax.flatten_util import ravel_pytree
import numpy as np

# A tree of arrays, or of their shapes and dtypes.
Tree = Any


def size(shapes: Tree) -> int:
  """Returns the number of elements of a tree's arrays."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def ravel(tree: Tree) -> jax.Array:
  """Returns the elements of a tree's arrays, float32 [size], in a traced function.

  Integers are exact up to 2**24.
  """
  vector: jax.Array = ravel_pytree(tree)[0]
  return vector.astype(np.float32)


def ravel_on_host(tree: Tree) -> np.ndarray:
  """Returns the same of arrays that are not traced."""
  leaves = [np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)]
  return np.concatenate(leaves, dtype=np.float32, casting='unsafe')


def unravel(vector: Any, shapes: Tree) -> Any:
  """Returns the tree of which `ravel` made a vector, in arrays of their own.

  Args:
    vector: [size of `shapes`], or longer; NumPy's, or traced.
    shapes: A tree of shapes and dtypes.
  """
  leaves, structure = jax.tree.flatten(shapes)
  ends = list(itertools.accumulate(math.prod(leaf.shape) for leaf in leaves))
  return jax.tree.unflatten(
    structure,
    (
      vector[start:end].reshape(leaf.shape).astype(leaf.dtype)
      for leaf, start, end in zip(leaves, [0, *ends], ends)
    ),
  )
