"""Real CIFAR-10, all images at 8x8 pixels, with augmentation: at a scale for CPUs.

  python run_evolution.py --config=configs/cifar10_8px.py
  python run_evolution.py --config=configs/cifar10_8px.py:baseline_1
  python run_evolution.py --config=configs/cifar10_8px.py:baseline_2  # e = 16.

45,000 / 5,000 / 10,000 images and batches of 512 as in the paper, with layers small
enough for some ten minutes per search on one core. The budget is the paper's first
checkpoint, 128 epochs, with a checkpoint at a quarter of it. Completion has the paper's
ten epochs at 1e-3, and four instead of ten at each lower rate. Flips and shifts of up
to one pixel are against overfitting; the paper mentions none.
"""

from ml_collections import config_dict

from lamarck_jax import config as config_lib


def get_config(setting: str = 'lamarckian') -> config_dict.ConfigDict:
  """Returns the configuration of a setting."""
  config = config_lib.get_config(setting)
  config.dataset.name = 'cifar10'
  config.dataset.image_size = 8
  config.budget_epochs = 128
  config.search_space.filters = (8, 16, 32)
  config.checkpoint_epochs = (32, 128)
  config.completion.epochs = (10, 14, 18)
  config.augmentation.flip = True
  config.augmentation.shift = 1
  return config
