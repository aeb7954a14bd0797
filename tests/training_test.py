import dataclasses
import warnings

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.metrics

from lamarck_jax import genotype as genotype_lib
from lamarck_jax import model, mutation, training
from lamarck_jax.data import datasets, on_device
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Genotype, SearchSpace
from lamarck_jax.runtime import devices

KEY = jax.random.key(0)


def whole_network_losses(
  dataset: datasets.Dataset,
  genotype: Genotype,
  variables: model.Variables,
  batches: list[np.ndarray],
) -> list[float]:
  """Losses of the usual program: one jitted step of the whole network."""
  network = model.ConvNet(genotype, dataset.num_classes)
  optimizer = optax.adam(1e-3)
  pixels = dataset.train.images.astype(np.float64)
  mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
  images = ((pixels - mean) / std).astype(np.float32)

  @jax.jit
  def step(params, stats, opt_state, x, y):
    def loss_fn(params):
      logits, updated = network.apply(
        {'params': params, 'batch_stats': stats}, x, True, mutable=['batch_stats']
      )
      loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
      return loss, updated['batch_stats']

    (loss, stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradients, opt_state)
    return optax.apply_updates(params, updates), stats, opt_state, loss

  params, stats = variables['params'], variables['batch_stats']
  opt_state = optimizer.init(params)
  losses = []
  for batch in batches:
    params, stats, opt_state, loss = step(
      params, stats, opt_state, images[batch], dataset.train.labels[batch]
    )
    losses.append(float(loss))
  return losses


def random_network(seed: int, num_mutations: int) -> Genotype:
  space = SearchSpace(filters=(4, 8, 16))
  key = jax.random.key(seed)
  genotype = genotype_lib.random_genotype(key, space)
  for index in range(num_mutations):
    genotype = mutation.mutate(jax.random.fold_in(key, index), genotype, space)
  return genotype


@pytest.mark.parametrize('seed', [1, 2])
def test_losses_of_chained_blocks_equal_those_of_the_whole_network(tiny_dataset, seed):
  genotype = random_network(seed, num_mutations=5)
  variables = model.init_variables(KEY, genotype, 1, 3)
  # One step an epoch, so that an epoch's loss is a step's; the rest is dropped.
  trainer = training.Trainer(tiny_dataset, batch_size=40)
  losses: list[float] = []
  trainer.train(
    KEY, genotype, variables, [1e-3] * 20, lambda epoch, loss: losses.append(loss)
  )
  examples = jnp.arange(72, dtype=jnp.int32)
  keys = [jax.random.fold_in(KEY, epoch) for epoch in range(20)]
  batches = [np.asarray(jax.random.permutation(key, examples))[:40] for key in keys]
  expected = whole_network_losses(tiny_dataset, genotype, variables, batches)
  np.testing.assert_allclose(losses, expected, rtol=2e-4, atol=2e-5)


def test_training_overfits_a_single_batch(tiny_dataset):
  genotype = Genotype.parse('8c3 8c3s2')
  trainer = training.Trainer(tiny_dataset, batch_size=72)
  losses: list[float] = []
  trained = trainer.train(
    KEY,
    genotype,
    model.init_variables(KEY, genotype, 1, 3),
    [1e-2] * 120,
    lambda epoch, loss: losses.append(loss),
  )
  assert losses[0] > 0.8
  assert losses[-1] < 0.02
  assert trainer.accuracy(genotype, trained, 'train') == 1


def test_training_leaves_the_parents_variables_as_they_are(tiny_dataset):
  genotype = Genotype.parse('8c3')
  trainer = training.Trainer(tiny_dataset, batch_size=18)
  parent = trainer.train(
    KEY, genotype, model.init_variables(KEY, genotype, 1, 3), [1e-3]
  )
  before = jax.tree.map(np.array, parent)
  child = trainer.train(KEY, genotype, parent, [1e-3])
  jax.tree.map(np.testing.assert_array_equal, parent, before)
  kernel = ('params', 'block_0', 'conv', 'kernel')
  assert np.any(
    np.asarray(traverse_util.flatten_dict(child)[kernel])
    != np.asarray(traverse_util.flatten_dict(parent)[kernel])
  )


def test_training_with_one_key_is_reproducible_and_depends_on_the_key(tiny_dataset):
  genotype = Genotype.parse('8c3')
  variables = model.init_variables(KEY, genotype, 1, 3)
  trainer = training.Trainer(tiny_dataset, batch_size=18)

  def kernel(key):
    trained = trainer.train(key, genotype, variables, [1e-3] * 2)
    return np.asarray(trained['params']['block_0']['conv']['kernel'])

  np.testing.assert_array_equal(kernel(KEY), kernel(KEY))
  assert np.any(kernel(KEY) != kernel(jax.random.key(1)))


def test_learning_rates_are_those_of_each_epoch(tiny_dataset):
  genotype = Genotype.parse('8c3')
  variables = model.init_variables(KEY, genotype, 1, 3)
  trainer = training.Trainer(tiny_dataset, batch_size=72)

  def kernel(rates):
    trained = trainer.train(KEY, genotype, variables, rates)
    return np.asarray(trained['params']['block_0']['conv']['kernel'])

  start = np.asarray(variables['params']['block_0']['conv']['kernel'])
  # Adam's first step is the learning rate in size, whatever the gradient.
  np.testing.assert_allclose(np.abs(kernel([1e-3]) - start).max(), 1e-3, rtol=1e-2)
  np.testing.assert_allclose(np.abs(kernel([1e-5]) - start).max(), 1e-5, rtol=1e-1)
  np.testing.assert_array_equal(kernel([1e-3, 0.0]), kernel([1e-3]))


@pytest.mark.parametrize('batch_size', [2, 10, 64])
def test_evaluation_counts_every_example_once(tiny_dataset, batch_size):
  genotype = Genotype.parse('8c3 4c1s2')
  trainer = training.Trainer(tiny_dataset, batch_size=batch_size)
  variables = trainer.train(
    KEY, genotype, model.init_variables(KEY, genotype, 1, 3), [1e-2]
  )
  pixels = tiny_dataset.train.images.astype(np.float64)
  network = model.ConvNet(genotype, 3)
  apply = jax.jit(network.apply)
  for split in ('train', 'validation', 'test'):
    examples = getattr(tiny_dataset, split)
    images = (examples.images - pixels.mean()) / pixels.std()
    logits = apply(variables, jnp.asarray(images, jnp.float32))
    predicted = np.asarray(logits).argmax(-1)
    correct = predicted == examples.labels
    assert trainer.accuracy(genotype, variables, split) == correct.mean()
    np.testing.assert_array_equal(
      trainer.confusion(genotype, variables, split),
      sklearn.metrics.confusion_matrix(examples.labels, predicted, labels=range(3)),
    )


def test_balanced_class_weights_weigh_every_class_the_same(tiny_dataset):
  train = tiny_dataset.train
  kept = np.flatnonzero((train.labels != 1) | (np.arange(len(train.labels)) < 12))
  rare = datasets.Split(train.images[kept], train.labels[kept])
  counts = np.bincount(rare.labels)
  assert counts[1] < counts.min(where=[True, False, True], initial=99) / 2
  dataset = dataclasses.replace(tiny_dataset, train=rare)
  batch_size = len(rare.labels)
  losses = {}
  genotype = Genotype((genotype_lib.Block(4, 3, 1),))
  variables = model.init_variables(KEY, genotype, 1, 3)
  for class_weights in ('none', 'balanced'):
    trainer = training.Trainer(
      dataset, batch_size=batch_size, class_weights=class_weights
    )
    state = trainer.initial_state(genotype, variables)
    _, losses[class_weights] = trainer.train_epoch(KEY, genotype, state, 0, 1e-3)

  pixels = rare.images.astype(np.float64)
  images = jnp.asarray((pixels - pixels.mean()) / pixels.std(), jnp.float32)
  logits, _ = model.ConvNet(genotype, 3).apply(
    variables, images, train=True, mutable=['batch_stats']
  )
  each = optax.softmax_cross_entropy_with_integer_labels(logits, rare.labels)
  by_class = [float(each[rare.labels == label].mean()) for label in range(3)]
  assert losses['none'] == pytest.approx(float(each.mean()), rel=1e-4)
  assert losses['balanced'] == pytest.approx(np.mean(by_class), rel=1e-4)


def test_a_class_without_training_examples_cannot_be_weighted(tiny_dataset):
  names = (*tiny_dataset.class_names, 'none of it')
  dataset = dataclasses.replace(tiny_dataset, class_names=names)
  with pytest.raises(UserError, match=r"class_weights: .*'none of it'"):
    training.Trainer(dataset, batch_size=24, class_weights='balanced')


def test_an_epoch_is_a_fresh_permutation_and_drops_the_remainder(tiny_dataset):
  orders = [
    np.asarray(
      on_device.epoch_order(
        jax.random.fold_in(KEY, epoch), num_examples=72, shape=(4, 20)
      )
    )
    for epoch in range(2)
  ]
  for order in orders:
    assert sorted(order.ravel()[:72]) == list(range(72))
  assert np.any(orders[0] != orders[1])
  trainer = training.Trainer(tiny_dataset, batch_size=20)
  assert trainer.steps_per_epoch == 3
  assert trainer.examples_per_epoch == 60


def test_bfloat16_trains_and_keeps_float32_parameters(tiny_dataset):
  genotype = Genotype.parse('8c3 8c3s2')
  trainer = training.Trainer(tiny_dataset, batch_size=36, compute_dtype='bfloat16')
  variables = model.init_variables(KEY, genotype, 1, 3)
  losses: list[float] = []
  trained = trainer.train(
    KEY, genotype, variables, [1e-2] * 10, lambda epoch, loss: losses.append(loss)
  )
  assert losses[-1] < losses[0] / 2
  assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype('float32')}
  # A step that bfloat16 would round away.
  trained = trainer.train(KEY, genotype, variables, [1e-5])
  change = abs(trained['params']['block_0']['norm']['scale'] - 1)
  assert 0 < change.max() < jnp.finfo(jnp.bfloat16).eps / 2


def test_programs_are_compiled_once_and_without_warnings(tiny_dataset):
  genotype = Genotype.parse('4c5 4c5')
  trainer = training.Trainer(tiny_dataset, batch_size=24)
  variables = model.init_variables(KEY, genotype, 1, 3)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    trainer.compile(genotype)
    assert trainer.programs.num_compiled == 3  # Two blocks and the classifier.
    trained = trainer.train(KEY, genotype, variables, [1e-3])
    trainer.accuracy(genotype, trained, 'validation')
  assert trainer.programs.num_compiled == 3


def test_a_mutation_compiles_the_blocks_that_it_changes(tiny_dataset):
  trainer = training.Trainer(tiny_dataset, batch_size=24)
  trainer.compile(Genotype.parse('4c3 8c1 4c1'))
  trainer.compile(Genotype.parse('4c3 8c3 4c1'))
  assert trainer.programs.num_compiled == 4 + 1


@pytest.mark.skipif(
  jax.default_backend() != 'cpu' or devices.num_cores() < 2,
  reason='needs a core that training leaves idle',
)
def test_what_is_compiled_ahead_need_not_be_compiled_again(tiny_dataset):
  # Batches of 24 small images are trained on one core.
  trainer = training.Trainer(tiny_dataset, batch_size=24)
  genotypes = [Genotype.parse('8c3'), Genotype.parse('4c1')]
  trainer.compile_ahead(genotypes)
  assert trainer.programs.num_compiled == 4
  for genotype in genotypes:
    trainer.compile(genotype)
  assert trainer.programs.num_compiled == 4


def test_nothing_is_compiled_ahead_where_all_cores_train(tiny_dataset, monkeypatch):
  monkeypatch.setattr(devices, 'num_cores', lambda: 1)
  trainer = training.Trainer(tiny_dataset, batch_size=24)
  trainer.compile_ahead([Genotype.parse('8c3')])
  assert trainer.programs.num_compiled == 0
