"""Writes CIFAR-10 as a folder of photographs whose classes are out of balance.

  python -m benchmarks.unbalanced_images DIR [--data_dir=TFDS] [--images=2000]

DIR/train/<class>/*.png has the number of images, and DIR/test/<class>/*.png as many of
CIFAR-10's test images as there are in the same proportions. The most frequent class has
ten times as many images as the rarest, and the counts between them fall
geometrically. Which class is rare, and which images are taken, follows from the seed.
"""

import argparse
import pathlib

import numpy as np
from PIL import Image

from benchmarks import common
from lamarck_jax.data import datasets
from lamarck_jax.data.source import Split

RATIO = 10
SEED = 0


def class_sizes(num_classes: int, total: int) -> np.ndarray:
  """Returns the number of images of each class, the most frequent first.

  They fall geometrically from the first class to the last, by `RATIO` in all, and add
  up to the total.
  """
  shares = RATIO ** -np.linspace(0, 1, num_classes)
  sizes = np.floor(total * shares / shares.sum()).astype(int)
  sizes[: total - sizes.sum()] += 1
  return sizes


def largest_total(available: int, num_classes: int) -> int:
  """Returns how many images there can be if no class has more than are available."""
  shares = RATIO ** -np.linspace(0, 1, num_classes)
  return int(available * shares.sum())


def choose(
  rng: np.random.Generator, labels: np.ndarray, classes: np.ndarray, total: int
) -> np.ndarray:
  """Returns the indices of random examples, whose classes are out of balance.

  Args:
    labels: The class of each example.
    classes: All classes, the most frequent first.
    total: How many examples to take.
  """
  taken = [
    rng.choice(np.flatnonzero(labels == one), size=size, replace=False)
    for one, size in zip(classes, class_sizes(len(classes), total))
  ]
  return np.sort(np.concatenate(taken))


def write(
  root: pathlib.Path, split: Split, indices: np.ndarray, names: tuple[str, ...]
) -> None:
  """Writes one PNG file for each example, in the folder of its class."""
  for index in indices:
    folder = root / names[split.labels[index]]
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(split.images[index]).save(folder / f'{index:05d}.png')


def main() -> None:
  """Writes the folder, and prints how many images each class has."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
  parser.add_argument('directory', type=common.path, help='A new folder.')
  parser.add_argument('--data_dir', type=common.path, help="TFDS's data folder.")
  parser.add_argument('--images', type=int, default=2_000, help='For training.')
  args = parser.parse_args()
  if args.directory.exists():
    parser.error(f'directory: got {args.directory}, which exists, want a new folder')
  data_dir = args.data_dir and str(args.data_dir)
  dataset = datasets.load('cifar10', data_dir=data_dir)
  rng = np.random.default_rng(SEED)
  classes = rng.permutation(dataset.num_classes)
  smallest = int(np.bincount(dataset.test.labels).min())
  totals = args.images, largest_total(smallest, dataset.num_classes)
  for name, split, total in zip(
    ('train', 'test'), (dataset.train, dataset.test), totals
  ):
    indices = choose(rng, split.labels, classes, total)
    write(args.directory / name, split, indices, dataset.class_names)
    counts = np.bincount(split.labels[indices])
    text = ', '.join(f'{dataset.class_names[one]} {counts[one]}' for one in classes)
    print(f'{name}: {len(indices)} images: {text}')


if __name__ == '__main__':
  main()
