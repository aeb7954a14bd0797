"""Decoding and resizing of images."""

import os
from typing import BinaryIO

import numpy as np

# What data sets of images hold; Pillow's other readers are not for data.
FORMATS = ('PNG', 'JPEG', 'GIF', 'BMP')


def decode(file: str | os.PathLike[str] | BinaryIO, channels: int) -> np.ndarray:
  """Returns an encoded image as uint8 [height, width, channels].

  Args:
    file: The image's file.
    channels: 1 for gray, 3 for colour.

  Raises:
    Exception: Whatever Pillow's readers raise on what is no sound image.
  """
  from PIL import Image

  with Image.open(file, formats=FORMATS) as image:
    pixels = np.asarray(image.convert('L' if channels == 1 else 'RGB'))
  return pixels.reshape(*pixels.shape[:2], channels)


def resize(image: np.ndarray, image_size: int) -> np.ndarray:
  """Returns an image with that many pixels per side, by area averaging.

  Args:
    image: uint8 [height, width, channels], of 1 or 3 channels.
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
