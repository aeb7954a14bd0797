"""Decodes and resizes images with Pillow: one rule for training and for prediction.

What is decoded is what one sees in a viewer:

  first frame     of an animation or of several pages
  EXIF            orientation is applied
  16 bits         become 8 by division by 256, as Pillow does where there is colour
  floats          from 0 to 1 become 0 to 255
  transparency    is composited on white
  CMYK, YCbCr...  become RGB; colour profiles are ignored
"""

import os
from typing import TYPE_CHECKING, BinaryIO
import warnings

import numpy as np

from lamarck_jax.data import files

if TYPE_CHECKING:
  from PIL import Image

# Increase it when the same file is decoded to other pixels: caches depend on it.
VERSION = 3

# Formats that Pillow decodes itself and tells from other files by their signature; the
# weakest, TGA's, comes last. Others need programs, such as EPS, or libraries.
FORMATS = (
  *('PNG', 'JPEG', 'GIF', 'BMP', 'WEBP', 'TIFF', 'AVIF', 'JPEG2000', 'PPM', 'DDS'),
  *('DIB', 'ICNS', 'ICO', 'PCX', 'PSD', 'QOI', 'SGI', 'SUN', 'XBM', 'XPM', 'TGA'),
)

_GROUND = 'white'
_ORIENTATION = 0x0112  # EXIF's tag.
# What makes an image of an orientation from 2 to 8 upright.
_UPRIGHT = (
  *('FLIP_LEFT_RIGHT', 'ROTATE_180', 'FLIP_TOP_BOTTOM', 'TRANSPOSE'),
  *('ROTATE_270', 'TRANSVERSE', 'ROTATE_90'),
)
_GRAY_MODES = ('1', 'L')


def decode(
  file: str | os.PathLike[str] | BinaryIO, channels: int | None = None
) -> np.ndarray:
  """Returns an encoded image as uint8 [height, width, channels].

  Args:
    file: Path or open file of the image.
    channels: 1 for gray, 3 for colour; None: 1 if all of its pixels are gray.

  Raises:
    OSError: If the file cannot be opened or is no regular file; UnidentifiedImageError
      if it is no image.
    Exception: Pillow's readers raise errors of many types on a damaged file.
  """
  from PIL import Image

  if isinstance(file, str | os.PathLike):
    with files.open_regular(file) as opened:
      return decode(opened, channels)
  Image.init()  # Makes all formats known; those that Pillow was built without are not.
  formats = [name for name in FORMATS if name in Image.OPEN]
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # About metadata.
    warnings.simplefilter('error', Image.DecompressionBombWarning)
    try:
      with Image.open(file, formats=formats) as image:
        return to_pixels(image, channels)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
      raise ValueError(f'more than {Image.MAX_IMAGE_PIXELS} pixels') from None


def to_pixels(image: 'Image.Image', channels: int | None = None) -> np.ndarray:
  """Returns what one sees of an image as uint8 [height, width, channels].

  Args:
    image: Image of any mode, as Pillow opens it.
    channels: As in `decode`.

  Raises:
    ValueError: If the values of its pixels are outside the range of its mode.
  """
  from PIL import Image

  # Known only until it is loaded.
  has_16_bits = any('16' in str(tile.args) for tile in getattr(image, 'tile', ()))
  image = _upright(image)
  declared = image.info.get('transparency')
  if image.mode == 'RGB' and has_16_bits and isinstance(declared, tuple):
    # Pillow keeps the upper 8 bits of the pixels, and all of the declared colour.
    image.info['transparency'] = tuple(value // 256 for value in declared)
  if image.mode == 'F' or image.mode.startswith('I'):
    image = Image.fromarray(_to_8_bits(image))
  if image.has_transparency_data:
    ground = Image.new('RGBA', image.size, _GROUND)
    image = Image.alpha_composite(ground, image.convert('RGBA'))
  if channels is None:
    channels = 1 if _is_gray(image) else 3
  pixels = np.asarray(image.convert('L' if channels == 1 else 'RGB'))
  return pixels.reshape(*pixels.shape[:2], channels)


def _upright(image: 'Image.Image') -> 'Image.Image':
  """Returns the image as its EXIF orientation says."""
  from PIL import Image

  image.load()  # Pillow applies the orientation of a TIFF itself, in here.
  try:
    orientation = image.getexif().get(_ORIENTATION, 1)
  except Exception:  # Damaged metadata say nothing about the pixels.
    orientation = 1
  if orientation not in range(2, 9):
    return image
  # `ImageOps.exif_transpose` fails where it cannot write the rest of the metadata.
  return image.transpose(Image.Transpose[_UPRIGHT[orientation - 2]])


def _to_8_bits(image: 'Image.Image') -> np.ndarray:
  """Returns the values of an image of one channel with more than 8 bits, uint8."""
  values = np.asarray(image)
  least, most = values.min(), values.max()
  limit = 1 if image.mode == 'F' else 2**16 - 1
  if not 0 <= least <= most <= limit:  # Comparisons with NaN are false.
    raise ValueError(f'values from {least:g} to {most:g}, which are not 0 to {limit}')
  if image.mode == 'F':
    return np.rint(values * 255).astype(np.uint8)
  pixels = (values // 256).astype(np.uint8)
  if (transparent := image.info.get('transparency')) is not None:  # A value of gray.
    pixels[values == transparent] = 255
  return pixels


def _is_gray(image: 'Image.Image') -> bool:
  if image.mode in _GRAY_MODES:
    return True
  pixels = np.asarray(image.convert('RGB'))
  return bool((pixels == pixels[..., :1]).all())


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
