"""Names of their own for what would otherwise be overwritten or removed."""

import itertools

from lamarck_jax.run_directory import durable


def file(folder: durable.Folder, name: str) -> str:
  """Renames a file to `NAME.old-1`, or the next number that is free.

  Returns:
    Its new name.

  Raises:
    StorageError: If it cannot be renamed.
  """
  target = _free_name(folder, f'{name}.old')
  folder.move(name, folder, target)
  return target


def folder(parent: durable.Folder, name: str) -> None:
  """Renames a folder that has the name of a file, which could not be written.

  Raises:
    StorageError: If it cannot be renamed.
  """
  if (parent.path / name).is_dir() and not (parent.path / name).is_symlink():
    file(parent, name)


def new_folder(parent: durable.Folder, name: str) -> durable.Folder:
  """Makes a folder `name-1`, or the next number that is free.

  Raises:
    StorageError: If it cannot be made.
  """
  parent.check()
  return parent.child(_free_name(parent, name))


def _free_name(folder: durable.Folder, stem: str) -> str:
  taken = set(folder.names())
  return next(
    name for number in itertools.count(1) if (name := f'{stem}-{number}') not in taken
  )
