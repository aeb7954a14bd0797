import pytest

from lamarck_jax import config as config_lib
from lamarck_jax.errors import UserError
from lamarck_jax.runtime import (
  devices,
  gpu_sharing,
  process,
  ray_cluster,
  worker_processes,
)
from lamarck_jax.study import executors
from tests import damages


def test_every_worker_has_cores_of_its_own():
  cores = [0, 1, 2, 3, 4, 5]
  workers = worker_processes.resources(3, cores, gpus=[])
  assert workers == [([0, 1], {}), ([2, 3], {}), ([4, 5], {})]


def test_workers_share_cores_only_if_there_are_too_few():
  workers = worker_processes.resources(8, [0, 1, 2, 3, 4, 5], gpus=[])
  assert workers == [([0, 1, 2, 3, 4, 5], {'PJRT_NPROC': '1'})] * 8


def test_workers_take_gpus_in_turn_and_share_their_memory():
  workers = worker_processes.resources(4, [0, 1, 2, 3], gpus=['3', '5'])
  gpus = [environment['CUDA_VISIBLE_DEVICES'] for _, environment in workers]
  assert gpus == ['3', '5', '3', '5']
  fractions = {env['XLA_PYTHON_CLIENT_MEM_FRACTION'] for _, env in workers}
  assert fractions == {'0.375'}


@pytest.mark.parametrize(
  ('batch_size', 'image_size', 'filters', 'gpu_gigabytes', 'cores', 'expected'),
  [
    (512, 32, 256, 80, 16, 1),  # The paper's search fills a GPU.
    (512, 32, 128, 80, 16, 1),
    (512, 32, 64, 80, 16, 2),
    (64, 16, 64, 80, 16, 8),  # Small networks: as many as have two cores each,
    (64, 16, 64, 80, 5, 2),
    (64, 16, 64, 80, 1, 1),
    (64, 16, 64, 16, 64, 7),  # or as have room in the memory.
    (64, 16, 64, 1, 64, 1),
  ],
)
def test_as_many_searches_share_a_gpu_as_fill_it_and_have_room(
  batch_size, image_size, filters, gpu_gigabytes, cores, expected
):
  config = config_lib.get_config()
  config.update(batch_size=batch_size)
  config.dataset.image_size = image_size
  config.search_space.filters = (16, filters)
  size = process.largest_activations(config)
  assert size == batch_size * image_size**2 * filters * 4
  assert gpu_sharing.searches_per_gpu(size, gpu_gigabytes * 2**30, cores) == expected


def test_a_gpu_is_not_shared_where_the_need_or_the_memory_is_unknown():
  assert gpu_sharing.searches_per_gpu(None, 80 * 2**30, 16) == 1
  assert gpu_sharing.searches_per_gpu(4 * 2**20, None, 16) == 1


def test_runs_on_ray_that_share_a_gpu_share_its_memory():
  assert ray_cluster.environment(2, 0.25) == {
    'PJRT_NPROC': '2',
    'XLA_CLIENT_MEM_FRACTION': '',
    'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.188',
  }
  for gpus in (0, 1, 2):  # Without a GPU, or with GPUs of its own.
    assert ray_cluster.environment(0.5, gpus) == {'PJRT_NPROC': '1'}


@pytest.mark.parametrize(
  'name', ['XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION']
)
def test_searches_share_the_memory_that_the_environment_allows(monkeypatch, name):
  monkeypatch.setenv(name, '0.5')
  assert gpu_sharing.memory_share(2) == {
    'XLA_CLIENT_MEM_FRACTION': '',
    'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.25',
  }
  for value in ('half', '0', '-1', 'nan', 'inf'):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name}: got '{value}', want a number"):
      gpu_sharing.memory_share(2)


def test_without_a_gpu_there_is_a_worker_per_core():
  executor = executors.LocalExecutor(activation_bytes=2**20)
  assert executor.num_workers == len(devices.available_cores())
  executor.close()


def test_ray_that_is_not_installed_is_an_error_that_names_the_package():
  try:
    import ray  # noqa: F401
  except ImportError:
    with pytest.raises(UserError, match=r'engine: .*pip install'):
      executors.RayExecutor()
  else:
    pytest.skip('Ray is installed')


def test_a_ray_cluster_that_cannot_be_reached_is_refused_at_once():
  pytest.importorskip('ray')
  with pytest.raises(UserError, match='ray_address'):
    executors.RayExecutor('127.0.0.1:1')


@pytest.mark.parametrize('damage', [damages.pipe, damages.directory])
def test_a_log_that_is_no_file_is_named_and_nothing_waits(tmp_path, damage):
  path = tmp_path / 'run.log'
  path.touch()
  damage(path, path)
  config = config_lib.get_config()
  task = executors.Task('lamarckian', 1, config, tmp_path / 'run', path, None)
  why = executors.perform(task)
  assert why is not None
  assert why.startswith(f'log: got {path}, want a file to append to: ')
  assert not (tmp_path / 'run').exists()
