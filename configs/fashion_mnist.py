"""The paper's search on Fashion-MNIST: 512 epochs, e = 4, inheritance.

  python run_evolution.py --config=configs/fashion_mnist.py
  python run_evolution.py --config=configs/fashion_mnist.py:baseline_1  # fresh weights
  python run_evolution.py --config=configs/fashion_mnist.py:baseline_2  # and e = 8

55,000 / 5,000 / 10,000 28x28 grey images for training, validation and test.
Meant for a GPU. The data set is downloaded at the first start.
"""

from ml_collections import config_dict

from lamarck_jax import config as config_lib


def get_config(setting: str = 'lamarckian') -> config_dict.ConfigDict:
  """Returns the configuration of a setting."""
  config = config_lib.get_config(setting, baseline_2_epochs=8)
  config.dataset.name = 'fashion_mnist'
  return config
