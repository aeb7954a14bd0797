"""Your own images, scaled for a search of minutes on two cores.

  python run_evolution.py --config=configs/own_images.py
  python run_evolution.py --config=configs/own_images.py --config.dataset.name=npz:FILE

The folder `images`, or that of --config.dataset.name=folder:DIR, has
train/<class>/*.png, and test/<class>/*.png where there are test images. Images are
resized to 16x16 pixels; --config.dataset.image_size=32 takes about four times as long.
The time grows in proportion to the number of images. Larger budgets find better
networks.
"""

from ml_collections import config_dict

from lamarck_jax import config as config_lib


def get_config(setting: str = 'lamarckian') -> config_dict.ConfigDict:
  """Returns the configuration of a setting."""
  config = config_lib.get_config(setting)
  config.dataset.name = 'folder:images'
  config.dataset.image_size = 16
  config.budget_epochs = 64
  config.batch_size = 32
  config.search_space.filters = (8, 16, 32, 64)
  config.checkpoint_epochs = (64,)
  config.completion.epochs = (10, 13, 16)
  return config
