"""What the tests of workers share: a population with crossovers, and its flags."""

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
