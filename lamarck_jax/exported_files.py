"""The folder of an exported network: written at once, and checked when it is read.

network.json describes the network, and has the SHA-256 digests of the other files and
its own. It is removed before the first of them is replaced and written after the last,
so that no reader finds the program of one network beside the classes of another.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

from flax import traverse_util
import safetensors.numpy

from lamarck_jax import model
from lamarck_jax.data import fingerprint
from lamarck_jax.data.fingerprint import SplitFingerprint
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import durable, set_aside, weights

FORMAT_VERSION = 2
_WITHOUT_DIGESTS = 1

PROGRAM = 'network.stablehlo'
ONNX = 'network.onnx'
WEIGHTS = 'weights.safetensors'
README = 'README.md'
DESCRIPTION = 'network.json'

# Complete files wait here until all are written, then the description replaced.
_STAGING = '.export.tmp'
_REPLACED = 'replaced.json'


@dataclasses.dataclass(frozen=True)
class Description:
  """What network.json says of a network, see `network.Network`.

  Attributes:
    digests: SHA-256 by file name, in hexadecimal digits; none in folders of format
      version 1.
    splits: The examples that it was trained on and measured with; None in older ones.
  """

  genotype: Genotype
  image_shape: tuple[int, int, int]
  class_names: tuple[str, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  test_accuracy: float | None
  digests: Mapping[str, str]
  splits: Mapping[str, SplitFingerprint] | None = None


def check_free(out: pathlib.Path) -> None:
  """Checks that an export may be written to a folder.

  Raises:
    UserError: If it holds files and is no earlier export, has folders in the place of
      files, or is no folder.
  """
  try:
    names = sorted(path.name for path in out.iterdir()) if os.path.lexists(out) else []
  except OSError as error:
    raise UserError(f'out: got {error.strerror} for {out}, want a folder') from error
  if names and not {DESCRIPTION, PROGRAM} <= {*names} and _STAGING not in names:
    more = ', ...' if len(names) > 3 else ''
    raise UserError(
      f'out: got {out} with {", ".join(map(repr, names[:3]))}{more} in it, want a new'
      ' or empty folder, or one of an earlier export'
    )
  for name in (DESCRIPTION, PROGRAM, WEIGHTS, ONNX):
    if (out / name).is_dir() and not (out / name).is_symlink():
      raise UserError(f'out: got {out / name}, which is a folder, want a file or none')


def write(
  out: pathlib.Path, files: Mapping[str, bytes], description: Mapping[str, Any]
) -> None:
  """Writes an export, in place of an earlier one.

  Other files in the folder are left alone. A README.md that is not as an export wrote
  it, because somebody has edited it, is renamed.

  Args:
    out: The folder; made if it does not exist.
    files: Contents of the files by name, but network.json.
    description: Content of network.json, but format version and digests.

  Raises:
    UserError: If it holds other files, or cannot be made.
    StorageError: If a file cannot be written; the earlier export is then kept.
  """
  check_free(out)
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f'out: got {error.strerror} for {out}, want a folder') from error
  digests = {
    name: hashlib.sha256(content).hexdigest() for name, content in files.items()
  }
  content = {'format_version': FORMAT_VERSION, **description, 'files': digests}
  content = json.loads(json.dumps(content))  # With lists for tuples, as it is read.
  content['sha256'] = _digest(content)
  staging = out / _STAGING
  with durable.storing(out):
    if os.path.lexists(out / README) and _is_edited(out, digests[README]):
      set_aside.file(durable.Folder.open(out), README)
    # An export that was interrupted has left it.
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(exist_ok=True)
    try:
      for name, file_content in files.items():
        durable.write(staging / name, file_content)
      durable.write_json(staging / DESCRIPTION, content)
    except BaseException:
      shutil.rmtree(staging, ignore_errors=True)
      raise
    _commit(out, staging, digests)


def _commit(
  out: pathlib.Path, staging: pathlib.Path, digests: Mapping[str, str]
) -> None:
  if os.path.lexists(out / DESCRIPTION):
    os.replace(out / DESCRIPTION, staging / _REPLACED)
    durable.sync_directory(out)
  for name in (PROGRAM, WEIGHTS, ONNX, README):
    if name in digests:
      os.replace(staging / name, out / name)
    else:
      (out / name).unlink(missing_ok=True)  # Of another network, perhaps.
  durable.sync_directory(out)
  os.replace(staging / DESCRIPTION, out / DESCRIPTION)
  shutil.rmtree(staging)
  durable.sync_directory(out)


def _is_edited(out: pathlib.Path, digest: str) -> bool:
  """Returns whether README.md is neither as an export wrote it nor the new one."""
  if not (out / README).is_file():
    return True
  written = {digest}
  staging = out / _STAGING  # Has the descriptions where an export was interrupted.
  for path in (out / DESCRIPTION, staging / DESCRIPTION, staging / _REPLACED):
    with contextlib.suppress(UserError):  # Then it does not tell what was written.
      written.add(_read_description(path).digests.get(README, ''))
  return hashlib.sha256(_read(out / README)).hexdigest() not in written


def read_description(path: pathlib.Path) -> Description:
  """Returns what an export says of its network.

  Args:
    path: The folder.

  Raises:
    UserError: If network.json is missing or not what was written.
  """
  return _read_description(path / DESCRIPTION)


def _read_description(path: pathlib.Path) -> Description:
  try:
    content = json.loads(_read(path))
    if not isinstance(content, dict):
      raise ValueError(f'a {type(content).__name__}')
    digests: Mapping[str, str] = {}
    match content.get('format_version'):
      case int(version) if version == FORMAT_VERSION:
        if content.pop('sha256', None) != _digest(content):
          raise ValueError('another sha256 than its content')
        digests = dict(content['files'])
        if not {PROGRAM} <= digests.keys() <= {PROGRAM, WEIGHTS, ONNX, README}:
          raise ValueError(f'files {sorted(digests)}')
      case int(version) if version == _WITHOUT_DIGESTS:
        pass
      case version:
        raise ValueError(f'format_version {version!r}')
    return _parse(content, digests)
  except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
    reason = ' '.join(str(error).split())
    raise UserError(
      f'network: got {path} with {reason}, want it as exported, of format version'
      f' {FORMAT_VERSION}'
    ) from error


def _parse(content: Mapping[str, Any], digests: Mapping[str, str]) -> Description:
  accuracy = content['test_accuracy']
  if not (accuracy is None or 0 <= accuracy <= 1):
    raise ValueError(f'test_accuracy {accuracy!r}')
  fields = fingerprint.image_fields(content)
  splits = content.get('splits')
  return Description(
    Genotype.from_json(content),
    *fields,
    accuracy,
    digests,
    None if splits is None else fingerprint.splits_from_json(splits),
  )


def read_program(path: pathlib.Path, description: Description) -> bytes:
  """Returns the serialised program of an export, once its files are found whole.

  README.md may have been edited, and files but the program may have been removed.

  Raises:
    UserError: If one is not what was written.
  """
  contents = {PROGRAM: _read(path / PROGRAM)}
  for name in (WEIGHTS, ONNX):
    if name in description.digests and os.path.lexists(path / name):
      contents[name] = _read(path / name)
  for name, content in contents.items():
    expected = description.digests.get(name)
    if expected is not None and hashlib.sha256(content).hexdigest() != expected:
      raise _other_digest(path / name)
  return contents[PROGRAM]


def read_weights(path: pathlib.Path, description: Description) -> dict[str, Any]:
  """Returns the weights of an export, a tree of NumPy arrays.

  Raises:
    UserError: If they are missing, or not the described network's.
  """
  file = path / WEIGHTS
  content, expected = _read(file), description.digests.get(WEIGHTS)
  if expected is not None and hashlib.sha256(content).hexdigest() != expected:
    raise _other_digest(file)
  *_, channels = description.image_shape
  shapes = model.variable_shapes(
    description.genotype, channels, len(description.class_names)
  )
  try:
    variables = traverse_util.unflatten_dict(safetensors.numpy.load(content), sep='/')
    weights.check(variables, shapes)
  # Besides its own error, safetensors raises others on damaged files.
  except Exception as error:
    reason = ' '.join(str(error).split())
    raise UserError(
      f'network: got {file} with {reason}, want it as exported'
    ) from error
  return variables


def is_interrupted(path: pathlib.Path) -> bool:
  """Returns whether an export to a folder was stopped before it was whole."""
  return (path / _STAGING).exists() and not os.path.lexists(path / DESCRIPTION)


def _other_digest(path: pathlib.Path) -> UserError:
  return UserError(
    f'network: got {path} with another sha256 than in {DESCRIPTION}, want it as'
    ' exported'
  )


def _read(path: pathlib.Path) -> bytes:
  """Returns the content of a file; reading a pipe would wait for ever."""
  if not path.is_file():
    what = 'no regular file' if os.path.lexists(path) else 'missing'
    raise UserError(f'network: got {path}, which is {what}, want it as exported')
  try:
    return path.read_bytes()
  except OSError as error:
    raise UserError(
      f'network: got {error.strerror} reading {path}, want a readable file'
    ) from error


def _digest(content: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
