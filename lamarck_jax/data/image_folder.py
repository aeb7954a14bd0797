"""Reads a folder of images with a folder per class, such as DIR/train/<class>/.

Every image below the folder of its class is read, whatever its format. Files that are
no images are counted in a warning; images that cannot be read are refused together.
"""

import collections
from collections.abc import Iterator, Sequence
import dataclasses
import pathlib
from typing import NamedTuple
import unicodedata

from absl import logging
import numpy as np

from lamarck_jax.data import decoding, files
from lamarck_jax.data.files import printable
from lamarck_jax.data.source import Examples, check_shape, digest
from lamarck_jax.errors import DatasetError

_SPLITS = ('train', 'test')
_MAX_NAMED = 3  # Files and reasons named in a message; the others are counted.

# Class name -> its folders: names that differ in Unicode normalisation alone are equal.
_ClassFolders = dict[str, list[pathlib.Path]]


class _Image(NamedTuple):
  """A decoded image.

  Attributes:
    file: Its file.
    label: Its class.
    digest: Of its pixels as they were decoded.
    pixels: uint8 [height, width, channels], resized if asked.
  """

  file: pathlib.Path
  label: int
  digest: int
  pixels: np.ndarray


@dataclasses.dataclass
class _Unread:
  """What is not read.

  Attributes:
    ignored: Number of files that are no images, by reason.
    refused: Images that cannot be read, with the reason.
  """

  ignored: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )
  refused: list[tuple[pathlib.Path, str]] = dataclasses.field(default_factory=list)


def read(
  path: pathlib.Path, image_size: int | None
) -> tuple[dict[str, Examples], tuple[str, ...]]:
  """Returns the splits of a folder by name, and the class names, sorted.

  Args:
    path: The folder.
    image_size: Pixels per side to resize to; None keeps the size of the images.

  Raises:
    OSError: If a folder cannot be listed.
    DatasetError: If a class has no images, or images cannot be read or differ in size.
  """
  if not path.exists():
    raise DatasetError(
      f'{path}: got no such folder, want one with train/<class>/ in it, given by'
      ' --config.dataset.name=folder:DIR'
    )
  if not (path / 'train').is_dir():
    hint = f'; {path.parent} has one' if (path.parent / 'train').is_dir() else ''
    raise DatasetError(f'{path}: got no folder train in it, want train/<class>/{hint}')
  unread = _Unread()
  folders = {
    split: _class_folders(path / split, unread)
    for split in _SPLITS
    if (path / split).exists()
  }
  class_names = tuple(folders['train'])
  if unknown := sorted(folders.get('test', {}).keys() - {*class_names}):
    raise DatasetError(
      f'{path / "test"}: got class {unknown[0]!r}, want those in train:'
      f' {", ".join(class_names)}'
    )
  images = {}
  for split in folders:
    by_class = [folders[split].get(name, []) for name in class_names]
    images[split] = list(_decode(by_class, image_size, unread))
  _refuse_damaged(path, unread.refused)
  _warn_of_ignored(path, unread.ignored)
  for split in images:
    _check_classes(path / split, class_names, images[split])
  # One image with colour gives all of them three channels.
  channels = max(
    image.pixels.shape[-1] for members in images.values() for image in members
  )
  return {
    split: _examples(members, channels) for split, members in images.items()
  }, class_names


# ------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------


def _class_folders(path: pathlib.Path, unread: _Unread) -> _ClassFolders:
  """Returns the folders of the classes of a split, in order of the class names."""
  folders: _ClassFolders = {}
  for entry in path.iterdir():
    if files.is_litter(entry.name):
      continue
    if not entry.is_dir():
      unread.ignored[f'in {path.name}/ but in no class'] += 1
      continue
    name = unicodedata.normalize('NFC', entry.name)
    if not name.isprintable():
      raise DatasetError(
        f'{path}: got class {name!r}, want a folder name of printable characters'
      )
    folders.setdefault(name, []).append(entry)
  if not folders:
    raise DatasetError(f'{path}: got no folders, want one per class')
  return {name: sorted(folders[name]) for name in sorted(folders)}


def _decode(
  by_class: Sequence[Sequence[pathlib.Path]], image_size: int | None, unread: _Unread
) -> Iterator[_Image]:
  """Yields the images in the folders of each class."""
  suffixes = _image_suffixes()
  first: _Image | None = None
  for label, folders in enumerate(by_class):
    for file in (file for folder in folders for file in files.walk(folder)):
      try:
        pixels = decoding.decode(file)
      except Exception as error:  # Pillow's readers raise errors of many types.
        if (suffix := file.suffix.lower()) in suffixes:
          unread.refused.append((file, _reason(file, error)))
        else:
          unread.ignored[printable(suffix) or 'without suffix'] += 1
        continue
      key = digest(pixels)
      if image_size is not None:
        pixels = decoding.resize(pixels, image_size)
      image = _Image(file, label, key, pixels)
      first = first or image
      _check_size(image, first)
      yield image


def _image_suffixes() -> set[str]:
  """Returns the suffixes of the formats that are read, in lower case."""
  from PIL import Image

  extensions = Image.registered_extensions()
  return {suffix for suffix, name in extensions.items() if name in decoding.FORMATS}


def _reason(file: pathlib.Path, error: Exception) -> str:
  """Returns in a few words why an image cannot be read."""
  from PIL import UnidentifiedImageError

  if isinstance(error, UnidentifiedImageError):
    return 'no image' if file.stat().st_size else 'empty'
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return ' '.join(str(error).split()) or type(error).__name__


# ------------------------------------------------------------------------------
# Checks
# ------------------------------------------------------------------------------


def _check_size(image: _Image, first: _Image) -> None:
  """Raises DatasetError, at the first wrong image, before more are kept in memory."""
  height, width, channels = image.pixels.shape
  check_shape(printable(image.file), (height, width, channels))
  first_height, first_width, _ = first.pixels.shape
  if (height, width) != (first_height, first_width):
    raise DatasetError(
      f'{printable(image.file)}: got {width}x{height} pixels, want'
      f' {first_width}x{first_height} as {printable(first.file)}, or'
      ' dataset.image_size to resize to'
    )


def _refuse_damaged(
  path: pathlib.Path, refused: Sequence[tuple[pathlib.Path, str]]
) -> None:
  if not refused:
    return
  named = [
    f'{printable(file.relative_to(path))} ({printable(reason)})'
    for file, reason in refused[:_MAX_NAMED]
  ]
  if len(refused) > _MAX_NAMED:
    named.append(f'{len(refused) - _MAX_NAMED} more')
  raise DatasetError(
    f'{path}: got images that cannot be read ({len(refused)}): {", ".join(named)}, want'
    ' them repaired or removed'
  )


def _warn_of_ignored(path: pathlib.Path, ignored: collections.Counter[str]) -> None:
  others = sorted(
    printable(entry.name)
    for entry in path.iterdir()
    if entry.is_dir() and entry.name not in _SPLITS and not files.is_litter(entry.name)
  )
  reasons = [f'{count} {reason}' for reason, count in ignored.most_common()]
  parts = []
  if reasons:
    are = 'file is' if ignored.total() == 1 else 'files are'
    parts.append(f'{ignored.total()} {are} not read: {_shorten(reasons)}')
  if others:
    parts.append(f'folders beside train and test are not read: {_shorten(others)}')
  if parts:
    logging.warning('%s: %s', printable(path), '; '.join(parts))


def _shorten(items: Sequence[str]) -> str:
  more = [f'{len(items) - 2 * _MAX_NAMED} more'] if len(items) > 2 * _MAX_NAMED else []
  return ', '.join([*items[: 2 * _MAX_NAMED], *more])


def _check_classes(
  path: pathlib.Path, class_names: Sequence[str], images: Sequence[_Image]
) -> None:
  """Raises DatasetError unless every class has images."""
  present = {image.label for image in images}
  for label, name in enumerate(class_names):
    if label not in present:
      raise DatasetError(f'{path / name}: got no images, want at least 1')


def _examples(images: Sequence[_Image], channels: int) -> Examples:
  """Returns the images as arrays, the gray ones with as many channels as the others."""
  shape = (*images[0].pixels.shape[:2], channels)
  return Examples(
    np.stack([np.broadcast_to(image.pixels, shape) for image in images]),
    np.array([image.label for image in images], np.int32),
    np.array([image.digest for image in images], np.uint64),
  )
