"""Real Fashion-MNIST at a scale for CPUs: 4,000 images of 14x14, smaller layers.

  python run_evolution.py --config=configs/fashion_mnist_small.py
  python run_evolution.py --config=configs/fashion_mnist_small.py:baseline_2  # e = 8.

About two minutes on one core, with completion.
"""

from ml_collections import config_dict

from lamarck_jax import config as config_lib


def get_config(setting: str = 'lamarckian') -> config_dict.ConfigDict:
  """Returns the configuration of a setting."""
  config = config_lib.get_config(setting, baseline_2_epochs=8)
  config.dataset.name = 'fashion_mnist'
  config.dataset.num_train = 4000
  config.dataset.num_validation = 1000
  config.dataset.image_size = 14
  config.budget_epochs = 64
  config.batch_size = 64
  config.search_space.filters = (8, 16, 32)
  config.checkpoint_epochs = (16, 64)
  return config
