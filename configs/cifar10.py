"""The paper's search on CIFAR-10: 512 epochs, e = 4, inheritance.

  python run_evolution.py --config=configs/cifar10.py
  python run_evolution.py --config=configs/cifar10.py:baseline_1  # fresh weights
  python run_evolution.py --config=configs/cifar10.py:baseline_2  # and e = 16

45,000 / 5,000 / 10,000 32x32 colour images for training, validation and test.
Meant for a GPU. The data set is downloaded at the first start.
"""

from ml_collections import config_dict

from lamarck_jax import config as config_lib


def get_config(setting: str = 'lamarckian') -> config_dict.ConfigDict:
  """Returns the configuration of a setting."""
  config = config_lib.get_config(setting)
  config.dataset.name = 'cifar10'
  return config
