"""The state of a training, between two epochs, as the arrays that a file holds."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np

State = TypeVar('State')


def to_arrays(state: Any, num_epochs: int) -> dict[str, Any]:
  """Returns the arrays of a state after a number of epochs."""
  leaves = jax.tree.leaves(state)
  arrays = {f'{index:06d}': np.asarray(leaf) for index, leaf in enumerate(leaves)}
  return {'num_epochs': np.asarray(num_epochs), 'state': arrays}


def from_arrays(content: Mapping[str, Any], like: State) -> tuple[State, int]:
  """Returns the state of `to_arrays`, and its number of epochs.

  Args:
    content: The arrays.
    like: A state of the same network, which gives structure, shapes and dtypes.

  Raises:
    ValueError: If the arrays are not those of such a state.
  """
  num_leaves = len(jax.tree.leaves(like))
  try:
    saved, num_epochs = content['state'], int(content['num_epochs'])
    leaves = [saved[name] for name in sorted(saved)]
  except (LookupError, TypeError) as error:
    raise ValueError(f'training state: got {error}, want its arrays') from error
  if len(leaves) != num_leaves:
    raise ValueError(
      f'training state: got {len(leaves)} arrays, as of another version, want'
      f' {num_leaves}'
    )
  state = jax.tree.unflatten(jax.tree.structure(like), leaves)
  jax.tree.map(_check_leaf, like, state)
  return state, num_epochs


def _check_leaf(expected: Any, leaf: np.ndarray) -> None:
  if (expected.shape, expected.dtype) != (leaf.shape, leaf.dtype):
    raise ValueError(
      f'training state: got {leaf.dtype} {leaf.shape}, want {expected.dtype}'
      f' {expected.shape}'
    )
