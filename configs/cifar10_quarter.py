"""Real CIFAR-10 near the paper's scale: a quarter of its budget, filters up to 128.

  python run_evolution.py --config=configs/cifar10_quarter.py
  python run_evolution.py --config=configs/cifar10_quarter.py:baseline_1
  python run_evolution.py --config=configs/cifar10_quarter.py:baseline_2  # e = 16.

45,000 / 5,000 / 10,000 images of 32x32 pixels, batches, completion and rates are the
paper's. The budget is its first checkpoint, 128 epochs, with a checkpoint at a quarter
of it; without 192 and 256 filters a search is some four times cheaper. Meant for a GPU.
"""

from ml_collections import config_dict

from lamarck_jax import config as config_lib


def get_config(setting: str = 'lamarckian') -> config_dict.ConfigDict:
  """Returns the configuration of a setting."""
  config = config_lib.get_config(setting)
  config.dataset.name = 'cifar10'
  config.budget_epochs = 128
  config.search_space.filters = (16, 32, 64, 96, 128)
  config.checkpoint_epochs = (32, 128)
  return config
