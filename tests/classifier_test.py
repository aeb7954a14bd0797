"""`lamarck_jax.fit`: arrays in, a classifier out; it resumes, and refuses bad input."""

import json

import numpy as np
import pytest

from configs import own_images
import lamarck_jax
from lamarck_jax import classifier, search
from lamarck_jax.data import arrays
from lamarck_jax.errors import UserError
from lamarck_jax.run_directory import progress
from tests import conftest

_FIELDS = {
  'budget_epochs': 3,
  'epochs_per_evaluation': 1,
  'batch_size': 16,
  'search_space': {'filters': [4, 8], 'kernel_sizes': [3], 'strides': (1,)},
  'completion': {'epochs': (20,), 'learning_rates': (1e-2,)},
}


def _examples(names=('ant', 'bee', 'cat'), count=120, seed=0):
  """Noisy images of classes that a small network can tell apart, and their labels."""
  rng = np.random.default_rng(seed)
  prototypes = np.random.default_rng(0).integers(0, 256, (len(names), 8, 8))
  indices = np.arange(count) % len(names)
  images = prototypes[indices] + rng.normal(scale=40, size=(count, 8, 8))
  return np.clip(images, 0, 255).astype(np.uint8), np.array(names)[indices]


def _fit(workdir, *examples, **options):
  """A search of three evaluations, with other images for the test."""
  test_images, test_labels = _examples(count=30, seed=1)
  options = {'test_images': test_images, 'test_labels': test_labels, **options}
  images, labels = examples or _examples()
  return lamarck_jax.fit(images, labels, workdir=workdir, **{**_FIELDS, **options})


@pytest.fixture(scope='module')
def fitted(tmp_path_factory, shared_compilation_cache):
  return _fit(tmp_path_factory.mktemp('fitted') / 'run')


def test_the_accuracy_is_that_of_the_labels_predicted_for_the_test_images(fitted):
  images, labels = _examples(count=30, seed=1)
  predicted = fitted.predict(images)
  assert set(predicted) <= {'ant', 'bee', 'cat'}
  assert np.mean(predicted == labels) == pytest.approx(fitted.accuracy)
  assert fitted.accuracy > 0.5  # Guessing gives a third.
  assert 0 <= fitted.validation_accuracy <= 1


def test_the_exported_network_has_the_probabilities_of_the_classifier(fitted, tmp_path):
  images, _ = _examples(count=70, seed=2)
  network = lamarck_jax.load(fitted.export(tmp_path / 'network'))
  assert network.class_names == ('ant', 'bee', 'cat')
  assert network.genotype == fitted.genotype
  probabilities = fitted.predict_proba(images)
  assert probabilities.shape == (70, 3)
  np.testing.assert_allclose(probabilities, network(images[..., None]), atol=1e-5)
  np.testing.assert_allclose(probabilities[5:6], fitted.predict_proba(images[5:6]))
  np.testing.assert_allclose(probabilities, fitted.predict_proba(images / 255))


def test_a_classifier_is_shown_with_its_network_and_its_report(fitted):
  assert str(fitted.genotype) in fitted._repr_html_()
  assert str(fitted.workdir) in repr(fitted)
  assert 'balanced' not in repr(fitted)
  assert fitted.report() == fitted.workdir / 'report.html'
  assert fitted.report().stat().st_size > 10**6


def test_one_image_alone_is_not_taken_for_gray_images_of_a_column(tmp_path):
  found = _fit(tmp_path / 'run', dataset={'image_size': 16}, parsimony=1.0)
  images, _ = _examples(count=2)
  assert found.predict(images[:1]).shape == (1,)
  for channels in (1, 3):
    image = np.repeat(images[0][..., None], channels, axis=-1)
    with pytest.raises(
      UserError, match=r'^images: got .* want one image as image\[np.newaxis\]'
    ):
      found.predict(image)
  assert 'validation accuracy of the selected network: ' in repr(found)


@pytest.mark.parametrize(
  ('fields', 'named'),
  [
    ({'population': {'size': 4}}, 'config.population.size'),
    ({'inheritance_noise': 0.5}, 'config.inheritance_noise'),
    ({'checkpoint_epochs': (100,)}, 'config.checkpoint_epochs'),
    ({'dataset': {'name': 'digits'}}, 'dataset.name'),
  ],
)
def test_a_value_without_an_effect_is_refused(tmp_path, fields, named):
  with pytest.raises(UserError, match=f'^{named}: got '):
    _fit(tmp_path / 'run', **fields)
  assert not (tmp_path / 'run').exists()


def test_a_range_is_a_value_of_a_field(tmp_path):
  space = {'filters': range(4, 9, 4), 'kernel_sizes': [3], 'strides': (1,)}
  found = _fit(tmp_path / 'run', search_space=space)
  assert found.genotype.blocks


def test_a_balanced_fitness_is_named_wherever_it_is_shown(tmp_path):
  images, labels = _examples(('ant', 'ant', 'ant', 'bee', 'cat'))
  found = _fit(tmp_path / 'run', images, labels, fitness='balanced_accuracy')
  checkpoint = found.result['checkpoints'][-1]
  assert found.balanced_accuracy == checkpoint['test_balanced_accuracy']
  balanced = f'balanced test accuracy{{}}{found.balanced_accuracy:.4f}'
  fitness = f'balanced validation accuracy{{}}{found.validation_accuracy:.4f}'
  assert balanced.format(': ') in repr(found)
  assert f'best {fitness.format(": ")}' in repr(found)
  readme = (found.export(tmp_path / 'network') / 'README.md').read_text()
  assert balanced.format(' ') in readme
  (_, _), *lines = progress.result_lines(found.result, found.fitness, parsimony=False)
  printed = [f'{name}:{value.split()[0]}' for name, value in lines]
  assert printed == [
    fitness.format(':'),
    f'test accuracy:{found.accuracy:.4f}',
    balanced.format(':'),
  ]


def test_a_stopped_search_is_resumed_by_the_same_call(fitted, tmp_path, capsys):
  def interrupt(event):
    if event['evaluation'] == 1:
      raise KeyboardInterrupt

  workdir = tmp_path / 'run'
  with pytest.raises(KeyboardInterrupt) as caught:
    _fit(workdir, on_event=interrupt)
  assert caught.value.__notes__ == [f'stopped; the same call resumes {workdir}']
  images, labels = _examples(seed=3)
  with pytest.raises(UserError, match='got arrays with other labels or images'):
    _fit(workdir, images, labels)
  capsys.readouterr()
  _fit(workdir, progress=False)
  assert capsys.readouterr().err == ''
  assert conftest.read_events(workdir) == conftest.read_events(fitted.workdir)


def test_a_finished_search_is_returned_at_once_for_the_same_arrays_alone(fitted):
  again = _fit(fitted.workdir, on_event=pytest.fail)
  assert again.result == fitted.result
  images, labels = _examples()
  with pytest.raises(UserError, match='got arrays with other labels'):
    _fit(fitted.workdir, images, np.roll(labels, 1))
  with pytest.raises(UserError, match='config of its run differs in seed'):
    _fit(fitted.workdir, seed=1)


def test_without_the_arrays_a_search_that_was_stopped_says_what_it_needs(
  fitted, tmp_path
):
  with pytest.raises(UserError, match=r'^dataset.name: .*call lamarck_jax.fit with'):
    config = classifier._config(None, _FIELDS)
    search.run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_the_same_images_in_an_npz_file_give_the_same_search(fitted, tmp_path):
  arrays_by_name = {}
  for split, (images, labels) in (
    ('train', _examples()),
    ('test', _examples(count=30, seed=1)),
  ):
    indices = np.searchsorted(fitted.classes, labels)
    arrays_by_name |= {f'x_{split}': images, f'y_{split}': indices}
  np.savez(tmp_path / 'a.npz', class_names=fitted.classes, **arrays_by_name)
  config = classifier._config(None, _FIELDS)
  config.dataset.name = f'npz:{tmp_path}/a.npz'
  search.run(config, tmp_path / 'run')
  for event, other in zip(
    conftest.read_events(fitted.workdir),
    conftest.read_events(tmp_path / 'run'),
    strict=True,
  ):
    for field in ('genotype', 'fitness', 'weights_sha256'):
      assert event[field] == other[field]


def test_every_other_call_has_a_directory_of_its_own():
  def digest(*given, **fields):
    config = classifier._config(None, fields)
    return classifier._digest(config, arrays.source(*given)[0])

  images, labels = _examples()
  digests = [
    digest(images, labels),
    digest(images, labels, seed=1),
    digest(images, np.roll(labels, 1)),
    digest(images, np.char.upper(labels)),
    digest(images[::-1], labels[::-1]),
    digest(images, labels, images[:9], labels[:9]),
  ]
  assert len({*digests}) == 6
  assert digest(list(images), list(labels)) == digests[0]


def test_labels_may_be_any_integers_or_strings():
  images, _ = _examples()
  for labels, names in (
    ([7, -1] * 60, ('-1', '7')),
    ([True, False] * 60, ('False', 'True')),
    (np.array(['b', 'a'] * 60, object), ('a', 'b')),
    (np.array([[3], [5]] * 60, np.uint8), ('3', '5')),
  ):
    source, classes = arrays.source(images, labels)
    assert source.class_names == names
    assert [*classes[source.train.labels]] == [*np.asarray(labels).reshape(-1)]


def test_integers_and_floats_are_the_same_pixels_as_uint8():
  images, _ = _examples()
  for same in (images.astype(np.int64), images / 255, (images / 255).astype('f4')):
    assert np.array_equal(arrays.pixels('images', same), images[..., np.newaxis])


def test_the_fields_of_a_call_win_over_those_of_a_configuration():
  config = classifier._config(None, {'setting': 'baseline_2', 'batch_size': 8})
  assert config.inheritance == 'none'
  assert config.epochs_per_evaluation == 16
  assert config.checkpoint_epochs == (64,)
  changed = classifier._config(config, {'setting': 'net2net', 'budget_epochs': 96})
  assert changed.inheritance == 'net2net'
  assert changed.checkpoint_epochs == (96,)
  assert changed.batch_size == 8
  assert config.inheritance == 'none'


def test_the_defaults_are_those_of_the_configuration_for_own_images():
  config = own_images.get_config()
  config.dataset = classifier._config(None, {}).dataset
  assert config.to_dict() == classifier._config(None, {}).to_dict()


_IMAGES, _LABELS = _examples(count=60)
_BAD = {
  'flat images': (
    (_IMAGES.reshape(60, -1), _LABELS),
    'images: got uint8 [60, 64], want [num_examples, height',
  ),
  'text': (
    ('images', _LABELS),
    'images: got <U6 [], want uint8, other integers from 0 to 255, or',
  ),
  'no images': ((_IMAGES[:0], _LABELS[:0]), 'images: got no images, want at least one'),
  'images of several sizes': (
    ([_IMAGES[0], _IMAGES[1, 1:]], _LABELS[:2]),
    'images: got setting an array element',
  ),
  'NaN': ((_IMAGES * np.nan, _LABELS), 'images: got float64 from nan to nan'),
  'large floats': ((_IMAGES * 1.0, _LABELS), 'images: got float64 from 0 to 255'),
  'negative': ((_IMAGES - 99.0, _LABELS), 'images: got float64 from -99 to'),
  'small images': ((_IMAGES[:, :7], _LABELS), 'images: got images of 7x8x1, want 8'),
  'channels first': (
    (_IMAGES[:, np.newaxis], _LABELS),
    'images: got images of 1x8x8, want channels last, height x width x channels',
  ),
  'many channels': (
    (_IMAGES[..., np.newaxis].repeat(4, axis=-1), _LABELS),
    'images: got images of 8x8x4, want 1 or 3 channels',
  ),
  'booleans': (
    (_IMAGES > 99, _LABELS),
    'images: got bool [60, 8, 8], want uint8, other integers',
  ),
  'fewer labels': ((_IMAGES, _LABELS[1:]), 'labels: got <U3 [59], want 60 integers'),
  'one-hot': ((_IMAGES, np.eye(60)), 'labels: got float64 [60, 60], want 60'),
  'None as a label': ((_IMAGES, [None] * 60), 'labels: got object [60], want 60'),
  'an empty label': ((_IMAGES, [''] * 60), 'labels: got an empty string at 0'),
  'one class': ((_IMAGES, [1] * 60), 'arrays: got 1 class, want at least 2'),
  'a rare class': (
    (_IMAGES, ['a', *'b' * 59]),
    "arrays: class 'a': got 1 training images, want at least 3",
  ),
}
_BAD_OPTIONS = {
  'test images alone': ({'test_images': _IMAGES}, 'test_labels: got none beside'),
  'test labels alone': ({'test_labels': _LABELS}, 'test_images: got none beside'),
  'unknown test label': (
    {'test_images': _IMAGES, 'test_labels': ['dog'] * 60},
    'test_labels: got dog, of which there are no training images',
  ),
  'numbers for names': (
    {'test_images': _IMAGES, 'test_labels': [1] * 60},
    'test_labels: got int64, want',
  ),
  'test images of another size': (
    {'test_images': np.pad(_IMAGES, 1)[:60], 'test_labels': _LABELS},
    'arrays: got test images of 10x10x1, want the 8x8x1',
  ),
  'an unknown field': ({'epochs': 3}, 'epochs: got no field of the configuration'),
  'a field without its section': (
    {'image_size': 9},
    'image_size: got no field of the configuration, want one such as'
    ' dataset.image_size',
  ),
  'a value of another type': (
    {'budget_epochs': '9'},
    "config.budget_epochs: got '9', want an integer",
  ),
  'a budget below an evaluation': (
    {'budget_epochs': 3},
    'config.epochs_per_evaluation: got 4, want an integer from 1 to'
    ' config.budget_epochs, 3',
  ),
  'a section without its field': ({'completion': 3}, 'completion: got no field'),
  'an unknown setting': ({'setting': 'x'}, "config: got setting 'x', want one of"),
  'settings': ({'setting': ['x']}, "setting: got ['x'], want the name of one"),
  'a configuration that is none': ({'config': {}}, 'config: got dict, want'),
  'a large batch': ({'batch_size': 99}, 'config.batch_size: got 99, want at most'),
  'a size of no images': (
    {'dataset': {'image_size': 7}},
    'dataset.image_size: got 7, want 8 to 256 pixels',
  ),
  'a URL': ({'workdir': 'gs://bucket/run'}, "workdir: got 'gs://bucket/run', want"),
}


def _refused(message, *examples, **options):
  with pytest.raises(lamarck_jax.UserError) as caught:
    lamarck_jax.fit(*examples, **options)
  assert str(caught.value).startswith(message)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', _BAD)
def test_bad_arrays_are_refused_in_one_line(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  examples, message = _BAD[name]
  _refused(message, *examples)
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('name', _BAD_OPTIONS)
def test_bad_options_are_refused_in_one_line(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  options, message = _BAD_OPTIONS[name]
  _refused(message, _IMAGES, _LABELS, **options)
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
  'images, message',
  [
    (_IMAGES[:, 1:, 1:], 'images: got images of 7x7x1, want 8x8x1'),
    (_IMAGES[0], 'images: got uint8 [8, 8], want [num_examples'),
    (_IMAGES * 1.0, 'images: got float64 from 0 to 255, want'),
  ],
)
def test_images_that_the_network_does_not_take_are_refused(fitted, images, message):
  with pytest.raises(lamarck_jax.DatasetError) as caught:
    fitted.predict(images)
  assert str(caught.value).startswith(message)


def test_images_are_resized_for_prediction_as_they_were_for_training(fitted, tmp_path):
  def enlarged(images):
    return images.repeat(2, axis=1).repeat(2, axis=2)

  images, labels = _examples()
  test_images, _ = _examples(count=30, seed=1)
  resizing = _fit(
    tmp_path / 'run',
    enlarged(images),
    labels,
    test_images=enlarged(test_images),
    dataset={'image_size': 8},
  )
  record = json.loads((tmp_path / 'run' / 'dataset.json').read_text())
  assert record['image_shape'] == [8, 8, 1]
  probabilities = resizing.network(images[..., np.newaxis])
  found = resizing.predict_proba(enlarged(images))
  np.testing.assert_allclose(found, probabilities, atol=1e-6)
