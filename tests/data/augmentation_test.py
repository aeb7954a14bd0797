"""Training images are flipped and shifted as configured; nothing else is."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lamarck_jax import activations, model, training
from lamarck_jax.data import datasets, on_device
from lamarck_jax.data.augmentation import NO_AUGMENTATION, Augmentation
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Genotype
from tests.conftest import run_program

KEY = jax.random.key(5)
NETWORK = Genotype.parse('4c3')


def random_images(count, height, width, channels):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (count, height, width, channels)).astype(np.uint8)


def variants(image, augmentation):
  """All equally likely results for one image, by NumPy's reflection."""
  shift = augmentation.shift
  height, width, _ = image.shape
  results = []
  for flipped in range(1 + augmentation.flip):
    mirrored = image[:, ::-1] if flipped else image
    padded = np.pad(mirrored, ((shift, shift), (shift, shift), (0, 0)), 'reflect')
    for row, column in itertools.product(range(2 * shift + 1), repeat=2):
      results.append(padded[row : row + height, column : column + width])
  return results


def which(batch, images, augmentation):
  """Index of each image of a batch among its variants."""
  found = []
  for result, image in zip(np.asarray(batch), images, strict=True):
    candidates = list(map(bytes, variants(image, augmentation)))
    assert candidates.count(bytes(result)) == 1
    found.append(candidates.index(bytes(result)))
  return found


@pytest.mark.parametrize(
  ('augmentation', 'shape'),
  [
    (Augmentation(flip=True), (8, 8, 1)),
    (Augmentation(shift=1), (8, 8, 3)),
    (Augmentation(flip=True, shift=2), (7, 5, 3)),
    (Augmentation(flip=True, shift=3), (4, 9, 1)),  # As far as it can reflect.
    (NO_AUGMENTATION, (3, 2, 1)),
  ],
  ids=str,
)
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_the_variants_of_an_image_are_its_flips_and_shifts(augmentation, shape, dtype):
  images = random_images(3, *shape).astype(dtype)
  expected = variants(images[1], augmentation)
  count = augmentation.num_variants
  assert count == len(expected)
  indices = jnp.full(count, 1)
  batch = augmentation.gather(jnp.asarray(images), indices, jnp.arange(count))
  assert batch.dtype == dtype
  # Some are equal where a shift makes rows of the image symmetric.
  assert sorted(map(bytes, np.asarray(batch))) == sorted(map(bytes, expected))
  np.testing.assert_array_equal(batch[augmentation.identity], images[1])


def test_every_flip_and_every_shift_is_equally_likely():
  augmentation = Augmentation(flip=True, shift=1)
  draws = np.asarray(augmentation.draw(KEY, (40, 128)))
  images = random_images(128, 6, 5, 1)
  gather = jax.jit(augmentation.gather)
  found = [
    which(gather(images, np.arange(128), step), images, augmentation) for step in draws
  ]
  flips, rows, columns = np.unravel_index(found, (2, 3, 3))
  for counts in (
    np.bincount(np.ravel(found), minlength=18),
    np.bincount(flips.ravel(), minlength=2),
    np.bincount(rows.ravel(), minlength=3),
    np.bincount(columns.ravel(), minlength=3),
  ):
    assert stats.chisquare(counts).pvalue > 1e-3
  # Neighbours in a batch, and successive steps, are independent.
  for one, other in ((flips[:, ::2], flips[:, 1::2]), (flips[::2], flips[1::2])):
    pairs = np.histogram2d(one.ravel(), other.ravel(), bins=2)[0]
    assert stats.chi2_contingency(pairs).pvalue > 1e-3


@pytest.mark.parametrize(('height', 'width'), [(4, 9), (9, 4)])
def test_a_shift_that_cannot_be_reflected_is_refused_in_one_line(height, width):
  split = datasets.Split(random_images(2, height, width, 1), np.zeros(2, np.int32))
  dataset = datasets.Dataset('small', split, split, split, ('a', 'b'))
  training.Trainer(dataset, batch_size=2, augmentation=Augmentation(shift=3))
  with pytest.raises(UserError) as error:
    training.Trainer(dataset, batch_size=2, augmentation=Augmentation(shift=4))
  assert str(error.value) == (
    'config.augmentation.shift: got 4, want less than the side of the images, 4'
  )


# ------------------------------------------------------------------------------
# In training
# ------------------------------------------------------------------------------


def batches(data, key, dtype=jnp.float32, train=True):
  """The batches of a pass in training, or of one without a key in evaluation."""
  order = data.shuffled(key) if train else data.in_order('train')
  images = jax.jit(lambda images: images.batch(dtype))
  labels = jax.jit(lambda targets: targets.batch())
  for index in range(3):
    step = data.put(np.int32(index))
    with jax.set_mesh(data.mesh):
      x, y = images(data.images(order, step)), labels(data.targets(order, step))
    yield np.asarray(x), np.asarray(y), np.asarray(order.examples[index])


def test_batches_of_a_pass_are_the_same_examples_augmented(tiny_dataset):
  augmentation = Augmentation(flip=True, shift=1)
  data = on_device.DeviceData(tiny_dataset, 24, augmentation)
  plain = on_device.DeviceData(tiny_dataset, 24, NO_AUGMENTATION)
  mean, std = datasets.channel_statistics(tiny_dataset.train.images)
  draws = []
  for (x, y, examples), (_, plain_y, plain_examples) in zip(
    batches(data, KEY), batches(plain, KEY), strict=True
  ):
    np.testing.assert_array_equal(examples, plain_examples)
    np.testing.assert_array_equal(y, plain_y)
    np.testing.assert_array_equal(y, tiny_dataset.train.labels[examples])
    pixels = np.rint(x * std + mean).astype(np.uint8)
    draws.append(which(pixels, tiny_dataset.train.images[examples], augmentation))
  assert draws[0] != draws[1] != draws[2]  # Every step draws anew.


def test_one_key_gives_one_pass_and_another_epochs_key_another(tiny_dataset):
  data = on_device.DeviceData(tiny_dataset, 24, Augmentation(flip=True, shift=2))
  first, again = (list(batches(data, KEY)) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  one, other = (data.shuffled(jax.random.key(seed)).variants for seed in (5, 6))
  assert np.mean(np.asarray(one) == np.asarray(other)) < 0.2


def test_evaluation_sees_the_images_as_they_are(tiny_dataset):
  augmented = on_device.DeviceData(tiny_dataset, 24, Augmentation(flip=True, shift=2))
  plain = on_device.DeviceData(tiny_dataset, 24, NO_AUGMENTATION)
  jax.tree.map(
    np.testing.assert_array_equal,
    list(batches(augmented, KEY, train=False)),
    list(batches(plain, KEY, train=False)),
  )
  variables = model.init_variables(KEY, NETWORK, 1, 3)
  counts = [
    training.Trainer(tiny_dataset, batch_size=24, augmentation=setting).confusion(
      NETWORK, variables, 'train'
    )
    for setting in (Augmentation(flip=True, shift=2), NO_AUGMENTATION)
  ]
  np.testing.assert_array_equal(*counts)


def test_the_statistics_of_a_crossover_are_of_the_images_as_they_are(tiny_dataset):
  variables = model.init_variables(KEY, NETWORK, 1, 3)
  found = [
    activations.batch_statistics(
      training.Trainer(tiny_dataset, batch_size=24, augmentation=setting),
      NETWORK,
      variables,
      [0, 1],
    )
    for setting in (Augmentation(flip=True, shift=3), NO_AUGMENTATION)
  ]
  jax.tree.map(np.testing.assert_array_equal, *found)


def test_augmented_batches_have_the_computations_dtype(tiny_dataset):
  data = on_device.DeviceData(tiny_dataset, 24, Augmentation(shift=1))
  x, _, _ = next(batches(data, KEY, jnp.bfloat16))
  assert x.dtype == jnp.bfloat16
  assert x.shape == (24, 8, 8, 1)


def test_training_is_augmented_only_where_it_is_asked_for(tiny_dataset):
  variables = model.init_variables(KEY, NETWORK, 1, 3)

  def kernel(**settings):
    trainer = training.Trainer(tiny_dataset, batch_size=24, **settings)
    trained = trainer.train(KEY, NETWORK, variables, [1e-3] * 2)
    return np.asarray(trained['params']['block_0']['conv']['kernel'])

  plain = kernel()
  np.testing.assert_array_equal(plain, kernel(augmentation=Augmentation()))
  assert np.any(plain != kernel(augmentation=Augmentation(flip=True)))
  assert np.any(plain != kernel(augmentation=Augmentation(shift=1)))


@pytest.mark.slow
def test_devices_that_share_a_batch_draw_what_one_draws(shared_compilation_cache):
  program = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from lamarck_jax import model, training
from lamarck_jax.data import datasets, on_device
from lamarck_jax.data.augmentation import Augmentation
from lamarck_jax.genotype import Genotype
from lamarck_jax.runtime import compilation_cache

compilation_cache.enable(sys.argv[1])
rng = np.random.default_rng(0)
labels = rng.integers(3, size=300).astype(np.int32)
images = rng.integers(0, 256, (300, 11, 9, 3)).astype(np.uint8)
split = datasets.Split(images, labels)
dataset = datasets.Dataset('random', split, split, split, ('a', 'b', 'c'))
genotype = Genotype.parse('4c3')
augmentation = Augmentation(flip=True, shift=2)
trainer = training.Trainer(dataset, batch_size=96, augmentation=augmentation)
data = on_device.DeviceData(dataset, 96, augmentation)
order = data.shuffled(jax.random.key(1))
with jax.set_mesh(data.mesh):
  batch = jax.jit(lambda x: x.batch(jnp.float32))
  x = batch(data.images(order, data.put(np.int32(2))))
losses = []
trainer.train(
  jax.random.key(2), genotype, model.init_variables(jax.random.key(1), genotype, 3, 3),
  [1e-3] * 2, lambda epoch, loss: losses.append(loss),
)
digest = (np.asarray(x, np.float64) * np.arange(1, x.size + 1).reshape(x.shape)).sum()
print(json.dumps([data.mesh.size, digest, losses]))
"""
  single, shared = (
    json.loads(
      run_program(
        program, str(shared_compilation_cache), JAX_NUM_CPU_DEVICES=n, PJRT_NPROC='2'
      )
    )
    for n in ('1', '2')
  )
  assert (single[0], shared[0]) == (1, 2)
  assert shared[1] == pytest.approx(single[1], rel=1e-9)
  assert shared[2] == pytest.approx(single[2], rel=1e-3)
