"""Decodes and resizes images with Pillow."""

import os
from typing import BinaryIO

import numpy as np

# Pillow has many more readers; fewer of them meet files of unknown origin this way.
FORMATS = ('PNG', 'JPEG', 'GIF', 'BMP')


def decode(file: str | os.PathLike[str] | BinaryIO, channels: int) -> np.ndarray:
  """Returns an encoded image as uint8 [height, width, channels].

  Args:
    file: Path or open file of the image.
    channels: 1 for gray, 3 for colour.

  Raises:
    Exception: Pillow's readers raise errors of many types on a damaged file.
  """
  from PIL import Image

  with Image.open(file, formats=FORMATS) as image:
    pixels = np.asarray(image.convert('L' if channels == 1 else 'RGB'))
  return pixels.reshape(*pixels.shape[:2], channels)


def resize(image: np.ndarray, image_size: int) -> np.ndarray:
  """Resizes an image to a square by area averaging.

  Args:
    image: uint8 [height, width, channels], with 1 or 3 channels.
    image_size: Pixels per side.

  Returns:
    uint8 [image_size, image_size, channels].
  """
  from PIL import Image

  # Pillow wants [height, width] for one channel.
  pixels = image[..., 0] if image.shape[-1] == 1 else image
  resized = Image.fromarray(pixels).resize(
    (image_size, image_size), Image.Resampling.BOX
  )
  return np.asarray(resized).reshape(image_size, image_size, image.shape[-1])
