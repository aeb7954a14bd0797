"""What a child takes over from its parent's trained weights (Section 3.3)."""

from collections.abc import Sequence
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from lamarck_jax import model, net2net
from lamarck_jax.genotype import Genotype
from lamarck_jax.model import Variables

MODES = ('lamarckian', 'none', 'overlap', 'net2net')


def inherit(
  key: jax.Array,
  parent: Genotype,
  parent_variables: Variables,
  child: Genotype,
  mode: str = 'lamarckian',
  *,
  parent_moments: Sequence[net2net.Moments] | None = None,
  image_shape: tuple[int, int] | None = None,
  noise: float = 0.0,
) -> dict[str, Any]:
  """Returns a child's variables, made of its parent's where they fit.

  The paper's mode, `lamarckian`, is the leaf rule: a leaf of the child that exists in
  the parent under the same path with the same shape is the parent's, bit for bit; every
  other leaf is freshly initialised. Blocks are named by their lineage, so a path means
  the same block in both. Parameters and BatchNorm statistics follow the same rule.
  Optimizer state is never inherited (Section 4.2).

  Args:
    key: A JAX random key for the fresh leaves.
    parent: The parent's genotype.
    parent_variables: The parent's trained variables, `params` and `batch_stats`.
      They are left as they are; shared leaves are shared, not copied.
    child: The child's genotype, a mutant of the parent.
    mode: `lamarckian`; `none` for the baselines without inheritance, where every leaf
      is fresh; `overlap`, in which a leaf of another shape keeps what both shapes
      have in common; `net2net`, in which the child computes what its parent does as
      far as it can, see `net2net.inherit`.
    parent_moments: For `net2net`, see there.
    image_shape: For `net2net`, see there.
    noise: For `net2net`, see there.

  Returns:
    The child's variables, with the same two collections.

  Raises:
    ValueError: If the mode is unknown, or the images' shape is needed and not given.
  """
  if mode not in MODES:
    raise ValueError(f'inheritance: got {mode!r}, want one of {MODES}')
  if mode == 'net2net':
    return net2net.inherit(
      key,
      parent,
      parent_variables,
      child,
      parent_moments=parent_moments,
      image_shape=image_shape,
      noise=noise,
    )
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
      if mode == 'overlap' and path in inherited:
        leaves[path] = _overlaid(leaves[path], np.asarray(inherited[path]))
  return traverse_util.unflatten_dict(leaves)


def _overlaid(fresh: np.ndarray, old: np.ndarray) -> np.ndarray:
  """Returns a fresh leaf with an old one's values where both have some.

  The first two axes of a convolution's kernel share their centre, all others their
  beginning.
  """
  result = fresh.copy()
  target, origin = [], []
  for axis, (size, old_size) in enumerate(zip(fresh.shape, old.shape, strict=True)):
    common = min(size, old_size)
    spatial = fresh.ndim == 4 and axis < 2
    starts = [(n - common) // 2 if spatial else 0 for n in (size, old_size)]
    target.append(slice(starts[0], starts[0] + common))
    origin.append(slice(starts[1], starts[1] + common))
  result[tuple(target)] = old[tuple(origin)]
  return result
