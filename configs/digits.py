"""Scikit-learn's 8x8 digits: the quick default, no download.

  python run_evolution.py

Takes about a minute on 2 CPU cores and reaches a test accuracy of about 0.99.
The search space is the paper's with smaller layers; the rest is scaled to a data set of
1,100 training images: completion has the paper's ten epochs at 1e-3, and five instead
of ten at each lower rate.
"""

from ml_collections import config_dict

from lamarck_jax import config as config_lib


def get_config(setting: str = 'lamarckian') -> config_dict.ConfigDict:
  """Returns the configuration of a setting."""
  config = config_lib.get_config(setting)
  config.dataset.name = 'digits'
  config.budget_epochs = 64
  config.batch_size = 32
  config.search_space.filters = (8, 16, 32)
  config.checkpoint_epochs = (32, 64)
  config.completion.epochs = (10, 15, 20)
  return config
