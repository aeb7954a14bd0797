"""The loss in both forms against optax, in value and gradient."""

import jax
import numpy as np
import optax
import pytest

from lamarck_jax.xla import cross_entropy


@pytest.mark.parametrize(
  'form',
  [cross_entropy.softmax_cross_entropy, cross_entropy._of_one_hot_labels],
  ids=['as on this platform', 'as on a GPU'],
)
def test_loss_and_gradient_are_those_of_integer_labels(form):
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 5, (64, 10)).astype(np.float32)
  labels = rng.integers(10, size=64).astype(np.int32)

  def run(loss):
    return jax.jit(jax.value_and_grad(lambda x: loss(x, labels).mean()))(logits)

  actual = run(form)
  desired = run(optax.softmax_cross_entropy_with_integer_labels)
  for ours, theirs in zip(actual, desired, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)
