"""Decoded pixels are what one sees in a viewer, for every kind of file."""

import io
import os
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from lamarck_jax.data import decoding

_SHAPE = (8, 12)


def _gray(seed=0):
  return np.random.default_rng(seed).integers(0, 256, _SHAPE).astype(np.uint8)


def _colour(seed=0):
  return np.random.default_rng(seed).integers(0, 256, (*_SHAPE, 3)).astype(np.uint8)


def _encoded(image, image_format='PNG', **options):
  buffer = io.BytesIO()
  image.save(buffer, image_format, **options)
  buffer.seek(0)
  return buffer


def _decoded(image, image_format='PNG', channels=None, **options):
  return decoding.decode(_encoded(image, image_format, **options), channels)


@pytest.mark.parametrize('scale', [256, 257])
@pytest.mark.parametrize('image_format', ['PNG', 'TIFF', 'PPM'])
def test_16_bits_of_gray_are_scaled_to_8(image_format, scale):
  image = Image.fromarray(_gray().astype(np.uint16) * scale)
  pixels = _decoded(image, image_format)
  np.testing.assert_array_equal(pixels[..., 0], _gray())


@pytest.mark.parametrize('mode', ['I', 'I;16', 'I;16L', 'I;16B'])
def test_every_mode_of_16_bits_is_scaled_alike(mode):
  dtype = {'I': '<i4', 'I;16B': '>u2'}.get(mode, '<u2')
  values = (_gray().astype(np.uint16) * 257).astype(dtype)
  image = Image.frombytes(mode, _SHAPE[::-1], values.tobytes())
  np.testing.assert_array_equal(decoding.to_pixels(image)[..., 0], _gray())


def test_16_bits_of_gray_and_of_colour_give_the_same():
  values = np.random.default_rng(0).integers(0, 2**16, _SHAPE).astype('>u2')
  lines = np.repeat(values[..., np.newaxis], 3, axis=-1)
  rows = b''.join(b'\0' + line.tobytes() for line in lines)

  def chunk(name, data):
    body = name + data
    return struct.pack('>I', len(data)) + body + struct.pack('>I', zlib.crc32(body))

  header = struct.pack('>IIBBBBB', _SHAPE[1], _SHAPE[0], 16, 2, 0, 0, 0)
  parts = (b'IHDR', header), (b'IDAT', zlib.compress(rows)), (b'IEND', b'')
  colour = b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts)
  gray = _decoded(Image.fromarray(values.astype(np.uint16)))
  assert gray.shape == (*_SHAPE, 1)
  np.testing.assert_array_equal(gray, decoding.decode(io.BytesIO(colour)))


def test_floats_are_from_0_to_1():
  values = _gray().astype(np.float32) / 255
  np.testing.assert_array_equal(
    _decoded(Image.fromarray(values), 'TIFF')[..., 0], _gray()
  )


@pytest.mark.parametrize(
  'values',
  [
    np.full(_SHAPE, 70_000, np.int32),
    np.full(_SHAPE, -1, np.int32),
    np.full(_SHAPE, 255, np.float32),
    np.full(_SHAPE, np.nan, np.float32),
  ],
)
def test_values_beyond_the_range_are_refused_and_never_clipped(values):
  with pytest.raises(ValueError, match='which are not 0 to'):
    _decoded(Image.fromarray(values), 'TIFF')


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P', 'RGB', 'L', 'I;16'])
def test_transparency_shows_white_and_gray_stays_gray(mode):
  half = np.zeros(_SHAPE, np.uint8)  # A black shape on a transparent ground.
  half[:, :6] = 255
  if mode in ('RGBA', 'LA'):
    image = Image.new(mode, _SHAPE[::-1])
    image.putalpha(Image.fromarray(half))
    options = {}
  else:
    # One colour is declared transparent.
    image = Image.fromarray(np.where(half, 0, 7).astype(np.uint8)).convert(mode)
    options = {'transparency': (7, 7, 7) if mode == 'RGB' else 7}
    if mode == 'I;16':
      image = Image.fromarray(np.where(half, 0, 7).astype(np.uint16))
  pixels = _decoded(image, **options)
  np.testing.assert_array_equal(pixels[..., 0], np.where(half, 0, 255))
  assert pixels.shape[-1] == 1


def test_a_declared_colour_of_16_bits_shows_white():
  def chunk(name, content):
    checksum = struct.pack('>I', zlib.crc32(name + content))
    return struct.pack('>I', len(content)) + name + content + checksum

  declared, other = (0x1234, 0x5678, 0x9ABC), (0x8000, 0x4000, 0x2000)
  row = struct.pack('>B6H', 0, *declared, *other)
  header = struct.pack('>IIBBBBB', 2, 1, 16, 2, 0, 0, 0)
  content = (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'tRNS', struct.pack('>3H', *declared))
    + chunk(b'IDAT', zlib.compress(row))
    + chunk(b'IEND', b'')
  )
  pixels = decoding.decode(io.BytesIO(content))
  np.testing.assert_array_equal(pixels, [[[255, 255, 255], [128, 64, 32]]])


def test_half_transparent_colour_is_mixed_with_white():
  image = Image.new('RGBA', _SHAPE[::-1], (200, 0, 100, 128))
  expected = [255 + (value - 255) * 128 / 255 for value in (200, 0, 100)]
  assert np.abs(_decoded(image) - expected).max() < 1


@pytest.mark.parametrize('image_format', ['PNG', 'JPEG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_the_orientation_of_exif_is_applied(image_format, orientation):
  upright = np.zeros((16, 32), np.uint8)
  upright[:8] = 255
  upright[:8, :8] = 128
  # How the sensor saw it, by orientation.
  stored = {
    1: upright,
    2: upright[:, ::-1],
    3: upright[::-1, ::-1],
    4: upright[::-1],
    5: upright.T,
    6: upright.T[::-1],
    7: upright.T[::-1, ::-1],
    8: upright.T[:, ::-1],
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  image = Image.fromarray(np.ascontiguousarray(stored))
  pixels = _decoded(image, image_format, exif=exif)
  assert np.abs(pixels[..., 0].astype(int) - upright).max() < 8


def test_damaged_exif_says_nothing():
  image = Image.fromarray(_gray())
  expected = _decoded(image)
  for exif in (b'Exif\0\0', b'Exif\0\0MM\0*\xff\xff\xff\xff', b'Exif\0\0' + bytes(99)):
    np.testing.assert_array_equal(_decoded(image, exif=exif), expected)


def test_cmyk_becomes_what_pillow_shows():
  image = Image.fromarray(_colour()).convert('CMYK')
  expected = np.asarray(image.convert('RGB'))
  np.testing.assert_array_equal(_decoded(image, 'TIFF'), expected)


def test_channels_are_those_of_what_one_sees():
  gray, colour = Image.fromarray(_gray()), Image.fromarray(_colour())
  for image in (gray.convert('RGB'), gray.convert('P'), gray.convert('RGBA')):
    np.testing.assert_array_equal(_decoded(image)[..., 0], _gray())
    assert _decoded(image).shape == (*_SHAPE, 1)
    assert _decoded(image, channels=3).shape == (*_SHAPE, 3)
  assert _decoded(colour).shape == (*_SHAPE, 3)
  np.testing.assert_array_equal(
    _decoded(colour, channels=1)[..., 0], colour.convert('L')
  )


@pytest.mark.parametrize('image_format', ['GIF', 'TIFF', 'PNG', 'WEBP'])
def test_of_several_frames_the_first_is_read(image_format):
  first, second = Image.new('L', (9, 9), 40), Image.new('L', (9, 9), 200)
  options = {'lossless': True} if image_format == 'WEBP' else {}
  buffer = _encoded(
    first, image_format, save_all=True, append_images=[second], **options
  )
  np.testing.assert_array_equal(decoding.decode(buffer), np.full((9, 9, 1), 40))


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 50)
  for side in (8, 16):  # Pillow warns of the one and refuses the other.
    with pytest.raises(ValueError, match='more than 50 pixels'):
      _decoded(Image.new('L', (side, side)))


@pytest.mark.parametrize(
  'image_format', [name for name in decoding.FORMATS if name not in ('XPM', 'PSD')]
)
def test_every_format_is_read(image_format):
  if image_format == 'SUN':  # Pillow does not write it: a header, and black pixels.
    header = struct.pack('>8I', 0x59A66A95, 32, 32, 24, 32 * 32 * 3, 1, 0, 0)
    pixels = decoding.decode(io.BytesIO(header + bytes(32 * 32 * 3)))
  else:
    image = Image.new('1' if image_format == 'XBM' else 'RGB', (32, 32))
    pixels = _decoded(image, image_format)
  assert pixels.shape[-1] == 1 and len(np.unique(pixels)) == 1


def test_a_file_that_is_no_regular_file_is_not_opened(tmp_path):
  os.mkfifo(tmp_path / 'pipe.png')
  for path in (tmp_path / 'pipe.png', tmp_path, '/dev/zero'):
    with pytest.raises(OSError, match=r'egular file|directory'):
      decoding.decode(path)
