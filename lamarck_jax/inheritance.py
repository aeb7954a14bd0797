"""What a child takes over from its parent's trained weights (Section 3.3)."""

from typing import Any

from flax import traverse_util
import jax

from lamarck_jax import model
from lamarck_jax.genotype import Genotype
from lamarck_jax.model import Variables

MODES = ('lamarckian', 'none')


def inherit(
  key: jax.Array,
  parent: Genotype,
  parent_variables: Variables,
  child: Genotype,
  mode: str = 'lamarckian',
) -> dict[str, Any]:
  """Returns a child's variables, made of its parent's where they fit.

  The leaf rule: a leaf of the child that exists in the parent under the same
  path with the same shape is the parent's, bit for bit; every other leaf is
  freshly initialised. Blocks are named by their lineage, so a path means the
  same block in both. Parameters and BatchNorm statistics follow the same rule.
  Optimizer state is never inherited (Section 4.2).

  Args:
    key: A JAX random key for the fresh leaves.
    parent: The parent's genotype.
    parent_variables: The parent's trained variables, `params` and `batch_stats`.
      They are left as they are; shared leaves are shared, not copied.
    child: The child's genotype, a mutant of the parent.
    mode: `lamarckian` for the leaf rule, `none` for the baselines without
      inheritance, where every leaf is fresh.

  Returns:
    The child's variables, with the same two collections.

  Raises:
    ValueError: If the mode is unknown.
  """
  if mode not in MODES:
    raise ValueError(f'inheritance: got {mode!r}, want one of {MODES}')
  params = parent_variables['params']
  first_kernel = params[model.block_name(parent.blocks[0])]['conv']['kernel']
  channels = first_kernel.shape[-2]
  num_classes = params[model.CLASSIFIER]['dense']['bias'].shape[0]

  shapes = traverse_util.flatten_dict(
    model.variable_shapes(child, channels, num_classes)
  )
  inherited = traverse_util.flatten_dict(parent_variables) if mode != 'none' else {}
  leaves = {}
  for path, leaf in shapes.items():
    if path in inherited and inherited[path].shape == leaf.shape:
      leaves[path] = inherited[path]
    else:
      leaves[path] = model.fresh_leaf(key, path, leaf.shape)
  return traverse_util.unflatten_dict(leaves)
