"""What a child takes over from its parent's trained weights (Section 3.3).

A mode of inheritance is a function from a `Context` to the child's variables, and
`MODES` names them. The paper's mode is `lamarckian`. Blocks are named by their lineage,
so a path of the variables means the same block in parent and child. Parameters and
BatchNorm statistics follow the same rule; optimizer state is never inherited
(Section 4.2).
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from lamarck_jax import model, net2net
from lamarck_jax.genotype import Genotype
from lamarck_jax.model import Variables
from lamarck_jax.moments import Moments

ParentMoments = Sequence[Moments] | Callable[[], Sequence[Moments]] | None


@dataclasses.dataclass(frozen=True)
class Context:
  """What a mode of inheritance may use; the arguments of `inherit`."""

  key: jax.Array
  parent: Genotype
  parent_variables: Variables
  child: Genotype
  parent_moments: ParentMoments = None
  image_shape: tuple[int, int] | None = None
  noise: float = 0.0
  # Of the child's data: image channels and classes; None: they are the parent's.
  data: tuple[int, int] | None = None

  def fresh_variables(self) -> dict[str, Any]:
    """Returns initial variables of the child."""
    if self.data:
      return model.init_variables(self.key, self.child, *self.data)
    params = self.parent_variables['params']
    first_block = params[model.block_name(self.parent.blocks[0])]
    channels = first_block['conv']['kernel'].shape[-2]
    num_classes = len(params[model.CLASSIFIER]['dense']['bias'])
    return model.init_variables(self.key, self.child, channels, num_classes)


def lamarckian(context: Context) -> dict[str, Any]:
  """The leaf rule of the paper: what has kept its shape is inherited, bit for bit."""
  parent = traverse_util.flatten_dict(context.parent_variables)
  child = traverse_util.flatten_dict(context.fresh_variables())
  for path, fresh in child.items():
    if path in parent and parent[path].shape == fresh.shape:
      child[path] = parent[path]
  return traverse_util.unflatten_dict(child)


def none(context: Context) -> dict[str, Any]:
  """The baselines of the paper: every leaf is fresh."""
  return context.fresh_variables()


def overlap(context: Context) -> dict[str, Any]:
  """Beyond the paper: resized leaves keep the overlapping slice as well."""
  parent = traverse_util.flatten_dict(context.parent_variables)
  child = traverse_util.flatten_dict(lamarckian(context))
  for path, leaf in child.items():
    if path in parent and parent[path].shape != leaf.shape:
      child[path] = _with_overlap(leaf, np.asarray(parent[path]))
  return traverse_util.unflatten_dict(child)


def function_preserving(context: Context) -> dict[str, Any]:
  """Beyond the paper: the child starts as its parent's function, see `net2net`."""
  moments = context.parent_moments
  return net2net.inherit(
    context.key,
    context.parent,
    context.parent_variables,
    context.child,
    parent_moments=moments() if callable(moments) else moments,
    image_shape=context.image_shape,
    noise=context.noise,
  )


MODES: dict[str, Callable[[Context], dict[str, Any]]] = {
  'lamarckian': lamarckian,
  'none': none,
  'overlap': overlap,
  'net2net': function_preserving,
}


def inherit(
  key: jax.Array,
  parent: Genotype,
  parent_variables: Variables,
  child: Genotype,
  mode: str = 'lamarckian',
  *,
  parent_moments: ParentMoments = None,
  image_shape: tuple[int, int] | None = None,
  noise: float = 0.0,
  shrink: float = 1.0,
) -> dict[str, Any]:
  """Returns a child's variables, made from its parent's by a mode of inheritance.

  Args:
    key: Draws the fresh leaves, which depend on nothing else.
    parent_variables: The parent's trained variables, `params` and `batch_stats`. They
      are not modified; the child's inherited leaves are the parent's arrays.
    child: A mutant of the parent.
    mode: One of `MODES`.
    parent_moments: For `net2net`: moments of the parent's activations, or a function
      that measures them, which no other mode calls.
    image_shape: For `net2net`: height and width of the images, in pixels.
    noise: For `net2net`: standard deviation of the noise on copied filters, in units of
      their kernel's.
    shrink: See `shrink_and_perturb`; 1 changes nothing.

  Returns:
    The child's variables, with the same two collections.

  Raises:
    ValueError: If the mode is unknown, or `image_shape` is needed and not given.
  """
  if mode not in MODES:
    raise ValueError(f'inheritance: got {mode!r}, want one of {", ".join(MODES)}')
  variables = MODES[mode](
    Context(key, parent, parent_variables, child, parent_moments, image_shape, noise)
  )
  return shrink_and_perturb(key, variables, shrink)


def shrink_and_perturb(
  key: jax.Array, variables: dict[str, Any], shrink: float
) -> dict[str, Any]:
  """Returns each leaf times `shrink`, plus a fresh one times `1 - shrink`.

  After Ash and Adams (2020), "On warm-starting neural network training". The fresh
  leaves are those that a mode draws with the same key, so fresh numbers stay. With a
  `shrink` of 1 the result is `variables`, which are not modified otherwise.
  """
  if shrink == 1:
    return variables
  leaves = traverse_util.flatten_dict(variables)
  for path, leaf in leaves.items():
    fresh = model.fresh_leaf(key, path, leaf.shape)
    # In this form a fresh number is exactly itself.
    leaves[path] = fresh + np.float32(shrink) * (np.asarray(leaf) - fresh)
  return traverse_util.unflatten_dict(leaves)


def _with_overlap(fresh: np.ndarray, old: np.ndarray) -> np.ndarray:
  """Returns a fresh leaf with an old one's values in the slice that both have.

  Kernels overlap at their centre in height and width, and at the beginning of every
  other axis: the centre tap meets the same pixel whatever the kernel's size.
  """
  result = fresh.copy()
  target, source = [], []
  for axis, (size, old_size) in enumerate(zip(fresh.shape, old.shape, strict=True)):
    common = min(size, old_size)
    spatial = fresh.ndim == 4 and axis < 2
    start, old_start = ((n - common) // 2 if spatial else 0 for n in (size, old_size))
    target.append(slice(start, start + common))
    source.append(slice(old_start, old_start + common))
  result[tuple(target)] = old[tuple(source)]
  return result
