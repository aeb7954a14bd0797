"""Exports a network of a search, to be used without this package.

  python -m lamarck_jax.export WORKDIR --out=DIR [--evaluation=N] [--onnx]

The folder has the network as a program (`jax.export`, StableHLO, for any batch size, on
CPU, GPU and TPU) and with `--onnx` as ONNX, its weights (safetensors) and a
description (JSON):

  network = lamarck_jax.load('DIR')
  probabilities = network(images)  # uint8 [batch, height, width, channels]
"""

from collections.abc import Sequence
import importlib.resources
import os
import pathlib

from absl import flags
from flax import traverse_util
import jax
import jax.export
import jax.numpy as jnp
import safetensors.numpy

from lamarck_jax import exported_files, metrics, onnx_export
from lamarck_jax import network as network_lib
from lamarck_jax.errors import UserError
from lamarck_jax.network import Network
from lamarck_jax.runtime import command_line, jax_settings, paths

__all__ = ['Network', 'export', 'load']

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def load(path: str | os.PathLike[str]) -> Network:
  """Returns the network of an exported folder or of a finished search.

  Args:
    path: What `export` wrote, or a run directory. Of a run directory the network of
      the largest budget is taken.

  Raises:
    UserError: If it is neither, or a file is not what was written.
  """
  path = pathlib.Path(paths.local('path', path))
  if os.path.lexists(path / exported_files.DESCRIPTION):
    return _load_exported(path)
  return _of_run(path).network


@jax_settings.applied()
def export(
  workdir: str | os.PathLike[str],
  out: str | os.PathLike[str],
  *,
  evaluation: int | None = None,
  onnx: bool = False,
  onnx_opset: int = onnx_export.LOWEST_OPSET,
) -> Network:
  """Writes a network of a search to a folder.

  Args:
    workdir: The run directory.
    out: The folder, which is new, empty, or has an earlier export, which is replaced.
    evaluation: The evaluation that trained the network, see `network.of_run`; None:
      the network of the largest budget, of a finished search.
    onnx: Whether to write the network as ONNX too, in float32; needs jax2onnx.
    onnx_opset: Version of ONNX's operators.

  Returns:
    The network.

  Raises:
    UserError: If there is no such network, the folder holds other files or cannot be
      made, or jax2onnx is not installed.
    StorageError: If a file cannot be written.
  """
  out = pathlib.Path(paths.local('out', out))
  exported_files.check_free(out)
  found = _of_run(pathlib.Path(paths.local('workdir', workdir)), evaluation)
  network, variables = found.network, found.variables
  (batch,) = jax.export.symbolic_shape('batch')
  images = jax.ShapeDtypeStruct((batch, *network.image_shape), jnp.uint8)
  program = jax.export.export(jax.jit(network.predict), platforms=PLATFORMS)(images)
  leaves = traverse_util.flatten_dict(variables, sep='/')
  files = {
    exported_files.PROGRAM: bytes(program.serialize()),
    exported_files.WEIGHTS: safetensors.numpy.save(leaves),
    exported_files.README: _readme(found, onnx).encode(),
  }
  if onnx:
    files[exported_files.ONNX] = onnx_export.convert(network, variables, onnx_opset)
  description = {
    'architecture': str(network.genotype),
    **network.genotype.to_json(),
    'image_shape': network.image_shape,
    'class_names': network.class_names,
    'mean': network.mean,
    'std': network.std,
    'splits': found.dataset.fingerprint.to_json()['splits'],
    **found.facts,
  }
  exported_files.write(out, files, description)
  return network


def _of_run(path: pathlib.Path, evaluation: int | None = None) -> network_lib.Found:
  """Returns a network of a run directory."""
  if exported_files.is_interrupted(path):
    raise UserError(
      f'network: got {path}, where an export was interrupted, want it exported again'
    )
  if not os.path.lexists(path / 'config.json'):
    raise UserError(
      f'path: got {path} with neither {exported_files.DESCRIPTION} nor config.json,'
      ' want an exported network or a run directory'
    )
  return network_lib.of_run(path, evaluation)


def _load_exported(path: pathlib.Path) -> Network:
  description = exported_files.read_description(path)
  content = exported_files.read_program(path, description)
  try:
    program = jax.export.deserialize(bytearray(content))
    _check_shapes(program, description)
  except Exception as error:  # Deserialisation raises all kinds on damaged files.
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise UserError(
      f'network: got {path / exported_files.PROGRAM} with {reason}, want it as exported'
    ) from error
  return Network(
    description.genotype,
    description.image_shape,
    description.class_names,
    description.mean,
    description.std,
    description.test_accuracy,
    program.call,
  )


def _check_shapes(
  program: jax.export.Exported, description: exported_files.Description
) -> None:
  """Raises ValueError unless a program has the inputs and outputs described."""
  wanted = [
    (jnp.uint8, description.image_shape),
    (jnp.float32, (len(description.class_names),)),
  ]
  found = [(aval.dtype, aval.shape[1:]) for aval in program.in_avals]
  found += [(aval.dtype, aval.shape[1:]) for aval in program.out_avals]
  if found != wanted:
    raise ValueError(f'inputs and outputs {found} instead of {wanted}')


def _readme(found: network_lib.Found, onnx: bool) -> str:
  network = found.network
  height, width, channels = network.image_shape
  accuracy = (
    'not tested'
    if network.test_accuracy is None
    else f'test accuracy {network.test_accuracy:.4f}'
  )
  balanced = found.facts['test_balanced_accuracy']
  if found.facts['fitness'] == 'balanced_accuracy' and balanced is not None:
    accuracy += f', {metrics.name("balanced_accuracy", "test")} {balanced:.4f}'
  if not found.facts['completed']:
    accuracy = f'not trained to completion, {accuracy}'
  assets = importlib.resources.files('lamarck_jax') / 'assets'
  names = ['exported_readme.md'] + ['exported_readme_onnx.md'] * onnx
  texts = [(assets / name).read_text(encoding='utf-8') for name in names]
  return '\n'.join(texts).format(
    genotype=network.genotype,
    accuracy=accuracy,
    program=exported_files.PROGRAM,
    weights=exported_files.WEIGHTS,
    description=exported_files.DESCRIPTION,
    onnx=exported_files.ONNX,
    shape=', '.join(map(str, network.image_shape)),
    num_classes=len(network.class_names),
    mode='L' if channels == 1 else 'RGB',
    mean=', '.join(f'{value:.1f}' for value in network.mean),
    std=', '.join(f'{value:.1f}' for value in network.std),
    width=width,
    height=height,
  )


def main(argv: Sequence[str]) -> None:
  """Exports the network of the run directory that is given."""
  if len(argv) != 2 or not flags.FLAGS.out:
    raise UserError('arguments: want WORKDIR --out=DIR')
  values = flags.FLAGS
  if values['onnx_opset'].present and not values.onnx:
    raise UserError('onnx_opset: got a value, which has no effect here, want --onnx')
  network = export(
    argv[1],
    values.out,
    evaluation=values.evaluation,
    onnx=values.onnx,
    onnx_opset=values.onnx_opset,
  )
  print(f'{network.genotype} is in {values.out}; its README.md says how to use it')


if __name__ == '__main__':
  command_line.define_path('out', None, 'Folder for the network.')
  flags.DEFINE_integer(
    'evaluation',
    None,
    'Evaluation that trained the network, one whose weights the run directory has; by'
    ' default the network of the largest budget.',
  )
  flags.DEFINE_bool('onnx', False, 'Write it as ONNX too; needs jax2onnx.')
  flags.DEFINE_integer(
    'onnx_opset',
    onnx_export.LOWEST_OPSET,
    "Version of ONNX's operators; the lowest that carries the networks by default.",
  )
  command_line.run(main)
