"""Tests of `devices`: how many there are, and that sharing a batch changes nothing."""

import json
import os
import subprocess
import sys

import jax
import pytest

from lamarck_jax.runtime import devices


def run(program: str, *arguments: str, **environment: str) -> str:
  """Runs a program on the CPU in a process of its own; returns what it prints."""
  process = subprocess.run(
    [sys.executable, '-c', program, *arguments],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', **environment},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 0, process.stderr[-3000:]
  return process.stdout


# Trains and evaluates a network on images whose batches two devices can share.
_TRAINING = """
import json, sys
import jax, numpy as np
from lamarck_jax.runtime import compilation_cache, devices
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
  'devices': devices.batch_mesh(128, (9, 9, 3)).size,
  'losses': losses,
  'accuracy': trainer.accuracy(genotype, trained, 'validation'),
  'leaves': [float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(trained)],
}))
"""


def test_devices_that_share_a_batch_train_as_one_does(shared_compilation_cache):
  single, shared = (
    json.loads(
      run(
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


def test_a_deep_network_trains_on_devices_that_wait_for_one_another():
  """More programs than the CPU's client takes at once could deadlock."""
  program = """
import jax, numpy as np
from lamarck_jax.data import datasets
from lamarck_jax.runtime import devices
from lamarck_jax import model, training
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
print(devices.batch_mesh(64, (16, 16, 1)).size)
"""
  assert run(program, JAX_NUM_CPU_DEVICES='4', PJRT_NPROC='4').split() == ['4']


def test_shards_are_equal_and_large_enough():
  program = """
from lamarck_jax.runtime import devices
for batch_size in (2, 32, 33, 64, 96, 512):
  print(devices.batch_mesh(batch_size, (16, 16, 3)).size)
print(devices.batch_mesh(64, (8, 8, 1)).size)
print(devices.batch_mesh(32, (64, 48, 1)).size)
"""
  sizes = list(map(int, run(program, JAX_NUM_CPU_DEVICES='16').split()))
  assert sizes == [1, 2, 1, 4, 6, 16, 1, 2]


@pytest.mark.parametrize(
  ('batch_size', 'image_size', 'gpus', 'num_devices', 'num_threads'),
  [
    (64, None, [], 3, '3'),
    (96, 16, [], 3, '3'),
    (125, 32, [], 3, '3'),  # Three devices cannot share it equally, but threads can.
    (32, 8, [], 1, '1'),
    (32, 8, ['0'], 3, '3'),
  ],
)
def test_small_batches_get_a_single_thread(
  monkeypatch, batch_size, image_size, gpus, num_devices, num_threads
):
  monkeypatch.setattr(devices, 'num_cores', lambda: 3)
  monkeypatch.setattr(devices, 'available_gpus', lambda: gpus)
  monkeypatch.setenv('PJRT_NPROC', 'unset')
  updates = {'jax_num_cpu_devices': 1}
  monkeypatch.setattr(jax.config, 'update', updates.__setitem__)
  devices.configure_cpu_devices(batch_size, image_size)
  assert updates == {'jax_num_cpu_devices': num_devices}
  assert os.environ['PJRT_NPROC'] == num_threads


@pytest.mark.parametrize(
  ('plugins', 'environment', 'expected'),
  [
    ([], {'CUDA_VISIBLE_DEVICES': '3,5'}, []),
    (['jax_cuda12_plugin'], {'CUDA_VISIBLE_DEVICES': '3,5'}, ['3', '5']),
    (['jax_cuda13_plugin'], {'CUDA_VISIBLE_DEVICES': '3,5'}, ['3', '5']),
    (['jax_cuda13_plugin'], {'CUDA_VISIBLE_DEVICES': ''}, []),
    (['jax_cuda12_plugin'], {}, ['0', '1']),
    (['jax_cuda12_plugin'], {'JAX_PLATFORMS': ''}, ['0', '1']),
    (['jax_cuda12_plugin'], {'JAX_PLATFORMS': 'gpu,cpu'}, ['0', '1']),
    (['jax_cuda12_plugin'], {'JAX_PLATFORMS': 'cpu'}, []),
  ],
)
def test_gpus_are_those_that_jax_would_use(monkeypatch, plugins, environment, expected):
  for name in ('CUDA_VISIBLE_DEVICES', 'JAX_PLATFORMS'):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(
    devices.importlib.util, 'find_spec', lambda name: name in plugins or None
  )
  monkeypatch.setattr(devices.shutil, 'which', lambda name: name)
  listing = 'GPU 0: NVIDIA H200 (UUID: GPU-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)\n'
  monkeypatch.setattr(
    devices.subprocess,
    'run',
    lambda *args, **kwargs: subprocess.CompletedProcess(args, 0, listing),
  )
  assert devices.available_gpus() == expected


def test_a_process_keeps_the_devices_that_jax_has_initialised():
  program = """
import jax
from lamarck_jax.runtime import devices
devices.configure_cpu_devices(32, 8)
first = jax.local_device_count()
devices.configure_cpu_devices(512, 32)
print(first, jax.local_device_count(), devices.batch_mesh(512, (32, 32, 3)).size)
"""
  assert run(program).split() == ['1', '1', '1']


def test_the_cores_are_those_of_this_process_and_at_most_pjrt_nproc():
  program = """
from lamarck_jax.runtime import devices
print(devices.num_cores())
devices.configure_cpu_devices(32, 8)  # Sets PJRT_NPROC, which is about threads alone.
print(devices.num_cores())
"""
  available = len(devices.available_cores())
  assert run(program, PJRT_NPROC='1').split() == ['1', '1']
  assert run(program, PJRT_NPROC='1000').split() == [str(available)] * 2
