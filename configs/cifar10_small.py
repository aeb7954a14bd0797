"""Real CIFAR-10 at a scale for CPUs: 5,000 images of 16x16, smaller layers.

  python run_evolution.py --config=configs/cifar10_small.py
  python run_evolution.py --config=configs/cifar10_small.py:baseline_1
  python run_evolution.py --config=configs/cifar10_small.py:baseline_2  # e = 16.

A search of minutes on one core that still shows the effect of inheritance. Completion
has the paper's ten epochs at 1e-3, and three instead of ten at each lower rate.
"""

from ml_collections import config_dict

from lamarck_jax import config as config_lib


def get_config(setting: str = 'lamarckian') -> config_dict.ConfigDict:
  """Returns the configuration of a setting."""
  config = config_lib.get_config(setting)
  config.dataset.name = 'cifar10'
  config.dataset.num_train = 5000
  config.dataset.num_validation = 1000
  config.dataset.image_size = 16
  config.budget_epochs = 96
  config.batch_size = 64
  config.search_space.filters = (8, 16, 32, 64)
  config.checkpoint_epochs = (24, 96)
  config.completion.epochs = (10, 13, 16)
  return config
