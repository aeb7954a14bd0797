"""A classifier from arrays in one call.

::

  classifier = lamarck_jax.fit(images, labels)
  classifier.predict(new_images)

`fit` runs `lamarck_jax.search` in a run directory, as `run_evolution.py` does for
images in files.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import copy
import dataclasses
import difflib
import hashlib
import html
import json
import os
import pathlib
from typing import Any

import jax
from ml_collections import config_dict
import numpy as np

from lamarck_jax import config as config_lib
from lamarck_jax import export as export_lib
from lamarck_jax import metrics, search
from lamarck_jax.data import arrays
from lamarck_jax.data.source import Source
from lamarck_jax.errors import DatasetError, UserError
from lamarck_jax.genotype import Genotype
from lamarck_jax.network import Network
from lamarck_jax.run_directory import progress as progress_lib
from lamarck_jax.runtime import compilation_cache, paths

# Sized for minutes on two cores, as configs/own_images.py.
_DEFAULTS: dict[str, Any] = {
  'budget_epochs': 64,
  'batch_size': 32,
  'search_space.filters': (8, 16, 32, 64),
  'completion.epochs': (10, 13, 16),
}
_BATCH = 64  # Images per call of the network, so that one program is compiled.


def fit(
  images: Any,
  labels: Any,
  *,
  test_images: Any = None,
  test_labels: Any = None,
  workdir: str | os.PathLike[str] | None = None,
  config: config_dict.ConfigDict | None = None,
  progress: bool = True,
  on_event: Callable[[search.Event], None] | None = None,
  **fields: Any,
) -> 'Classifier':
  """Searches for a network that classifies images, and returns it trained.

  The search is recorded in a run directory. The same call resumes one that was
  stopped, and returns at once what a finished one has found. Where the process has no
  compilation cache, JAX is given that of `run_evolution.py`; nothing else is set.

  Args:
    images: [num_examples, height, width], or with 1 or 3 channels at the end: uint8,
      other integers from 0 to 255, or floats from 0 to 1. 8 to 256 pixels per side,
      unless `dataset={'image_size': N}` resizes them.
    labels: Integers or strings, [num_examples].
    test_images: Images for the test; None sets a sixth of each class of `images` aside.
    test_labels: Their labels.
    workdir: The run directory; None: `runs/arrays-` and a digest of arrays and
      configuration, so that every other call has a directory of its own.
    config: A configuration, see `lamarck_jax.config`; its data set is replaced. None: a
      search of minutes on two cores.
    progress: Whether a progress bar is shown on a terminal or in a notebook, and a line
      for each evaluation elsewhere.
    on_event: Called with the event of every evaluation once it is recorded.
    **fields: Fields of the configuration, such as `budget_epochs=128`, `seed=1`,
      `setting='net2net'` or `search_space={'filters': (16, 32)}`. A budget without
      `checkpoint_epochs` is the checkpoint too.

  Raises:
    UserError: If a field or an array is unfit, or the directory holds another search.
    StorageError: If the directory cannot be written.
  """
  config = _config(config, fields)
  source, classes = arrays.source(
    images, labels, test_images, test_labels, config.dataset.image_size
  )
  if workdir is None:
    workdir = os.path.join('runs', f'arrays-{_digest(config, source)[:8]}')
  workdir = paths.local('workdir', workdir)
  if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
    compilation_cache.enable()
  with contextlib.nullcontext() if progress else progress_lib.quiet():
    try:
      result = search.run(config, workdir, on_event, source=source)
    except KeyboardInterrupt as interrupt:
      # Python and IPython print it last, below the traceback.
      interrupt.add_note(f'stopped; the same call resumes {workdir}')
      raise
  network = export_lib.load(workdir)
  return Classifier(
    pathlib.Path(workdir),
    network,
    result,
    classes,
    config.dataset.image_size,
    config.fitness,
    config.parsimony,
  )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Classifier:
  """What `fit` returns: the network that a search has found, trained.

  Attributes:
    workdir: The run directory.
    network: The network, from uint8 images to probabilities.
    result: The content of `result.json`.
    classes: The labels in the order of the probabilities, as given to `fit`.
    image_size: Pixels per side to which images are resized; None: they are not.
    fitness: What networks were selected for, as in the configuration.
    parsimony: How much fitness a smaller network may lack, likewise.
  """

  workdir: pathlib.Path
  network: Network
  result: Mapping[str, Any]
  classes: np.ndarray
  image_size: int | None
  fitness: str = 'accuracy'
  parsimony: float = 0.0

  @property
  def genotype(self) -> Genotype:
    """The architecture."""
    return self.network.genotype

  @property
  def accuracy(self) -> float | None:
    """Accuracy on the test images; None if `completion.enabled` is false."""
    return self.network.test_accuracy

  @property
  def balanced_accuracy(self) -> float | None:
    """Mean of the classes' accuracies on the test images; None as for `accuracy`."""
    checkpoints = self.result['checkpoints']
    return checkpoints[-1].get('test_balanced_accuracy') if checkpoints else None

  @property
  def validation_accuracy(self) -> float:
    """Best fitness during the search, on the validation images.

    With `fitness='balanced_accuracy'` it is the mean of the classes' accuracies; with
    `parsimony` it is that of the selected network.
    """
    return self.result['best']['fitness']

  def predict(self, images: Any) -> np.ndarray:
    """Returns the most probable label of each image, [num_examples].

    Args:
      images: As given to `fit`, one or more.

    Raises:
      DatasetError: If they have another shape or other values.
    """
    return self.classes[np.argmax(self.predict_proba(images), axis=-1)]

  def predict_proba(self, images: Any) -> np.ndarray:
    """Returns the probability of each class, float32 [num_examples, num_classes].

    Args:
      images: As given to `fit`, one or more.

    Raises:
      DatasetError: If they have another shape or other values.
    """
    pixels = arrays.resized(arrays.pixels('images', images), self.image_size)
    if pixels.shape[1:] != self.network.image_shape:
      found, wanted = pixels.shape[1:], self.network.image_shape
      raise DatasetError(f'images: got images of {_by(found)}, want {_by(wanted)}')
    padded = np.pad(pixels, [(0, -len(pixels) % _BATCH), (0, 0), (0, 0), (0, 0)])
    batches = [
      self.network(padded[start : start + _BATCH])
      for start in range(0, len(padded), _BATCH)
    ]
    return np.concatenate(batches)[: len(pixels)]

  def report(self) -> pathlib.Path:
    """Writes the report of the search, one HTML file, and returns its path."""
    # Only who asks for it waits for what it needs.
    from lamarck_jax.report import html_page

    return html_page.write(self.workdir)

  def export(self, out: str | os.PathLike[str], **options: Any) -> pathlib.Path:
    """Writes the network to a folder, to be used without this package.

    Args:
      out: The folder, which is new, empty, or has an earlier export.
      **options: Of `lamarck_jax.export.export`, such as `onnx=True`.

    Returns:
      The folder.
    """
    export_lib.export(self.workdir, out, **options)
    return pathlib.Path(out)

  def __repr__(self) -> str:
    return f'Classifier({", ".join(f"{k}: {v}" for k, v in self._summary().items())})'

  def _repr_html_(self) -> str:
    """Returns a table, which notebooks show."""
    rows = ''.join(
      f'<tr><th>{name}</th><td>{html.escape(value)}</td></tr>'
      for name, value in self._summary().items()
    )
    return f'<table>{rows}</table>'

  def _summary(self) -> dict[str, str]:
    summary = {'network': str(self.genotype), 'test accuracy': _shown(self.accuracy)}
    if self.fitness == 'balanced_accuracy':
      name = metrics.name(self.fitness, 'test')
      summary[name] = _shown(self.balanced_accuracy)
    name = metrics.selected_name(self.fitness, self.parsimony)
    summary[name] = _shown(self.validation_accuracy)
    return {**summary, 'run directory': str(self.workdir)}


def _shown(accuracy: float | None) -> str:
  return 'not measured' if accuracy is None else f'{accuracy:.4f}'


def _config(
  config: config_dict.ConfigDict | None, fields: Mapping[str, Any]
) -> config_dict.ConfigDict:
  """Returns a configuration for arrays, with the values of some fields.

  Raises:
    UserError: If there is no such field, or a value is impossible or has no effect.
  """
  if not isinstance(config, config_dict.ConfigDict | None):
    raise UserError(f'config: got {type(config).__name__}, want a ConfigDict')
  values = _by_dotted_name(fields)
  typed = {name: _plain(value) for name, value in values.items()}
  if typed.get('dataset.name', arrays.NAME) != arrays.NAME:
    raise UserError(
      f'dataset.name: got {typed["dataset.name"]!r}, want none: the data are the arrays'
    )
  setting = values.get('setting', 'lamarckian')
  if not isinstance(setting, str):
    raise UserError(f'setting: got {setting!r:.60}, want the name of one')
  # Raises for settings that do not exist.
  made = config_lib.get_config(setting)
  if 'setting' in values:
    values = {**config_lib.SETTINGS[setting], **values}
  if config is None:
    config, values = made, {**_DEFAULTS, **values}
  if 'budget_epochs' in values:
    values = {'checkpoint_epochs': (values['budget_epochs'],), **values}
  config = copy.deepcopy(config)
  with config.unlocked(), config.ignore_type():
    for name, value in {**values, 'dataset.name': arrays.NAME}.items():
      config.update_from_flattened_dict({name: _plain(value)})
  config_lib.validate(config)
  config_lib.check_typed([config], typed)
  return config


def _by_dotted_name(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns values of a configuration's fields, of which some are in sections."""
  values: dict[str, Any] = {}
  for name, value in fields.items():
    if isinstance(value, Mapping):
      values |= {f'{name}.{part}': of_part for part, of_part in value.items()}
    else:
      values[name] = value
  for name in values.keys() - config_lib.FIELDS.keys():
    ends = {field.rpartition('.')[2]: field for field in config_lib.FIELDS}
    close = difflib.get_close_matches(name.rpartition('.')[2], ends, 3, 0.5)
    similar = ', '.join(ends[end] for end in close) or 'budget_epochs'
    raise UserError(
      f'{name}: got no field of the configuration, want one such as {similar}; one with'
      " a dot is given as section={'field': value}"
    )
  return values


def _plain(value: Any) -> Any:
  """Returns a value as configurations have it: tuples and Python's numbers."""
  if isinstance(value, list | tuple | range):
    return tuple(map(_plain, value))
  return value.item() if isinstance(value, np.generic) else value


def _digest(config: config_dict.ConfigDict, source: Source) -> str:
  """Returns a digest of a configuration and of the images and labels."""
  digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
  digest.update(json.dumps(source.class_names).encode())
  for split in (source.train, source.test):
    if split is not None:
      digest.update(split.digests.tobytes() + split.labels.tobytes())
  return digest.hexdigest()


def _by(shape: Sequence[int]) -> str:
  return 'x'.join(map(str, shape))
