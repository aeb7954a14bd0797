"""What the tests of workers share: a population with crossovers, and its flags."""

import pathlib

from ml_collections import config_dict

from tests.conftest import make_tiny_config

# With this seed two of the first seven children have two parents, whatever the
# fitnesses: all parents are equally likely until the population is full.
_FIELDS = {
  'seed': 22,
  'algorithm': 'population',
  'inheritance': 'net2net',
  'budget_epochs': 7,
  'population.size': 6,
  'population.children': 3,
  'population.crossover_rate': 1.0,
  'population.tournament': 1,
}

# For `start_search`, which adds those of a tiny search.
FLAGS = [f'--config.{field}={value}' for field, value in _FIELDS.items()]


def make_population_config() -> config_dict.ConfigDict:
  """Returns a search of seven evaluations, up to three of them side by side."""
  config = make_tiny_config()
  with config.unlocked():
    config.update_from_flattened_dict(_FIELDS)
  config.completion.enabled = False
  config.checkpoint_epochs = (6,)
  return config


def children(process: int) -> list[int]:
  """The processes that a search has started for its workers, theirs last."""
  found = []
  for child in _children(process):
    if b'forkserver' in pathlib.Path(f'/proc/{child}/cmdline').read_bytes():
      found += [child, *_children(child)]
  return found


def _children(process: int) -> list[int]:
  listing = pathlib.Path(f'/proc/{process}/task/{process}/children').read_text()
  return list(map(int, listing.split()))
