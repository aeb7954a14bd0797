"""Means and covariances of a network's activations, measured or estimated.

`net2net` needs them for what it solves by least squares.
"""

from collections.abc import Iterable
import math
from typing import Any, NamedTuple

import numpy as np

from lamarck_jax import model
from lamarck_jax.genotype import Genotype
from lamarck_jax.model import Variables


class Moments(NamedTuple):
  """Moments of the channels of the images, or of a block's outputs.

  Attributes:
    mean: Mean of each channel, float32 [channels].
    covariance: Covariance of channels at the same pixel, float32 [channels, channels].
    correlation: Correlation of neighbouring pixels of a channel, over all channels.
    cross: Covariance of the block's inputs with its outputs at the same pixel,
      float32 [inputs, channels]; None for the images.
  """

  mean: np.ndarray
  covariance: np.ndarray
  correlation: float = 1.0
  cross: np.ndarray | None = None

  def take(self, source: np.ndarray) -> 'Moments':
    """Returns the moments of the channels `source`, int [filters], without `cross`."""
    covariance = self.covariance[np.ix_(source, source)]
    return Moments(self.mean[source], covariance, self.correlation)


def measure(activations: Iterable[np.ndarray]) -> list[Moments]:
  """Returns the moments of a network's activations.

  Args:
    activations: The images as the network sees them, and each block's outputs,
      float32 [batch, height, width, channels].
  """
  found: list[Moments] = []
  inputs = None
  for outputs in activations:
    mean = outputs.mean(axis=(0, 1, 2))
    outputs = outputs - mean
    y = outputs.reshape(-1, outputs.shape[-1])
    cross = None
    if inputs is not None:
      # An output is related to the input at the same place, as far as strides allow.
      rows, columns = (-(-inputs.shape[i] // outputs.shape[i]) for i in (1, 2))
      x = inputs[:, ::rows, ::columns].reshape(-1, inputs.shape[-1])
      cross = (x - x.mean(axis=0)).T @ y / len(y)
    correlation = _neighbour_correlation(outputs)
    found.append(Moments(mean, y.T @ y / len(y), correlation, cross))
    inputs = outputs
  return found


def _neighbour_correlation(x: np.ndarray) -> float:
  """Returns the correlation of neighbouring pixels of channels with mean 0."""
  variance = np.square(x).mean()
  pairs = [(x[:, 1:], x[:, :-1]), (x[:, :, 1:], x[:, :, :-1])]
  products = [(a * b).mean() for a, b in pairs if a.size]
  if not products or variance == 0:
    return 1.0
  return float(np.clip(np.mean(products) / variance, 0, 1))


def estimated_moments(params: Any, stats: Any, inputs: Moments) -> Moments:
  """Estimates the moments of a block's outputs, assumed normal before the ReLU.

  With y normal of mean b (BatchNorm's shift) and standard deviation g (its scale),

    E[relu(y)] = b F(b/g) + g f(b/g),
    E[relu(y)^2] = (b^2 + g^2) F(b/g) + b g f(b/g),
    Cov[x, relu(y)] = F(b/g) Cov[x, y] for x jointly normal (Stein's lemma),

  F and f being the standard normal distribution and its density. Neighbouring pixels
  are taken as equal, and outputs as uncorrelated.

  Args:
    params: The block's parameters, `conv` and `norm`.
    stats: The block's statistics, `norm`.
    inputs: The moments of its inputs.
  """
  norm = {name: np.asarray(leaf, np.float64) for name, leaf in params['norm'].items()}
  shift, scale = norm['bias'], np.maximum(np.abs(norm['scale']), 1e-12)
  ratio = shift / scale
  positive = 0.5 * (1 + np.vectorize(math.erf)(ratio / math.sqrt(2)))
  density = np.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
  mean = shift * positive + scale * density
  square = (shift**2 + scale**2) * positive + shift * scale * density
  deviation = np.sqrt(stats['norm']['var'] + model.BATCH_NORM_EPSILON)
  kernel = params['conv']['kernel'].sum(axis=(0, 1))
  cross = inputs.covariance @ kernel * (norm['scale'] / deviation * positive)
  covariance = np.diag(np.maximum(square - mean**2, 0))
  mean, covariance, cross = (m.astype(np.float32) for m in (mean, covariance, cross))
  return Moments(mean, covariance, inputs.correlation, cross)


def estimated_from(genotype: Genotype, variables: Variables) -> list[Moments]:
  """Estimates the moments of standardised images, and of each block's outputs."""
  params, stats = variables['params'], variables['batch_stats']
  names = [model.block_name(block) for block in genotype.blocks]
  channels = params[names[0]]['conv']['kernel'].shape[-2]
  found = [Moments(np.zeros(channels, np.float32), np.eye(channels, dtype=np.float32))]
  for name in names:
    found.append(estimated_moments(params[name], stats[name], found[-1]))
  return found
