"""Compiles blocks and the head for an H100, on a machine without a GPU.

  XLA_FLAGS=--xla_dump_to=DIR python -m tests.xla.compile_for_h100

XLA writes the optimised programs to DIR; the blocks are those of `BLOCKS`, in order.
Needs jax-cuda13-pjrt and jax-cuda13-plugin, of jaxlib's version.
"""

import os
import pathlib

BATCH_SIZE = 512
# Filters, kernel size, stride, size of the images, channels, type.
BLOCKS = [
  (*block, dtype)
  for dtype in ('float32', 'bfloat16')
  for block in ((64, 3, 1, 16, 32), (32, 5, 2, 32, 256))
]


def main() -> None:
  """Compiles them one after the other."""
  os.environ['JAX_PLATFORMS'] = 'cpu,cuda'
  os.environ['CUDA_VISIBLE_DEVICES'] = ''
  os.environ['JAX_SKIP_CUDA_CONSTRAINTS_CHECK'] = '1'
  import jax
  from jax.experimental import topologies
  import jax.numpy as jnp
  from jax.sharding import AxisType, Mesh

  from lamarck_jax import model, training
  from lamarck_jax.data import on_device
  from lamarck_jax.xla import fused_block, programs, sharding

  target = pathlib.Path(__file__).with_name('h100.txtpb').read_text()
  topology = topologies.get_topology_desc(
    platform='cuda', target_config=target, topology='1x1x1'
  )
  devices = topologies.make_mesh(topology, (1,), (sharding.BATCH,)).devices
  mesh = Mesh(devices, (sharding.BATCH,), axis_types=(AxisType.Auto,))

  def struct(dtype, *shape):
    kept = sharding.sharded if shape[:1] == (BATCH_SIZE,) else sharding.replicated
    return jax.ShapeDtypeStruct(shape, dtype, sharding=kept(mesh))

  for filters, kernel_size, stride, size, channels, dtype in BLOCKS:
    block = fused_block.ConvBlock(filters, kernel_size, stride, jnp.dtype(dtype).type)
    inputs = struct(dtype, BATCH_SIZE, size, size, channels)
    programs.compile_block(training.BLOCK_FUNCTIONS, block, inputs)
  targets = on_device.Targets(
    struct('int32', 60_000), struct('int32', 88, BATCH_SIZE), struct('int32'), None
  )
  inputs = struct('float32', BATCH_SIZE, 8, 8, 256)
  programs.compile_head(training.HEAD_FUNCTIONS, model.Classifier(10), inputs, targets)


if __name__ == '__main__':
  main()
