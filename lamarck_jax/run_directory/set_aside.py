"""Names of their own for what would otherwise be overwritten or removed."""

import itertools
import os
import pathlib

from lamarck_jax.run_directory import durable


def file(path: pathlib.Path) -> pathlib.Path:
  """Renames a file to `NAME.old-1`, or the next number that is free.

  Returns:
    Its new path.

  Raises:
    StorageError: If it cannot be renamed.
  """
  with durable.storing(path):
    for number in itertools.count(1):
      target = path.with_name(f'{path.name}.old-{number}')
      if not os.path.lexists(target):
        break
    os.rename(path, target)
    durable.sync_directory(path.parent)
  return target


def new_folder(parent: pathlib.Path, name: str) -> pathlib.Path:
  """Makes a folder `name-1`, or the next number that is free.

  Raises:
    StorageError: If it cannot be made.
  """
  with durable.storing(parent):
    for number in itertools.count(1):
      folder = parent / f'{name}-{number}'
      if not os.path.lexists(folder):
        break
    folder.mkdir()
  return folder


def move(path: pathlib.Path, folder: pathlib.Path) -> None:
  """Moves a file into a folder of the same file system; makes the folder.

  Raises:
    StorageError: If it cannot be moved.
  """
  with durable.storing(path):
    folder.mkdir(exist_ok=True)
    os.rename(path, folder / path.name)
    durable.sync_directory(folder)
    durable.sync_directory(path.parent)
