"""Exports the network of a search, to be used without this package.

  python -m lamarck_jax.export WORKDIR --out=DIR [--onnx]

The folder has the network as a program (`jax.export`, StableHLO, for any batch size, on
CPU, GPU and TPU) and with `--onnx` as ONNX, its weights (safetensors) and a
description (JSON):

  network = lamarck_jax.load('DIR')
  probabilities = network(images)  # uint8 [batch, height, width, channels]
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
from typing import Any

from absl import flags
from flax import traverse_util
import jax
import jax.export
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np
import safetensors.numpy

from lamarck_jax import model
from lamarck_jax.data import datasets, decoding
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Genotype
from lamarck_jax.model import Variables
from lamarck_jax.run_directory import durable, records, weights
from lamarck_jax.runtime import command_line

FORMAT_VERSION = 1
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')

_PROGRAM = 'network.stablehlo'
_ONNX = 'network.onnx'
_WEIGHTS = 'weights.safetensors'
_DESCRIPTION = 'network.json'
_ONNX_TOLERANCE = 1e-4


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
        f' {", ".join(map(str, self.image_shape))}]'
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


def load(path: str | os.PathLike[str]) -> Network:
  """Returns the network of an exported folder or of a finished search.

  Args:
    path: What `export` wrote, or a run directory. Of a run directory the network of
      the largest budget is taken, and the data set is read, for its mean and deviation.

  Raises:
    UserError: If it is neither, or a file is not what was written.
  """
  path = pathlib.Path(path)
  if (path / _DESCRIPTION).exists():
    return _load_exported(path)
  return _load_run(path)[0]


def export(
  workdir: str | os.PathLike[str], out: str | os.PathLike[str], *, onnx: bool = False
) -> Network:
  """Writes the network of a finished search to a folder.

  Args:
    workdir: The run directory.
    out: The folder; made if it is not there.
    onnx: Whether to write the network as ONNX too, in float32; needs jax2onnx.

  Returns:
    The network.

  Raises:
    UserError: If the search is not finished, the folder cannot be made, or jax2onnx
      is not installed.
    StorageError: If a file cannot be written.
  """
  network, variables = _load_run(pathlib.Path(workdir))
  (batch,) = jax.export.symbolic_shape('batch')
  images = jax.ShapeDtypeStruct((batch, *network.image_shape), jnp.uint8)
  program = jax.export.export(jax.jit(network.predict), platforms=PLATFORMS)(images)
  onnx_model = _to_onnx(network, variables) if onnx else None
  description = {
    'format_version': FORMAT_VERSION,
    'architecture': str(network.genotype),
    **network.genotype.to_json(),
    'image_shape': network.image_shape,
    'class_names': network.class_names,
    'mean': network.mean,
    'std': network.std,
    'test_accuracy': network.test_accuracy,
  }
  leaves = traverse_util.flatten_dict(variables, sep='/')
  out = pathlib.Path(out)
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f'out: {out}: {error.strerror}') from error
  durable.write(out / _PROGRAM, bytes(program.serialize()))
  durable.write(out / _WEIGHTS, safetensors.numpy.save(leaves))
  if onnx_model is None:
    (out / _ONNX).unlink(missing_ok=True)  # Of another network, perhaps.
  else:
    durable.write(out / _ONNX, onnx_model)
  durable.write(out / 'README.md', _readme(network, onnx).encode())
  # Last, since it makes the folder one that `load` takes.
  durable.write_json(out / _DESCRIPTION, description)
  return network


def _load_run(path: pathlib.Path) -> tuple[Network, dict[str, Any]]:
  """Returns the network of a run directory, and its variables."""
  if not (path / 'config.json').exists():
    raise UserError(
      f'path: got {path} with neither {_DESCRIPTION} nor config.json, want an'
      ' exported network or a run directory'
    )
  config = config_dict.ConfigDict(records.read_config(path))
  result = records.read_result(path)
  if result is None:
    raise UserError(
      f'workdir: got {path} without result.json, want a finished search: run its'
      ' command again to resume it'
    )
  directory = records.RunDirectory(path, config.to_dict())
  if result['checkpoints']:
    chosen = result['checkpoints'][-1]
    variables = directory.read_completed_weights(chosen['evaluation'])
  else:
    chosen = result['best']
    variables = directory.read_weights(chosen['evaluation'])
  genotype = Genotype.from_json(chosen)
  dataset = datasets.load(**config.dataset)
  channels = dataset.image_shape[-1]
  try:
    shapes = model.variable_shapes(genotype, channels, dataset.num_classes)
    weights.check(variables, shapes)
  except ValueError as error:
    raise UserError(f'weights: {path}: {error}') from error
  mean, std = datasets.channel_statistics(dataset.train.images)
  module = model.ConvNet(
    genotype,
    dataset.num_classes,
    dtype=jnp.dtype(config.compute_dtype).type,
  )
  network = Network(
    genotype,
    dataset.image_shape,
    dataset.class_names,
    tuple(map(float, mean)),
    tuple(map(float, std)),
    chosen.get('test_accuracy'),
    _predictor(module, variables, mean, std),
  )
  return network, variables


def _predictor(
  module: model.ConvNet, variables: Variables, mean: np.ndarray, std: np.ndarray
) -> Callable[[Any], jax.Array]:
  """Returns the function from uint8 images to probabilities."""

  def predict(images: jax.Array) -> jax.Array:
    x = ((images.astype(jnp.float32) - mean) / std).astype(module.dtype)
    logits: Any = module.apply(variables, x)
    return jax.nn.softmax(logits)

  return jax.jit(predict)


def _load_exported(path: pathlib.Path) -> Network:
  try:
    description = json.loads((path / _DESCRIPTION).read_text())
    if description['format_version'] != FORMAT_VERSION:
      raise UserError(
        f'{path / _DESCRIPTION}: format_version is {description["format_version"]!r},'
        f' want {FORMAT_VERSION}'
      )
    program = jax.export.deserialize(bytearray((path / _PROGRAM).read_bytes()))
    return Network(
      Genotype.from_json(description),
      tuple(description['image_shape']),
      tuple(description['class_names']),
      tuple(description['mean']),
      tuple(description['std']),
      description['test_accuracy'],
      program.call,
    )
  except UserError:
    raise
  except Exception as error:  # Deserialisation raises all kinds on damaged files.
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise UserError(f'{path}: not what was exported: {reason}') from error


def _to_onnx(network: Network, variables: Variables) -> bytes:
  """Returns the network as ONNX, once ONNX Runtime predicts the same."""
  try:
    with _quiet():
      import jax2onnx
      import onnxruntime
  except ImportError as error:
    raise UserError(
      f'onnx: {error}: want it installed: pip install jax2onnx onnxruntime'
    ) from error
  # In float32, since ONNX Runtime has no bfloat16 on CPU.
  module = model.ConvNet(network.genotype, len(network.class_names))
  mean, std = np.array((network.mean, network.std), np.float32)
  predict = _predictor(module, variables, mean, std)
  with _quiet():
    content = jax2onnx.to_onnx(
      predict,
      inputs=[jax.ShapeDtypeStruct(('batch', *network.image_shape), jnp.uint8)],
      model_name=str(network.genotype),
      input_names=['images'],
      output_names=['probabilities'],
    ).SerializeToString()
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (4, *network.image_shape)).astype(np.uint8)
  (found,) = onnxruntime.InferenceSession(content).run(None, {'images': images})
  difference = np.abs(found - np.asarray(predict(images))).max()
  if not difference < _ONNX_TOLERANCE:
    raise RuntimeError(f'onnx: probabilities differ from the search by {difference}')
  return content


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps to itself what packages log of no interest to a person."""
  logging.disable(logging.WARNING)
  try:
    yield
  finally:
    logging.disable(logging.NOTSET)


_README = """# {genotype}

A convolutional network found by Lamarckian evolution; {accuracy}. The blocks, from
input to output: number of filters, `c` and the kernel size, `s2` where the stride is 2.

- `{program}`: uint8 images [batch, {shape}] to the probability of each class, for any
  batch size, serialised by `jax.export`; normalisation is inside
- `{weights}`: kernels (height, width, channels, filters), biases, batch normalisation
- `{description}`: architecture, names of the {num_classes} classes in the order of the
  probabilities, mean and deviation of the channels

A picture goes in as it did in training, mode {mode}, {width}x{height} pixels
(`pip install jax flatbuffers pillow`):

```python
import json, jax.export, numpy as np
from PIL import Image, ImageOps

picture = ImageOps.exif_transpose(Image.open('picture.png'))
if picture.mode.startswith('I'):  # 16 bits become 8.
  picture = Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
ground = Image.new('RGBA', picture.size, 'white')  # Seen through transparent pixels.
picture = Image.alpha_composite(ground, picture.convert('RGBA')).convert('{mode}')
picture = picture.resize(({width}, {height}), Image.Resampling.BOX)
images = np.asarray(picture, np.uint8).reshape(1, {shape})
program = jax.export.deserialize(bytearray(open('{program}', 'rb').read()))
probabilities = program.call(images)
print(json.load(open('{description}'))['class_names'][probabilities[0].argmax()])
```

With the package:

```python
network = lamarck_jax.load('.')
probabilities = network(network.read_images(['picture.png']))
```
"""

_ONNX_README = f"""
`{_ONNX}` is the same in float32, for ONNX Runtime among others
(`pip install onnxruntime`); `images` as above:

```python
import onnxruntime

session = onnxruntime.InferenceSession('{_ONNX}')
(probabilities,) = session.run(None, {{'images': images}})
```
"""


def _readme(network: Network, onnx: bool) -> str:
  height, width, channels = network.image_shape
  accuracy = (
    'not tested'
    if network.test_accuracy is None
    else f'test accuracy {network.test_accuracy:.4f}'
  )
  readme = _README.format(
    genotype=network.genotype,
    accuracy=accuracy,
    program=_PROGRAM,
    weights=_WEIGHTS,
    description=_DESCRIPTION,
    shape=', '.join(map(str, network.image_shape)),
    num_classes=len(network.class_names),
    mode='L' if channels == 1 else 'RGB',
    width=width,
    height=height,
  )
  return readme + (_ONNX_README if onnx else '')


def main(argv: Sequence[str]) -> None:
  """Exports the network of the run directory that is given."""
  if len(argv) != 2 or not flags.FLAGS.out:
    raise UserError('arguments: want WORKDIR --out=DIR')
  network = export(argv[1], flags.FLAGS.out, onnx=flags.FLAGS.onnx)
  print(f'{network.genotype} is in {flags.FLAGS.out}; its README.md says how to use it')


if __name__ == '__main__':
  flags.DEFINE_string('out', None, 'Folder for the network.')
  flags.DEFINE_bool('onnx', False, 'Write it as ONNX too; needs jax2onnx.')
  command_line.run(main)
