"""What a trained network computes on a batch, for inheritance that measures it."""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any

import jax
import numpy as np

from lamarck_jax import model
from lamarck_jax.genotype import Genotype
from lamarck_jax.model import Variables
from lamarck_jax.training import Trainer
from lamarck_jax.xla import fused_block, programs, vectors


def outputs(
  trainer: Trainer, genotype: Genotype, variables: Variables
) -> Iterator[np.ndarray]:
  """Yields a network's activations on the first batch of the training split.

  They are the standardised images, and each block's outputs in evaluation mode,
  float32 [batch, height, width, channels].
  """
  x: Any = trainer.data.images(trainer.data.in_order('train'), trainer.data.put(0))
  yield np.asarray((x.pixels[x.order.examples[0]] - x.mean) / x.std)
  for block in _blocks(trainer, genotype, variables):
    x = block(x)
    yield np.asarray(x).astype(np.float32)


def block_outputs(
  trainer: Trainer,
  genotype: Genotype,
  variables: Variables,
  depth: int,
  steps: Sequence[int],
) -> Iterator[np.ndarray]:
  """Yields the outputs of the block at a depth, from 1, in evaluation mode.

  Args:
    steps: Batches of the training split, in its order.

  Yields:
    For each batch, float32 [batch, height, width, channels].
  """
  blocks = _blocks(trainer, genotype, variables)[:depth]
  order = trainer.data.in_order('train')
  for step in steps:
    x: Any = trainer.data.images(order, trainer.data.put(step))
    for block in blocks:
      x = block(x)
    yield np.asarray(x).astype(np.float32)


def correct(
  trainer: Trainer, genotype: Genotype, variables: Variables, split: str = 'validation'
) -> str:
  """Returns which examples of a split a network classifies correctly.

  Each is a bit, the first one the highest, in hexadecimal; the last digits are padded.
  """
  blocks = _blocks(trainer, genotype, variables)
  params = trainer.data.put(variables['params'][model.CLASSIFIER])
  order = trainer.data.in_order(split)
  head = model.Classifier(trainer.num_classes)
  found = []
  for step in range(trainer.data.num_steps(split)):
    x: Any = trainer.data.images(order, trainer.data.put(step))
    for block in blocks:
      x = block(x)
    logits: Any = head.apply({'params': params}, x)
    found.append(np.asarray(logits).argmax(axis=-1))
  # The last batch is padded.
  predicted = np.concatenate(found)[: trainer.data.num_examples(split)]
  labels = np.asarray(trainer.data.targets(order, 0).labels)
  bits = predicted == labels[trainer.data.examples[split]]
  return np.packbits(bits).tobytes().hex()


def batch_statistics(
  trainer: Trainer, genotype: Genotype, variables: Variables, steps: Sequence[int]
) -> dict[str, Any]:
  """Returns the mean of the statistics of those batches, as `batch_stats`.

  Each batch is of the training split, in its order, and in training mode.
  """
  zeros = jax.tree.map(np.zeros_like, variables['batch_stats'])
  start = {'params': variables['params'], 'batch_stats': zeros}
  state = trainer.initial_state(genotype, start)
  blocks, _ = trainer.network(genotype)
  order, in_flight = trainer.data.in_order('train'), programs.InFlight()
  share = 1 - fused_block.ConvBlock.momentum  # Of a batch in running statistics.
  found = []
  for step in steps:
    x: Any = trainer.data.images(order, trainer.data.put(step))
    updated = {}
    for name, block in blocks.items():
      x, residuals = block.forward(state[name], x, trainer.training)
      updated[name] = residuals.batch_stats
      in_flight.add(updated[name])
    found.append(jax.tree.map(lambda leaf: np.asarray(leaf) / share, updated))
  means = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *found)
  return {
    name: vectors.unravel(means[name], shapes)
    for name, shapes in variables['batch_stats'].items()
  }


def _blocks(
  trainer: Trainer, genotype: Genotype, variables: Variables
) -> list[Callable[[Any], jax.Array]]:
  """Returns each block in evaluation mode, as a function of its inputs."""
  blocks, _ = trainer.network(genotype)
  state, in_flight = trainer.initial_state(genotype, variables), programs.InFlight()

  def apply(name: str, inputs: Any) -> jax.Array:
    outputs, residuals = blocks[name].forward(state[name], inputs, trainer.evaluation)
    in_flight.add(residuals.batch_stats)
    return outputs

  return [functools.partial(apply, name) for name in blocks]
