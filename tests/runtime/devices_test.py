"""Tests of `devices`: how many cores, threads and GPUs there are."""

import os
import subprocess
import sys
import types

import jax
import pytest

from lamarck_jax import search
from lamarck_jax.data import datasets
from lamarck_jax.errors import UserError
from lamarck_jax.runtime import devices, process
from lamarck_jax.workers import evaluator
from tests.conftest import ROOT, run_program


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
  ('cores', 'batch_size', 'gpus', 'expected'),
  [(1, 128, [], 2), (3, 128, [], 2), (3, 32, [], 1), (3, 128, ['0'], 3)],
)
def test_a_number_of_devices_that_is_given_does_not_depend_on_the_cores(
  monkeypatch, cores, batch_size, gpus, expected
):
  monkeypatch.setattr(devices, 'num_cores', lambda: cores)
  monkeypatch.setattr(devices, 'available_gpus', lambda: gpus)
  monkeypatch.setenv('PJRT_NPROC', 'unset')
  updates = {}
  monkeypatch.setattr(jax.config, 'update', updates.__setitem__)
  devices.configure_cpu_devices(batch_size, 8, num_devices=2)
  assert updates == {'jax_num_cpu_devices': expected}
  assert os.environ['PJRT_NPROC'] == f'{expected}'


@pytest.mark.parametrize(
  ('plugins', 'environment', 'expected'),
  [
    ([], {'CUDA_VISIBLE_DEVICES': '3,5'}, []),
    (['jax_cuda12_plugin'], {'CUDA_VISIBLE_DEVICES': '3,5'}, ['3', '5']),
    (['jax_cuda13_plugin'], {'CUDA_VISIBLE_DEVICES': '3,5'}, ['3', '5']),
    (['jax_cuda13_plugin'], {'CUDA_VISIBLE_DEVICES': ''}, []),
    (['jax_cuda13_plugin'], {'CUDA_VISIBLE_DEVICES': '-1'}, []),
    (['jax_cuda13_plugin'], {'CUDA_VISIBLE_DEVICES': '3,-1,5'}, ['3']),
    (['jax_cuda12_plugin'], {}, ['0', '1']),
    (['jax_cuda12_plugin'], {'JAX_PLATFORMS': ''}, ['0', '1']),
    (['jax_cuda12_plugin'], {'JAX_PLATFORMS': 'gpu,cpu'}, ['0', '1']),
    (['jax_cuda12_plugin'], {'JAX_PLATFORMS': 'cpu'}, []),
    (['jax_cuda12_plugin'], {'JAX_PLATFORMS': 'cpu,cuda'}, []),
    (['jax_cuda12_plugin'], {'JAX_PLATFORM_NAME': 'cpu'}, []),
    (['jax_cuda12_plugin'], {'JAX_PLATFORM_NAME': 'GPU'}, ['0', '1']),
    (['jax_cuda13_plugin'], {'CUDA_VISIBLE_DEVICES': 'none'}, []),
    (
      ['jax_cuda13_plugin'],
      {'CUDA_VISIBLE_DEVICES': '2, GPU-1f,-2,3'},
      ['2', 'GPU-1f'],
    ),
  ],
)
def test_gpus_are_those_that_jax_would_use(monkeypatch, plugins, environment, expected):
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  monkeypatch.delenv('JAX_PLATFORM_NAME', raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  # JAX has read the variable when it was imported.
  config = types.SimpleNamespace(jax_platforms=environment.get('JAX_PLATFORMS'))
  monkeypatch.setattr(devices, 'jax', types.SimpleNamespace(config=config))
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


def test_a_gpu_that_jax_does_not_use_is_an_error(monkeypatch, tiny_config, tmp_path):
  monkeypatch.setattr(devices, 'available_gpus', lambda: ['3'])
  with pytest.raises(UserError, match='JAX: got the CPU, want the GPU 3'):
    search.run(tiny_config, tmp_path)
  # In a worker.
  monkeypatch.setattr(process, 'configure', lambda config, xla_cache_dir: None)
  monkeypatch.setattr(evaluator.logging, 'set_verbosity', lambda verbosity: None)
  worker = evaluator.Evaluator(tiny_config, None)
  with pytest.raises(UserError, match='JAX: got the CPU, want the GPU 3'):
    worker.load(datasets.load(**tiny_config.dataset))


def test_a_worker_has_the_platform_that_the_program_has_set(tmp_path):
  program = """
import multiprocessing
import jax

def describe(environment):
  from lamarck_jax.runtime import worker_processes
  worker_processes.initialise(environment)
  return jax.config.jax_platforms

if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')
  from lamarck_jax.runtime import worker_processes
  (_, environment), = worker_processes.resources(1, [0], [])
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    print(pool.apply(describe, [environment]))
"""
  path = tmp_path / 'program.py'  # Which the worker can import.
  path.write_text(program)
  environment = {**os.environ, 'JAX_PLATFORMS': '', 'PYTHONPATH': str(ROOT)}
  process = subprocess.run(
    [sys.executable, str(path)],
    env=environment,
    capture_output=True,
    text=True,
    timeout=100,
  )
  assert process.stdout == 'cpu\n', process.stderr


@pytest.mark.parametrize(
  ('status', 'listing', 'expected'),
  [
    (0, '143771\n81559\n', 81559 * 2**20),
    (0, '[N/A]\n', None),
    (0, '', None),
    (6, 'No devices were found\n', None),
  ],
)
def test_the_memory_is_that_of_the_smallest_gpu(monkeypatch, status, listing, expected):
  monkeypatch.setattr(devices.shutil, 'which', lambda name: name)
  monkeypatch.setattr(
    devices.subprocess,
    'run',
    lambda *args, **kwargs: subprocess.CompletedProcess(args, status, listing),
  )
  assert devices.gpu_memory(['0', '1']) == expected
  assert devices.gpu_memory([]) is None


def test_a_process_keeps_the_devices_that_jax_has_initialised():
  program = """
import jax
from lamarck_jax.runtime import devices
from lamarck_jax.xla import sharding
devices.configure_cpu_devices(32, 8)
first = jax.local_device_count()
devices.configure_cpu_devices(512, 32)
print(first, jax.local_device_count(), sharding.batch_mesh(512, (32, 32, 3)).size)
"""
  assert run_program(program).split() == ['1', '1', '1']


@pytest.mark.parametrize(
  ('num_threads', 'num_devices', 'in_caller'),
  [('1', None, True), ('1', 2, False), ('2', None, False)],
)
def test_a_limit_of_one_core_computes_in_the_thread_that_calls(
  num_threads, num_devices, in_caller
):
  program = f"""
import time
import jax
import jax.numpy as jnp
from lamarck_jax.runtime import devices
devices.available_cores = lambda: [0, 1]
devices.configure_cpu_devices(512, 32, {num_devices})
square = jax.jit(lambda x: x @ x).lower(jnp.ones((600, 600))).compile()
x, start = jnp.ones((600, 600)), time.thread_time()
for _ in range(50):
  x = square(x)
dispatch = time.thread_time() - start
print(dispatch)
"""
  seconds = float(run_program(program, PJRT_NPROC=num_threads))
  # A product takes a millisecond or more, starting it in another thread some 20 us.
  assert (seconds > 0.01) == in_caller


def test_the_cores_are_those_of_this_process_and_at_most_pjrt_nproc():
  program = """
from lamarck_jax.runtime import devices
print(devices.num_cores())
devices.configure_cpu_devices(32, 8)  # Sets PJRT_NPROC, which is about threads alone.
print(devices.num_cores())
"""
  available = len(devices.available_cores())
  assert run_program(program, PJRT_NPROC='1').split() == ['1', '1']
  assert run_program(program, PJRT_NPROC='1000').split() == [str(available)] * 2


@pytest.fixture
def no_cache():
  """The number of cores is counted anew, and again after the test."""
  devices.num_cores.cache_clear()
  yield
  devices.num_cores.cache_clear()


@pytest.mark.usefixtures('no_cache')
@pytest.mark.parametrize('value', ['abc', '0', '-1', '1.5', '1e3', ' '])
def test_a_pjrt_nproc_that_is_no_number_of_threads_is_refused(monkeypatch, value):
  monkeypatch.setenv('PJRT_NPROC', value)
  with pytest.raises(UserError, match=f"^PJRT_NPROC: got '{value}', want an integer"):
    devices.num_cores()


@pytest.mark.usefixtures('no_cache')
def test_an_empty_pjrt_nproc_is_none(monkeypatch):
  monkeypatch.setenv('PJRT_NPROC', '')
  assert devices.num_cores() == len(devices.available_cores())
