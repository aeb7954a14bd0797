"""The variables that a child starts training from: fresh, or of one parent or two.

It measures on the trainer's images what the pure functions of `inheritance`, `net2net`
and `crossover` need.
"""

from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import config_dict
import numpy as np

from lamarck_jax import (
  activations,
  crossover,
  inheritance,
  model,
  moments,
  parsimony,
)
from lamarck_jax.crossover import Cut, Parent
from lamarck_jax.genotype import Genotype
from lamarck_jax.model import Variables
from lamarck_jax.parsimony import Preference
from lamarck_jax.population import Offspring
from lamarck_jax.training import Trainer

# On how many examples crossover measures: one batch of the paper, and where there is
# one pixel for each of them, 16 for each of the 256 channels at most.
EXAMPLES = 512
POOLED_EXAMPLES = 4096


def initial_variables(
  key: jax.Array,
  offspring: Offspring,
  parent_variables: Sequence[Variables],
  trainer: Trainer,
  config: config_dict.ConfigDict,
) -> tuple[Variables, float | None]:
  """Returns a child's variables before training.

  Args:
    key: Draws the fresh leaves.
    offspring: The child.
    parent_variables: The trained variables of each of its parents.
    trainer: Has the images that the parents' activations are measured on.
    config: The search's.

  Returns:
    The variables, and R^2 of the fit at the seam of a stitched child.
  """
  child = offspring.genotype
  parents = [
    Parent(parent.genotype, variables)
    for parent, variables in zip(offspring.parents, parent_variables, strict=True)
  ]
  if not parents:
    return _initial(key, offspring, trainer, config), None
  if offspring.cut is None:
    return _from_one(key, parents[0], child, trainer, config), None
  mode = config.population.crossover_inheritance
  if 'none' in (mode, config.inheritance):
    return _fresh(key, child, trainer), None
  first, second = parents
  r2 = None
  if mode == 'leaf_rule':
    variables = crossover.leaf_rule(key, first, second, offspring.cut)
  else:
    variables, r2 = stitched(first, second, offspring.cut, trainer)
  shrink = config.inheritance_shrink
  return inheritance.shrink_and_perturb(key, variables, shrink), r2


def preference(config: config_dict.ConfigDict, trainer: Trainer) -> Preference:
  """Returns which of two networks a search selects, on the trainer's data."""
  counts = trainer.data.class_counts['validation']
  return Preference(
    config.parsimony,
    parsimony.effective_examples(config.fitness, counts),
    trainer.image_shape[-1],
    trainer.num_classes,
  )


def stitched(
  first: Parent, second: Parent, cut: Cut, trainer: Trainer
) -> tuple[dict[str, Any], float]:
  """Returns the stitched child's variables, and R^2 of the fit at its seam.

  The fit and the statistics behind the seam are measured on the first training images.
  """
  pooled = cut.second == len(second.genotype)  # The classifier reads the seam.
  # Moments like those of a block with the first's outputs in and the second's out.
  seam = moments.measure(
    [
      _outputs(first, cut.first, trainer, pooled),
      _outputs(second, cut.second, trainer, pooled),
    ]
  )
  to_second, r2 = crossover.fit(*seam)
  variables = crossover.stitch(first, second, cut, to_second)
  child = crossover.child_at(first.genotype, second.genotype, cut)
  variables = crossover.repair(
    variables,
    second,
    cut,
    _statistics(Parent(child, variables), trainer),
    _statistics(second, trainer),
  )
  return variables, r2


def _outputs(parent: Parent, depth: int, trainer: Trainer, pooled: bool) -> np.ndarray:
  """Returns the outputs of a parent's block, [examples, height, width, channels].

  What the classifier reads is one pixel, their mean, of more examples.
  """
  steps = _steps(trainer, POOLED_EXAMPLES if pooled else EXAMPLES)
  found = activations.block_outputs(trainer, *parent, depth, steps)
  if pooled:
    found = (outputs.mean(axis=(1, 2), keepdims=True) for outputs in found)
  return np.concatenate(list(found))


def _statistics(parent: Parent, trainer: Trainer) -> dict[str, Any]:
  """Returns the statistics of a network's convolutions, the mean over batches."""
  return activations.batch_statistics(trainer, *parent, _steps(trainer, EXAMPLES))


def _steps(trainer: Trainer, examples: int) -> range:
  """Returns the batches of the training split with that number of examples."""
  return range(min(-(-examples // trainer.batch_size), trainer.steps_per_epoch))


def _fresh(key: jax.Array, child: Genotype, trainer: Trainer) -> Variables:
  *_, channels = trainer.image_shape
  return model.init_variables(key, child, channels, trainer.num_classes)


def _initial(
  key: jax.Array, offspring: Offspring, trainer: Trainer, config: config_dict.ConfigDict
) -> Variables:
  """Returns the variables of a network without parents, see `warm_start`.

  Those that it starts from may be of other images and classes. There is no function to
  preserve then, and no mutation, so `net2net` is the leaf rule.
  """
  child, source = offspring.genotype, offspring.variables
  if source is None:
    return _fresh(key, child, trainer)
  mode = 'lamarckian' if config.inheritance == 'net2net' else config.inheritance
  data = trainer.image_shape[-1], trainer.num_classes
  context = inheritance.Context(key, child, source, child, data=data)
  variables = inheritance.MODES[mode](context)
  return inheritance.shrink_and_perturb(key, variables, config.inheritance_shrink)


def _from_one(
  key: jax.Array,
  parent: Parent,
  child: Genotype,
  trainer: Trainer,
  config: config_dict.ConfigDict,
) -> Variables:
  """Returns the variables of a mutant by the search's mode of inheritance."""
  return inheritance.inherit(
    key,
    *parent,
    child,
    config.inheritance,
    # Measured only by the modes that need them.
    parent_moments=lambda: moments.measure(activations.outputs(trainer, *parent)),
    image_shape=trainer.image_shape[:2],
    noise=config.inheritance_noise,
    shrink=config.inheritance_shrink,
  )
