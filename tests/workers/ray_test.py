"""Searches with workers on a Ray cluster, which are killed with and without a node."""

import contextlib
import os
import pathlib
import signal

import pytest

from lamarck_jax import search
from lamarck_jax.errors import UserError
from lamarck_jax.workers.pool import Workers
from lamarck_jax.workers.ray_actors import RayEngine
from tests.conftest import ROOT
from tests.search_test import assert_same_run
from tests.workers.conftest import make_population_config

pytestmark = pytest.mark.slow


@pytest.fixture
def run_on_ray(monkeypatch, shared_compilation_cache):
  """Runs a population with two workers; calls a function after some events."""
  pytest.importorskip('ray')
  monkeypatch.setenv('PYTHONPATH', str(ROOT))  # For the workers.

  def run(workdir, disturb=lambda: None, address=None):
    def on_event(event):
      if event['evaluation'] == 2:
        disturb()

    engine = RayEngine(2, str(shared_compilation_cache), address=address)
    search.run(make_population_config(), workdir, on_event, Workers(engine))

  return run


@pytest.fixture
def cluster():
  """A cluster whose head has no core."""
  cluster_utils = pytest.importorskip('ray.cluster_utils')
  cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={'num_cpus': 0})
  yield cluster
  cluster.shutdown()


def kill_a_worker() -> None:
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
      if path.read_bytes().startswith(b'ray::Evaluator'):
        os.kill(int(path.parent.name), signal.SIGKILL)
        return
  raise AssertionError('there is no worker')


def test_a_population_on_ray_whose_worker_is_killed_is_the_undisturbed_one(
  run_on_ray, tmp_path
):
  run_on_ray(tmp_path / 'undisturbed')
  run_on_ray(tmp_path / 'disturbed', kill_a_worker)
  assert_same_run(tmp_path / 'undisturbed', tmp_path / 'disturbed')


def test_a_population_on_ray_that_loses_a_node_is_the_undisturbed_one(
  run_on_ray, cluster, tmp_path
):
  lost, _ = [cluster.add_node(num_cpus=1) for _ in range(2)]
  run_on_ray(tmp_path / 'undisturbed', address=cluster.address)
  run_on_ray(
    tmp_path / 'disturbed',
    lambda: cluster.remove_node(lost, allow_graceful=False),
    cluster.address,
  )
  assert_same_run(tmp_path / 'undisturbed', tmp_path / 'disturbed')


def test_a_cluster_that_cannot_be_reached_is_refused_at_once():
  pytest.importorskip('ray')
  with pytest.raises(UserError, match='ray_address'):
    RayEngine(1, address='127.0.0.1:1')
