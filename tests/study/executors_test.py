import pytest

from lamarck_jax.errors import UserError
from lamarck_jax.study import executors


def test_every_worker_has_cores_of_its_own():
  cores = [0, 1, 2, 3, 4, 5]
  workers = executors.worker_resources(3, cores, gpus=[])
  assert workers == [([0, 1], {}), ([2, 3], {}), ([4, 5], {})]


def test_workers_share_cores_only_if_there_are_too_few():
  workers = executors.worker_resources(8, [0, 1, 2, 3, 4, 5], gpus=[])
  assert [len(cores) for cores, _ in workers] == [1] * 8


def test_workers_take_gpus_in_turn_and_share_their_memory():
  workers = executors.worker_resources(4, [0, 1, 2, 3], gpus=['3', '5'])
  gpus = [environment['CUDA_VISIBLE_DEVICES'] for _, environment in workers]
  assert gpus == ['3', '5', '3', '5']
  fractions = {env['XLA_PYTHON_CLIENT_MEM_FRACTION'] for _, env in workers}
  assert fractions == {'0.375'}


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
