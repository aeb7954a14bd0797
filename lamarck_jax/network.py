"""A trained network, ready for images."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lamarck_jax import model
from lamarck_jax.data import decoding
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Genotype
from lamarck_jax.model import Variables
from lamarck_jax.run_directory import dataset_record, records, weights
from lamarck_jax.run_directory.dataset_record import DatasetRecord
from lamarck_jax.runtime import jax_settings


@dataclasses.dataclass(frozen=True)
class Network:
  """A trained network, ready for images.

  Attributes:
    genotype: Its architecture.
    image_shape: Height, width and channels of the images it takes.
    class_names: Names of the classes, in the order of the probabilities.
    mean: What is subtracted from every channel, in units of uint8.
    std: By what it is divided then.
    test_accuracy: As the search measured it; None if it was not completed.
    predict: uint8 [batch, height, width, channels] -> float32 [batch, classes].
  """

  genotype: Genotype
  image_shape: tuple[int, int, int]
  class_names: tuple[str, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  test_accuracy: float | None
  predict: Callable[[Any], jax.Array] = dataclasses.field(repr=False, compare=False)

  @jax_settings.applied()
  def __call__(self, images: Any) -> np.ndarray:
    """Returns the probability of each class.

    Args:
      images: uint8 [batch, *image_shape], one or more.

    Returns:
      float32 [batch, len(class_names)].

    Raises:
      ValueError: If the images are of another shape or type, or none.
    """
    images = np.asarray(images)
    shape = images.shape[1:]
    if images.dtype != np.uint8 or shape != self.image_shape or not len(images):
      raise ValueError(
        f'got {images.dtype} {list(images.shape)}, want uint8 [batch,'
        f' {", ".join(map(str, self.image_shape))}], at least one image'
      )
    return np.asarray(self.predict(images))

  def read_images(
    self, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
  ) -> np.ndarray:
    """Returns image files as the network takes them.

    They are decoded and resized as the search's own images were; see `data.decoding`.

    Args:
      paths: One file that Pillow reads, or several.

    Returns:
      uint8 [number of files, height, width, channels].

    Raises:
      UserError: If a file cannot be read, or has another shape and the network's
        images are no squares.
    """
    height, width, channels = self.image_shape
    if isinstance(paths, str | os.PathLike):
      paths = [paths]
    images = []
    for path in paths:
      try:
        image = decoding.decode(path, channels)
      except Exception as error:  # Pillow's readers raise all kinds on bad files.
        raise UserError(f'images: {path}: cannot be read: {error}') from error
      if image.shape != self.image_shape and height == width:
        image = decoding.resize(image, height)
      if image.shape != self.image_shape:
        raise UserError(
          f'images: {path} has {image.shape[1]}x{image.shape[0]} pixels, want'
          f' {width}x{height}'
        )
      images.append(image)
    return np.stack(images) if images else np.empty((0, *self.image_shape), np.uint8)


@dataclasses.dataclass(frozen=True)
class Found:
  """A network in a run directory.

  Attributes:
    network: The network.
    variables: Its variables.
    facts: What is known of it, ready for JSON: its `evaluation`, whether it was
      `completed`, its accuracies (None where they were not measured), and the fields
      of the configuration that its accuracy depends on.
    dataset: The data set that it was trained on.
  """

  network: Network
  variables: dict[str, Any]
  facts: dict[str, Any]
  dataset: DatasetRecord


# What the description of a network repeats of the configuration.
_CONFIG_FACTS = ('class_weights', 'fitness', 'init_from', 'parsimony')
_ACCURACIES = ('validation_accuracy', 'test_accuracy', 'test_balanced_accuracy')


def of_run(path: pathlib.Path, evaluation: int | None = None) -> Found:
  """Returns a network of a search.

  Class names, image shape, mean and standard deviation are those that the run has
  recorded; only for a run that predates dataset.json is the data set read.

  Args:
    path: The run directory.
    evaluation: The evaluation that trained it, whose weights must be there; the
      completed ones are taken if there are any. None: the network of the largest
      budget, of a finished search.

  Raises:
    UserError: If there is no such network, or a file is not what was written.
  """
  config = records.read_config(path)
  if config['compute_dtype'] not in ('float32', 'bfloat16'):
    raise UserError(
      f'compute_dtype: got {config["compute_dtype"]!r} in {path / "config.json"}, want'
      ' float32 or bfloat16'
    )
  directory = records.RunDirectory(path, config)
  facts = chosen(path) if evaluation is None else _evaluated(directory, evaluation)
  genotype = facts['genotype']
  if facts['completed']:
    variables = directory.read_completed_weights(facts['evaluation'])
  else:
    variables = directory.read_weights(facts['evaluation'])
  recorded = dataset_record.read(path)
  if recorded is None:
    _, recorded = dataset_record.load(config['dataset'], path)
  data = recorded.fingerprint
  num_classes = len(data.class_names)
  try:
    shapes = model.variable_shapes(genotype, data.image_shape[-1], num_classes)
    weights.check(variables, shapes)
  except ValueError as error:
    raise UserError(f'weights: {path}: {error}') from error
  module = model.ConvNet(
    genotype, num_classes, dtype=jnp.dtype(config['compute_dtype']).type
  )
  network = Network(
    genotype,
    data.image_shape,
    data.class_names,
    data.mean,
    data.std,
    facts['test_accuracy'],
    predictor(module, variables, data.mean, data.std),
  )
  del facts['genotype']
  facts |= {name: config[name] for name in _CONFIG_FACTS}
  return Found(network, variables, facts, recorded)


def chosen(path: pathlib.Path) -> dict[str, Any]:
  """Returns what the result says of the network of the largest budget.

  Returns:
    Its `genotype`, `evaluation` and accuracies, and whether it was `completed`.
  """
  result = records.read_result(path)
  if result is None:
    raise UserError(
      f'workdir: got {path} without result.json, want a finished search: run its'
      ' command again to resume it'
    )
  try:
    checkpoints, best = result['checkpoints'], result['best']
    if checkpoints:
      entry = checkpoints[-1]
    else:
      entry = {**records.read_events(path)[best['evaluation']], **best}
    return _facts(entry, completed=bool(checkpoints))
  except (AttributeError, LookupError, TypeError, ValueError) as error:
    reason = ' '.join(str(error).split())
    raise UserError(
      f'result: got {path / "result.json"} with {reason}, want it as written'
    ) from error


def _evaluated(directory: records.RunDirectory, evaluation: int) -> dict[str, Any]:
  """Returns what is known of the network of an evaluation, as `chosen` does."""
  path, events = directory.path, records.read_events(directory.path)
  there = [number for number in directory.networks() if number < len(events)]
  if evaluation not in there:
    raise UserError(
      f'evaluation: got {evaluation}, want one whose weights are in {path}:'
      f' {", ".join(map(str, there)) or "there are none yet"}'
    )
  outcome = directory.read_completed(evaluation)
  try:
    return _facts(outcome or events[evaluation], completed=outcome is not None)
  except (AttributeError, LookupError, TypeError, ValueError) as error:
    reason = ' '.join(str(error).split())
    raise UserError(
      f'evaluation: got {evaluation} of {path} with {reason}, want it as written'
    ) from error


def _facts(entry: Mapping[str, Any], completed: bool) -> dict[str, Any]:
  """Returns what an entry of a result, an outcome or an event says of a network.

  Raises:
    ValueError: If it is of another form; also others.
  """
  facts = {
    'genotype': Genotype.from_json(entry),
    'evaluation': int(entry['evaluation']),
    'completed': completed,
    **{name: entry.get(name) for name in _ACCURACIES},
  }
  if not completed:
    # Events have it beside a fitness that may be another measure; older ones do not.
    facts['validation_accuracy'] = entry.get('accuracy', entry['fitness'])
  for name in _ACCURACIES:
    accuracy: Any = facts[name]
    if not (accuracy is None or 0 <= accuracy <= 1):
      raise ValueError(f'{name} {accuracy!r}')
  return facts


def predictor(
  module: model.ConvNet,
  variables: Variables,
  mean: tuple[float, ...],
  std: tuple[float, ...],
) -> Callable[[Any], jax.Array]:
  """Returns the function from uint8 images to probabilities.

  Args:
    module: The network.
    variables: Its variables.
    mean: Of each channel, in units of uint8.
    std: Standard deviation of each channel, likewise.
  """
  mean_array, std_array = np.array((mean, std), np.float32)

  def predict(images: jax.Array) -> jax.Array:
    x = ((images.astype(jnp.float32) - mean_array) / std_array).astype(module.dtype)
    logits: Any = module.apply(variables, x)
    return jax.nn.softmax(logits)

  return jax.jit(predict)
