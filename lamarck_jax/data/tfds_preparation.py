"""Downloads and prepares the data sets of the paper for TFDS, without TensorFlow.

TFDS reads prepared data without TensorFlow, but needs it to extract archives and to
encode images. So the builder of the data set is subclassed here and only these two
steps are replaced. Version, features, ids, order of the examples, file names and
metadata remain TFDS's own, as do the download and its checksums.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import hashlib
import io
import os
import pathlib
import shutil
import sys
import threading
import types
from typing import Any
from urllib import parse

from absl import logging
import numpy as np

from lamarck_jax.data import archives, files
from lamarck_jax.errors import DatasetError
from lamarck_jax.runtime import paths

# TFDS retries a failing download for minutes, so the server is tried first.
_PROBE_TIMEOUT_SECONDS = 5  # For each of connecting and reading.
_PROBE_LIMIT_SECONDS = 8  # In total: looking up a host name has no timeout of its own.


def prepare(builder: Any, manual_dir: str | None = None) -> None:
  """Downloads and prepares one of the data sets in `archives.FORMATS`.

  Safe to interrupt and to run in several processes at once: the data set is made
  in a staging folder under a lock and then renamed into place.

  Args:
    builder: TFDS builder of the data set, which is not prepared. It may not notice the
      prepared data; a builder made afterwards does.
    manual_dir: Folder with official archives under their official names; None:
      `downloads/manual` in the data folder. Archives missing there are downloaded.

  Raises:
    DatasetError: If an archive cannot be obtained or is not the official one, or if
      the data set cannot be written.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import download_manager

  data_dir = pathlib.Path(builder.data_dir_root).absolute()
  download_dir = data_dir / 'downloads'
  manual_path = download_dir / 'manual'
  if manual_dir is not None:
    manual_path = pathlib.Path(paths.local('dataset.manual_dir', manual_dir)).absolute()
    if not manual_path.is_dir():
      raise DatasetError(
        f'dataset.manual_dir: got {manual_dir!r}, want an existing folder'
      )
  _check_obtainable(builder, manual_path, download_dir)

  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  logging.info('Preparing %s in %s: about a minute.', builder.name, builder.data_dir)
  try:
    with _staging_dir(data_dir, builder.name) as staging_dir:
      target = pathlib.Path(builder.data_dir).absolute()
      if target.exists():
        return  # Another process made it in the meantime.
      staged = _without_tensorflow(type(builder))(
        data_dir=staging_dir, file_format='array_record'
      )
      # TFDS prints where it writes, which would be the staging folder.
      with contextlib.redirect_stdout(io.StringIO()):
        staged.download_and_prepare(
          download_dir=download_dir,
          download_config=tfds.download.DownloadConfig(
            manual_dir=manual_path,
            force_checksums_validation=True,
            try_download_gcs=False,
          ),
        )
      _move_durably(pathlib.Path(staged.data_dir), target)
  except (
    OSError,  # Network errors are OSErrors too.
    tfds.download.DownloadError,
    download_manager.NonMatchingChecksumError,
  ) as error:
    reason = ' '.join(str(error).split())
    raise DatasetError(
      f'dataset.data_dir: got {reason}, want {builder.name} prepared in {data_dir}'
    ) from error


# ------------------------------------------------------------------------------
# Finding or downloading the archives
# ------------------------------------------------------------------------------


def _check_obtainable(
  builder: Any, manual_dir: pathlib.Path, download_dir: pathlib.Path
) -> None:
  """Raises DatasetError, within seconds, if an archive cannot be obtained."""
  missing = _archives_to_download(builder, manual_dir, download_dir)
  if not missing:
    return
  url = next(iter(missing.values()))
  reason = _why_unreachable(url)
  if reason is not None:
    raise DatasetError(
      f'dataset.name: got {builder.name!r}, which is not prepared in'
      f' {builder.data_dir} and cannot be downloaded from'
      f' {parse.urlsplit(url).hostname} ({reason}), want {", ".join(missing)} in'
      f' {manual_dir} or another folder given as dataset.manual_dir, or a folder'
      ' prepared on a machine with a network given as dataset.data_dir (python -c'
      ' "from lamarck_jax.data import datasets;'
      f" datasets.load('{builder.name}', data_dir='DIR')\" prepares DIR)"
    )


def _archives_to_download(
  builder: Any, manual_dir: pathlib.Path, download_dir: pathlib.Path
) -> dict[str, str]:
  """Returns {file name: URL} of the archives that are nowhere on disk yet.

  Raises:
    DatasetError: If an archive in `manual_dir` has a wrong checksum.
  """
  from tensorflow_datasets.core.download import resource

  missing = {}
  for url, url_info in builder.url_infos.items():
    manual_path = manual_dir / url_info.filename
    cached_name = resource.get_dl_fname(url, url_info.checksum)
    cached = (download_dir / builder.name / cached_name, download_dir / cached_name)
    if manual_path.exists():
      _check_manual_archive(manual_path, url_info.size, url_info.checksum)
    elif not any(path.is_file() for path in cached):
      missing[url_info.filename] = url
  return missing


def _check_manual_archive(path: pathlib.Path, size: int, sha256: str) -> None:
  """Raises DatasetError unless size and SHA-256 are those that TFDS registers."""
  try:
    with files.open_regular(path) as file:
      actual_size = os.fstat(file.fileno()).st_size
      actual_sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise DatasetError(
      f'dataset.manual_dir: {path}: got {error.strerror or error}, want a readable file'
    ) from error
  if (actual_size, actual_sha256) != (size, sha256):
    raise DatasetError(
      f'dataset.manual_dir: {path}: got {actual_size} bytes with SHA-256'
      f' {actual_sha256}, want the official file of {size} bytes with SHA-256 {sha256}'
    )


def _why_unreachable(url: str) -> str | None:
  """Returns in one line why the URL cannot be fetched, or None if it can."""
  import requests

  outcome: list[str | None] = []

  def probe() -> None:
    try:
      with requests.get(url, stream=True, timeout=_PROBE_TIMEOUT_SECONDS) as response:
        failed = response.status_code != requests.codes.ok
        outcome.append(f'HTTP status {response.status_code}' if failed else None)
    except requests.RequestException as error:
      outcome.append(type(error).__name__)

  thread = threading.Thread(target=probe, daemon=True)
  thread.start()
  thread.join(_PROBE_LIMIT_SECONDS)
  return outcome[0] if outcome else f'no answer in {_PROBE_LIMIT_SECONDS} s'


# ------------------------------------------------------------------------------
# Writing
# ------------------------------------------------------------------------------


class _WithoutTensorFlow:
  """Mixin that replaces how a TFDS builder reads archives and encodes images."""

  # Defined by the TFDS builder, as is everything else.
  url_infos: Any
  info: Any
  name: str

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
    urls = {url_info.filename: url for url, url_info in self.url_infos.items()}
    paths = {
      filename: pathlib.Path(path)
      for filename, path in dl_manager.download(urls).items()
    }
    contents = archives.FORMATS[self.name].read(paths)
    for key, names in contents.class_names.items():
      self.info.features[key].names = names
    return {
      split: self._generate_examples(split, examples)
      for split, examples in contents.splits.items()
    }

  def _generate_examples(
    self, split: str, examples: archives.Examples
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    # TFDS orders the examples by a hash of these keys, so they must be those of the
    # original builder: the position in the archive.
    for index, image in enumerate(examples.images):
      example: dict[str, Any] = {'image': _encode_png(image)}
      for key, labels in examples.labels.items():
        example[key] = int(labels[index])
      if 'id' in self.info.features:
        example['id'] = f'{split}_{index:05d}'
      yield index, example


def _without_tensorflow(builder_cls: Any) -> Any:
  """Returns a subclass of the TFDS builder class with the mixin applied."""
  # TFDS looks for its registered checksums beside the module of the class.
  identity = {'name': builder_cls.name, '__module__': builder_cls.__module__}
  return types.new_class(
    builder_cls.__name__,
    (_WithoutTensorFlow, builder_cls),
    {'skip_registration': True},
    lambda namespace: namespace.update(identity),
  )


def _encode_png(image: np.ndarray) -> bytes:
  from PIL import Image

  # Pillow wants [height, width] for one channel.
  pixels = image[..., 0] if image.shape[-1] == 1 else image
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, format='PNG')
  return buffer.getvalue()


@contextlib.contextmanager
def _staging_dir(data_dir: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
  """Yields an empty folder inside `data_dir`, to one process at a time."""
  own_dir = data_dir / '.lamarck_jax'
  own_dir.mkdir(parents=True, exist_ok=True)
  staging_dir = own_dir / name
  with (own_dir / f'{name}.lock').open('w') as lock_file:
    try:
      fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logging.info('Waiting for another process that prepares %s.', name)
      fcntl.flock(lock_file, fcntl.LOCK_EX)
    # The lock is released when the file is closed or the process ends. A killed
    # process leaves its staging folder behind.
    shutil.rmtree(staging_dir, ignore_errors=True)
    staging_dir.mkdir()
    try:
      yield staging_dir
    finally:
      shutil.rmtree(staging_dir, ignore_errors=True)


def _move_durably(source: pathlib.Path, target: pathlib.Path) -> None:
  """Renames a folder of files once its contents are on the disk."""
  for path in source.iterdir():
    with path.open('rb') as file:
      os.fsync(file.fileno())
  target.parent.mkdir(parents=True, exist_ok=True)
  source.rename(target)
