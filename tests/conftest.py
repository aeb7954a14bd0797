"""Shared by the tests: a tiny data set, searches of a few seconds, finished runs."""

from collections.abc import Iterator
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from ml_collections import config_dict
import numpy as np
import pytest

from lamarck_jax import config, search
from lamarck_jax.data import datasets
from lamarck_jax.runtime import compilation_cache
from lamarck_jax.study import results
from tests.programs import Programs

ROOT = pathlib.Path(__file__).parent.parent

# A search of six evaluations, as flags of run_evolution.py.
TINY_FLAGS = (
  '--config.dataset.num_train=96',
  '--config.dataset.num_validation=50',
  '--config.budget_epochs=6',
  '--config.epochs_per_evaluation=1',
  '--config.search_space.filters=(4,8)',
  '--config.search_space.kernel_sizes=(1,3)',
  '--config.checkpoint_epochs=(3,)',
  '--config.completion.epochs=(1,)',
  '--config.completion.learning_rates=(1e-3,)',
)


@pytest.fixture(scope='session', autouse=True)
def shared_compilation_cache(tmp_path_factory):
  """Directory of compiled programs that only the processes of this test run share."""
  base = tmp_path_factory.getbasetemp()
  directory = base.parent if base.name.startswith('popen-') else base
  compilation_cache.enable(str(directory / 'xla'))
  return directory / 'xla'


@pytest.fixture(scope='session')
def tiny_dataset() -> datasets.Dataset:
  """Noisy 8x8 images of three classes that a small network can tell apart."""
  rng = np.random.default_rng(0)
  prototypes = rng.integers(0, 256, (3, 8, 8, 1))

  def split(num_examples: int) -> datasets.Split:
    labels = rng.integers(3, size=num_examples).astype(np.int32)
    noise = rng.normal(scale=40, size=(num_examples, 8, 8, 1))
    images = np.clip(prototypes[labels] + noise, 0, 255).astype(np.uint8)
    return datasets.Split(images, labels)

  return datasets.Dataset('tiny', split(72), split(21), split(19), ('a', 'b', 'c'))


def make_tiny_config() -> config_dict.ConfigDict:
  """Returns a search of eight evaluations, each one epoch on 96 of the digits."""
  result = config.get_config()
  with result.unlocked():
    result.seed = 1
  result.dataset.name = 'digits'
  result.dataset.num_train = 96
  result.dataset.num_validation = 50
  result.budget_epochs = 8
  result.epochs_per_evaluation = 1
  result.batch_size = 32
  result.niching.rate = 0.5
  result.niching.iterations = 2
  result.search_space.filters = (4, 8)
  result.search_space.kernel_sizes = (1, 3)
  result.checkpoint_epochs = (3, 8)
  result.completion.epochs = (1, 2)
  result.completion.learning_rates = (1e-3, 1e-4)
  return result


@pytest.fixture
def tiny_config() -> config_dict.ConfigDict:
  """The search of `make_tiny_config`."""
  return make_tiny_config()


# ------------------------------------------------------------------------------
# Searches
# ------------------------------------------------------------------------------


class StoppedError(Exception):
  """Stops a search from `on_event`."""


def run_until(
  config: config_dict.ConfigDict, workdir: pathlib.Path, evaluation: int
) -> None:
  """Runs a search that is stopped once an evaluation has been recorded."""

  def stop(event: dict[str, Any]) -> None:
    if event['evaluation'] == evaluation:
      raise StoppedError

  with pytest.raises(StoppedError):
    search.run(config, workdir, stop)


def read_events(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the complete events of a search, if any, without their durations."""
  path = workdir / 'events.jsonl'
  lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
  return [
    {**json.loads(line), 'seconds': None} for line in lines if line.endswith(b'\n')
  ]


@pytest.fixture(scope='session')
def undisturbed(tmp_path_factory):
  """Runs a search without interruption, once for each configuration.

  Takes the configuration; returns the run directory, which must not be changed, and
  the result.
  """
  cache = {}

  def run(config):
    key = config.to_json_best_effort()
    if key not in cache:
      workdir = tmp_path_factory.mktemp('undisturbed')
      cache[key] = workdir, search.run(config, workdir)
    return cache[key]

  return run


def start_search(
  cache: pathlib.Path, workdir: pathlib.Path, num_events: int, *flags: str
) -> subprocess.Popen:
  """Starts run_evolution.py; returns its process once it has recorded some events."""
  command = [sys.executable, str(ROOT / 'run_evolution.py'), *TINY_FLAGS, *flags]
  process = subprocess.Popen(
    [*command, f'--xla_cache_dir={cache}', f'--workdir={workdir}'],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  deadline = time.monotonic() + 200
  while len(read_events(workdir)) < num_events:
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.02)
  return process


def run_program(program: str, *arguments: str, **environment: str) -> str:
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


@pytest.fixture(scope='session')
def programs() -> Iterator[Programs]:
  """A process that runs programs, for tests that run many."""
  process = Programs()
  yield process
  process.close()


# ------------------------------------------------------------------------------
# Finished runs of a study
# ------------------------------------------------------------------------------


def _make_run(seed, fitness, accuracies):
  """A finished run whose evaluations had these fitnesses."""
  best = [max(fitness[: i + 1]) for i in range(len(fitness))]
  return results.Run(
    seed=seed,
    epochs=tuple(4 * (i + 1) for i in range(len(fitness))),
    fitness=tuple(fitness),
    best_fitness=tuple(best),
    best_num_blocks=tuple(range(1, len(fitness) + 1)),
    flops=1000 * (seed + 1),
    seconds=1.5,
    best=((16, 3, 1), (32, 5, 2)),
    test_accuracy=accuracies,
  )


@pytest.fixture(scope='session')
def make_run():
  """Makes a finished run of 4 epochs an evaluation, by its fitnesses."""
  return _make_run


@pytest.fixture
def study() -> results.Study:
  """Two settings of three and two runs; one run of the second is missing."""
  return results.Study(
    'cifar10',
    12,
    (4, 12),
    (
      results.Setting(
        'lamarckian',
        'lamarckian',
        4,
        tuple(
          _make_run(seed, (0.3, 0.2, 0.5 + seed / 10), {4: 0.4, 12: 0.6 + seed / 100})
          for seed in range(3)
        ),
        {},
      ),
      results.Setting(
        'baseline_1',
        'none',
        4,
        tuple(
          _make_run(seed, (0.3, 0.35, 0.1), {4: 0.3, 12: 0.5 + seed / 100})
          for seed in range(2)
        ),
        {2: 'not finished'},
      ),
    ),
  )
