"""A network as ONNX, checked against JAX with ONNX Runtime."""

from collections.abc import Iterator
import contextlib
import logging

import jax
import jax.numpy as jnp
import numpy as np

from lamarck_jax import model
from lamarck_jax.errors import UserError
from lamarck_jax.model import Variables
from lamarck_jax.network import Network, predictor

# The lowest that carries the networks: below it, ONNX's converter has no rule for batch
# normalisation. What is deployed reads old operator sets, not always new ones.
LOWEST_OPSET = 15

_LOWEST_CONVERTED = 18  # What jax2onnx writes; `onnx` takes it down from there.
_TOLERANCE = 1e-4


def convert(network: Network, variables: Variables, opset: int = LOWEST_OPSET) -> bytes:
  """Returns a network as ONNX, once ONNX Runtime predicts the same.

  Args:
    network: The network.
    variables: Its variables.
    opset: Version of ONNX's operators.

  Raises:
    UserError: If jax2onnx or onnxruntime is not installed, or they do not have the
      operator set.
  """
  try:
    with _quiet():
      import jax2onnx
      import onnx
      import onnxruntime
  except ImportError as error:
    raise UserError(
      f"onnx: {error}: want it installed: pip install -e '.[onnx]'"
    ) from error
  highest = onnx.defs.onnx_opset_version()
  if not LOWEST_OPSET <= opset <= highest:
    raise UserError(f'onnx_opset: got {opset}, want {LOWEST_OPSET} to {highest}')
  # In float32, since ONNX Runtime has no bfloat16 on CPU.
  module = model.ConvNet(network.genotype, len(network.class_names))
  predict = predictor(module, variables, network.mean, network.std)
  with _quiet():
    converted = jax2onnx.to_onnx(
      predict,
      inputs=[jax.ShapeDtypeStruct(('batch', *network.image_shape), jnp.uint8)],
      opset=max(opset, _LOWEST_CONVERTED),
      model_name=str(network.genotype),
      input_names=['images'],
      output_names=['probabilities'],
    )
    # jax2onnx notes the shapes of some results in another order of dimensions than they
    # have; readers infer them.
    del converted.graph.value_info[:]
    if opset < _LOWEST_CONVERTED:
      converted = onnx.version_converter.convert_version(converted, opset)
    # Readers refuse a newer format of the file, even with operators that they know.
    converted.ir_version = onnx.helper.find_min_ir_version_for(converted.opset_import)
  content = converted.SerializeToString()
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (4, *network.image_shape)).astype(np.uint8)
  try:
    session = onnxruntime.InferenceSession(content)
  except Exception as error:  # Its errors share no other class.
    raise UserError(
      f'onnx_opset: got {opset}, want one that ONNX Runtime'
      f' {onnxruntime.__version__} reads: {error}'
    ) from error
  (found,) = session.run(None, {'images': images})
  difference = np.abs(found - np.asarray(predict(images))).max()
  if not difference < _TOLERANCE:
    raise RuntimeError(f'onnx: probabilities differ from the search by {difference}')
  return content


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Suppresses the log messages of the converter, which concern its developers."""
  logging.disable(logging.WARNING)
  try:
    yield
  finally:
    logging.disable(logging.NOTSET)
