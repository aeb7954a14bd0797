"""The search that a user would write with PyTorch: replays the networks of a run.

  python -m benchmarks.torch_replay WORKDIR < WORKDIR/events.jsonl

Trains every network whose event comes in, in order, on the same data with the same
number of steps, from its parent's weights where name and shape agree, evaluates it on
the validation split, and prints the accuracy.
"""

from collections.abc import Iterable
import json
import os
import pathlib
import sys
from typing import Any

from ml_collections import config_dict
import numpy as np
import torch
from torch import nn

from lamarck_jax import trial
from lamarck_jax.data import datasets
from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import records


def build(genotype: Genotype, channels: int, num_classes: int) -> nn.Sequential:
  """Returns the network of a genotype, its layers named by lineage."""
  net = nn.Sequential()
  for block in genotype.blocks:
    size, name = block.kernel_size, f'block_{block.lineage}'
    net.add_module(
      f'{name}_conv',
      nn.Conv2d(channels, block.filters, size, block.stride, padding=size // 2),
    )
    net.add_module(f'{name}_norm', nn.BatchNorm2d(block.filters))
    net.add_module(f'{name}_relu', nn.ReLU(inplace=True))
    channels = block.filters
  net.add_module('pool', nn.AdaptiveAvgPool2d(1))
  net.add_module('flatten', nn.Flatten())
  net.add_module('classifier', nn.Linear(channels, num_classes))
  return net


def replay(workdir: str, events: Iterable[str]) -> None:
  """Trains and evaluates networks, with the configuration of a run directory."""
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.set_num_threads(os.cpu_count() or 1)
  torch.manual_seed(0)
  config = config_dict.ConfigDict(records.read_config(pathlib.Path(workdir)))
  dataset = datasets.load(**config.dataset)
  mean = dataset.train.images.mean((0, 1, 2), dtype=np.float64)
  std = dataset.train.images.std((0, 1, 2), dtype=np.float64)

  def tensors(split: datasets.Split) -> tuple[torch.Tensor, torch.Tensor]:
    images = ((split.images - mean) / std).astype(np.float32)
    images = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)
    labels = torch.from_numpy(split.labels.astype(np.int64)).to(device)
    return images.contiguous(memory_format=torch.channels_last), labels

  images, labels = tensors(dataset.train)
  validation_images, validation_labels = tensors(dataset.validation)
  batch_size = config.batch_size
  states: dict[int, dict[str, Any]] = {}
  print('ready', flush=True)
  for line in events:
    event = json.loads(line)
    genotype = Genotype.from_json(event)
    net: Any = build(genotype, images.shape[1], dataset.num_classes)
    net = net.to(device, memory_format=torch.channels_last)
    if event['parent'] is not None and config.inheritance != 'none':
      own, parent = net.state_dict(), states[event['parent']]
      fit = {
        name: leaf
        for name, leaf in parent.items()
        if name in own and own[name].shape == leaf.shape
      }
      net.load_state_dict({**own, **fit})
    optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    net.train()
    for rate in trial.learning_rates(config):
      optimizer.param_groups[0]['lr'] = rate
      order = torch.randperm(len(labels), device=device)
      for start in range(0, len(labels) - batch_size + 1, batch_size):
        batch = order[start : start + batch_size]
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimizer.step()
    net.eval()
    correct = 0
    with torch.inference_mode():
      for start in range(0, len(validation_labels), batch_size):
        logits = net(validation_images[start : start + batch_size])
        matches = logits.argmax(1) == validation_labels[start : start + batch_size]
        correct += int(matches.sum())
    states[event['evaluation']] = net.state_dict()
    print(f'{genotype}  {correct / len(validation_labels):.4f}', flush=True)


if __name__ == '__main__':
  replay(sys.argv[1], sys.stdin)
