"""Sharing a batch over devices changes nothing but the order of sums."""

import json

import jax
import pytest

from lamarck_jax.xla import sharding
from tests.conftest import run_program

# Trains and evaluates a network on images whose batches two devices can share.
_TRAINING = """
import json, sys
import jax, numpy as np
from lamarck_jax.runtime import compilation_cache
from lamarck_jax.xla import sharding
from lamarck_jax.data import datasets
from lamarck_jax import model, training
from lamarck_jax.genotype import Genotype

compilation_cache.enable(sys.argv[1])
rng = np.random.default_rng(0)

def split(n):
  labels = rng.integers(3, size=n).astype(np.int32)
  images = rng.integers(0, 256, (n, 9, 9, 3)) // 2 + 60 * labels[:, None, None, None]
  return datasets.Split(np.clip(images, 0, 255).astype(np.uint8), labels)

dataset = datasets.Dataset('random', split(600), split(150), split(10), ('a', 'b', 'c'))
genotype = Genotype.parse('16c5s2 8c1')
variables = model.init_variables(jax.random.key(1), genotype, 3, 3)
trainer = training.Trainer(dataset, batch_size=128)
losses = []
trained = trainer.train(
  jax.random.key(2), genotype, variables, [1e-3] * 3,
  on_epoch=lambda epoch, loss: losses.append(loss),
)
print(json.dumps({
  'devices': sharding.batch_mesh(128, (9, 9, 3)).size,
  'losses': losses,
  'accuracy': trainer.accuracy(genotype, trained, 'validation'),
  'leaves': [float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(trained)],
}))
"""


@pytest.mark.slow
def test_devices_that_share_a_batch_train_as_one_does(shared_compilation_cache):
  single, shared = (
    json.loads(
      run_program(
        _TRAINING, str(shared_compilation_cache), JAX_NUM_CPU_DEVICES=n, PJRT_NPROC='2'
      )
    )
    for n in ('1', '2')
  )
  assert (single['devices'], shared['devices']) == (1, 2)
  assert len(shared['losses']) == 3
  assert shared['losses'] == pytest.approx(single['losses'], rel=1e-3)
  assert shared['leaves'] == pytest.approx(single['leaves'], rel=2e-3, abs=1e-3)
  assert shared['accuracy'] == pytest.approx(single['accuracy'], abs=0.05)


@pytest.mark.slow
def test_a_deep_network_is_computed_on_devices_that_wait_for_one_another():
  """More programs than the CPU's client takes at once could deadlock."""
  program = """
import jax, numpy as np
from lamarck_jax.data import datasets
from lamarck_jax.xla import sharding
from lamarck_jax import activations, model, training
from lamarck_jax.genotype import Genotype

def split(n):
  return datasets.Split(np.zeros((n, 16, 16, 1), np.uint8), np.zeros(n, np.int32))

dataset = datasets.Dataset('black', split(640), split(64), split(1), ('a', 'b'))
trainer = training.Trainer(dataset, batch_size=64)
genotype = Genotype.parse('8c1s2' + 40 * ' 8c1')
variables = model.init_variables(jax.random.key(0), genotype, 1, 2)
for _ in range(3):
  trainer.train(jax.random.key(0), genotype, variables, [1e-3] * 3)
  assert trainer.accuracy(genotype, variables, 'train') == 1
  assert activations.correct(trainer, genotype, variables, 'train') == 160 * 'f'
  steps = [0] * 10
  (*_, outputs) = activations.block_outputs(trainer, genotype, variables, 41, steps)
  assert outputs.shape == (64, 8, 8, 8)
  assert len(list(activations.outputs(trainer, genotype, variables))) == 42
  statistics = activations.batch_statistics(trainer, genotype, variables, steps)
  assert len(statistics) == 41
print(sharding.batch_mesh(64, (16, 16, 1)).size)
"""
  assert run_program(program, JAX_NUM_CPU_DEVICES='4', PJRT_NPROC='4').split() == ['4']


def test_shards_are_equal_and_large_enough():
  program = """
from lamarck_jax.xla import sharding
for batch_size in (2, 32, 33, 64, 96, 512):
  print(sharding.batch_mesh(batch_size, (16, 16, 3)).size)
print(sharding.batch_mesh(64, (8, 8, 1)).size)
print(sharding.batch_mesh(32, (64, 48, 1)).size)
"""
  sizes = list(map(int, run_program(program, JAX_NUM_CPU_DEVICES='16').split()))
  assert sizes == [1, 2, 1, 4, 6, 16, 1, 2]


def test_a_compiled_program_is_traced_in_the_form_of_its_platform_alone():
  traced = []

  def form(name):
    def apply(x):
      traced.append(name)
      return x + len(name)

    return apply

  def function(x):
    return sharding.by_platform(x, cpu=form('cpu'), default=form('other'))

  with jax.set_mesh(sharding.batch_mesh(16, (8, 8, 1))):
    assert jax.jit(function)(0) == 3
  assert traced == ['cpu']
  # Without a mesh the platform is not known yet.
  assert jax.jit(function)(0) == 3
  assert traced[1:] == ['cpu', 'other']
