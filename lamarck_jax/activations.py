"""What a trained network computes on a batch, for inheritance that measures it."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from lamarck_jax import model
from lamarck_jax.genotype import Genotype
from lamarck_jax.model import Variables
from lamarck_jax.training import Trainer
from lamarck_jax.xla import fused_block


def outputs(
  trainer: Trainer, genotype: Genotype, variables: Variables, step: int = 0
) -> Iterator[np.ndarray]:
  """Yields a network's activations on a batch of the training split, in its order.

  They are the standardised images, and each block's outputs in evaluation mode,
  float32 [batch, height, width, channels].
  """
  blocks, _ = trainer.network(genotype)
  params, stats = trainer.data.put((variables['params'], variables['batch_stats']))
  x: Any = trainer.data.images(trainer.data.in_order('train'), trainer.data.put(step))
  yield np.asarray((x.pixels[x.order.examples[step]] - x.mean) / x.std)
  for name, block in blocks.items():
    x = block.infer(params[name], stats[name], x)
    yield np.asarray(x).astype(np.float32)


def correct(
  trainer: Trainer, genotype: Genotype, variables: Variables, split: str = 'validation'
) -> str:
  """Returns which examples of a split a network classifies correctly.

  Each is a bit, the first one the highest, in hexadecimal; the last digits are padded.
  """
  blocks, _ = trainer.network(genotype)
  params, stats = trainer.data.put((variables['params'], variables['batch_stats']))
  order = trainer.data.in_order(split)
  head = model.Classifier(trainer.num_classes)
  found = []
  for step in range(trainer.data.num_steps(split)):
    x: Any = trainer.data.images(order, trainer.data.put(step))
    for name, block in blocks.items():
      x = block.infer(params[name], stats[name], x)
    logits: Any = head.apply({'params': params[model.CLASSIFIER]}, x)
    found.append(np.asarray(logits).argmax(axis=-1))
  # The last batch is padded.
  predicted = np.concatenate(found)[: trainer.data.num_examples(split)]
  labels = np.asarray(trainer.data.targets(order, 0).labels)
  bits = predicted == labels[trainer.data.examples[split]]
  return np.packbits(bits).tobytes().hex()


def batch_statistics(
  trainer: Trainer, genotype: Genotype, variables: Variables, step: int = 0
) -> dict[str, Any]:
  """Returns the statistics of that batch in training mode, as `batch_stats`."""
  blocks, _ = trainer.network(genotype)
  zeros = jax.tree.map(np.zeros_like, variables['batch_stats'])
  params, stats = trainer.data.put((variables['params'], zeros))
  x: Any = trainer.data.images(trainer.data.in_order('train'), trainer.data.put(step))
  share = 1 - fused_block.ConvBlock.momentum  # Of a batch in running statistics.
  for name, block in blocks.items():
    x, updated, _ = block.forward(params[name], stats[name], x)
    stats[name] = jax.tree.map(lambda leaf: np.asarray(leaf) / share, updated)
  return stats
