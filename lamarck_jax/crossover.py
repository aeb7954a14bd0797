"""Homologous one-point crossover with inherited weights.

The paper's last section names the interaction of weight inheritance and crossover as
future work. Blocks that two relatives have from a common ancestor carry the same
lineage number, and mutations never reorder blocks. So at a common block h a child can
have the first parent's blocks up to h and the second's after it, with their weights::

  first   a1 a2 h  a3 a4 classifier           a1 a2 h | b2 classifier
  second  b1 h  b2 classifier          ->     first   | second

The layer behind the seam has learned to read h's outputs x_B in the second parent and
now gets h's outputs x_A in the first. An affine map predicts one from the other by
least squares, x_B = x_A W + c, and is folded into that layer as in `net2net`. The
prediction has less variance than x_B, which shrinks the signal from layer to layer, so
the running statistics behind the seam are corrected as well (Jordan et al., 2023,
"REPAIR", arXiv 2211.08403).
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lamarck_jax import genotype as genotype_lib
from lamarck_jax import model, net2net
from lamarck_jax.genotype import Genotype, SearchSpace
from lamarck_jax.model import Variables
from lamarck_jax.moments import Moments
from lamarck_jax.mutation import NotApplicable
from lamarck_jax.net2net import AffineMap


class Cut(NamedTuple):
  """Where two parents are cut, behind a block of one lineage number.

  Attributes:
    first: Number of blocks that the child has from the first parent.
    second: Number of the second parent's blocks that it lacks.
  """

  first: int
  second: int


class Parent(NamedTuple):
  """A parent of a crossover.

  Attributes:
    genotype: Its architecture.
    variables: Its trained variables, which are not modified.
  """

  genotype: Genotype
  variables: Variables


# ------------------------------------------------------------------------------
# Genotypes
# ------------------------------------------------------------------------------


def cuts(first: Genotype, second: Genotype) -> list[Cut]:
  """Returns the cuts behind common blocks at which both parents have one resolution.

  The product of strides up to a block fixes the height and width of its outputs.
  """
  found = []
  resolutions = dict(_resolutions(second))
  for position, (lineage, (_, stride)) in enumerate(_resolutions(first), start=1):
    other_position, other_stride = resolutions.get(lineage, (0, 0))
    if stride == other_stride:
      found.append(Cut(position, other_position))
  return found


def _resolutions(genotype: Genotype) -> list[tuple[int, tuple[int, int]]]:
  """Returns each block's lineage, with its number from 1 and the strides' product."""
  found, stride = [], 1
  for position, block in enumerate(genotype.blocks, start=1):
    stride *= block.stride
    found.append((block.lineage, (position, stride)))
  return found


def child_at(first: Genotype, second: Genotype, cut: Cut) -> Genotype:
  """Returns the first parent's blocks before a cut, and the second's behind it."""
  return Genotype(
    first.blocks[: cut.first] + second.blocks[cut.second :],
    next_lineage=max(first.next_lineage, second.next_lineage),
  )


def crossover(
  key: jax.Array,
  first: Genotype,
  second: Genotype,
  space: SearchSpace,
  history: Collection[Genotype] = frozenset(),
) -> tuple[Genotype, Cut]:
  """Returns a child within the search space that has not been evaluated, and its cut.

  All cuts that give such a child are equally likely.

  Args:
    history: All genotypes evaluated so far, both parents among them.

  Raises:
    NotApplicable: If there is no such cut.
  """
  possible = []
  for cut in cuts(first, second):
    child = child_at(first, second, cut)
    if child in space and child not in history:
      possible.append((child, cut))
  if not possible:
    raise NotApplicable('crossover: no cut gives a new network of the search space')
  return possible[int(genotype_lib.generator(key).integers(len(possible)))]


# ------------------------------------------------------------------------------
# Weights
# ------------------------------------------------------------------------------


def leaf_rule(
  key: jax.Array, first: Parent, second: Parent, cut: Cut
) -> dict[str, Any]:
  """Returns the child's variables without a fit: the control of `stitch`.

  Every leaf is that of the parent which the block, or the classifier, comes from. Only
  the kernel behind the seam can have another shape, if h has other filters in the first
  parent; then it is fresh, drawn with `key`.
  """
  variables = _joined(first, second, cut)
  module, layer = _reader(second, cut)
  old = variables['params'][module][layer]
  *window, channels, filters = old['kernel'].shape
  inputs = first.genotype.blocks[cut.first - 1].filters
  if inputs == channels:
    return variables
  path, shape = ('params', module, layer, 'kernel'), (*window, inputs, filters)
  kernel = model.fresh_leaf(key, path, shape)
  return _with_layer(variables, second, cut, {**old, 'kernel': kernel})


def fit(first: Moments, second: Moments) -> tuple[AffineMap, float]:
  """Returns the map from the first parent's activations to the second's, and its R^2.

  Its weights are pulled towards the identity, not towards 0 as elsewhere: channels of
  relatives descend from the same ones, and the map of a network to itself is exact.

  Args:
    first: Moments of the outputs of h in the first parent.
    second: Those in the second parent on the same images; `cross` is the covariance of
      the first's with the second's.

  Returns:
    The map, and the share of the variance of the second's channels that it predicts,
    which is below 0 where it predicts less than their means do.
  """
  assert second.cross is not None
  prior = np.eye(*second.cross.shape, dtype=np.float32)
  rest = net2net.least_squares(
    first, second.mean - first.mean @ prior, second.cross - first.covariance @ prior
  )
  weights = prior + rest.weights
  # The variance of x_B - x_A W, summed over the channels.
  residual = (
    np.trace(second.covariance)
    - 2 * np.sum(weights * second.cross)
    + np.sum(weights * (first.covariance @ weights))
  )
  total = float(np.trace(second.covariance))
  r2 = 1 - float(residual) / total if total > 0 else 1.0
  return AffineMap(weights, rest.offset), r2


def stitch(
  first: Parent, second: Parent, cut: Cut, to_second: AffineMap
) -> dict[str, Any]:
  """Returns the child's variables with a map folded into the layer behind the seam.

  All other leaves are the parents', bit for bit. With an empty suffix that layer is
  the second parent's classifier, which reads the mean over all pixels.

  Args:
    to_second: The map of `fit`.
  """
  module, layer = _reader(second, cut)
  old = jax.tree.map(np.asarray, second.variables['params'][module][layer])
  variables = _joined(first, second, cut)
  return _with_layer(variables, second, cut, to_second.fold_into(old))


def repair(
  variables: Mapping[str, Any],
  second: Parent,
  cut: Cut,
  child_statistics: Mapping[str, Any],
  second_statistics: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns a stitched child's variables with its own statistics behind the seam.

  The second parent's running statistics are corrected by what a batch tells: means by
  the difference between the child and the parent on it, variances by the ratio. What
  is particular to the batch cancels, so a network that is crossed with itself keeps
  its statistics.

  Args:
    variables: Those of `stitch`; they are not modified.
    child_statistics: `mean` and `var` of each block's convolution on a batch, in the
      layout of `batch_stats`, for the child.
    second_statistics: The same for the second parent on the same batch.
  """
  statistics = dict(variables['batch_stats'])
  for block in second.genotype.blocks[cut.second :]:
    name = model.block_name(block)
    running = jax.tree.map(np.asarray, statistics[name]['norm'])
    child, parent = child_statistics[name]['norm'], second_statistics[name]['norm']
    epsilon = np.float32(model.BATCH_NORM_EPSILON)
    ratio = (child['var'] + epsilon) / (parent['var'] + epsilon)
    statistics[name] = {
      'norm': {
        'mean': running['mean'] + (child['mean'] - parent['mean']),
        'var': running['var'] * ratio,
      }
    }
  return {**variables, 'batch_stats': statistics}


def _joined(first: Parent, second: Parent, cut: Cut) -> dict[str, Any]:
  """Returns the variables of both sides of a seam, whatever their shapes."""
  before = [*map(model.block_name, first.genotype.blocks[: cut.first])]
  behind = [*map(model.block_name, second.genotype.blocks[cut.second :])]
  variables: dict[str, Any] = {
    collection: {
      **{name: first.variables[collection][name] for name in before},
      **{name: second.variables[collection][name] for name in behind},
    }
    for collection in ('params', 'batch_stats')
  }
  variables['params'][model.CLASSIFIER] = second.variables['params'][model.CLASSIFIER]
  return variables


def _reader(second: Parent, cut: Cut) -> tuple[str, str]:
  """Returns the module, and its layer, that reads the seam."""
  behind = second.genotype.blocks[cut.second :]
  if not behind:
    return model.CLASSIFIER, 'dense'
  return model.block_name(behind[0]), 'conv'


def _with_layer(
  variables: dict[str, Any], second: Parent, cut: Cut, layer: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns variables with another kernel and bias behind the seam."""
  module, name = _reader(second, cut)
  params = dict(variables['params'])
  params[module] = {**params[module], name: dict(layer)}
  return {**variables, 'params': params}
