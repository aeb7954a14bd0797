"""Reading prepared TFDS data sets of all kinds, without TensorFlow."""

from collections.abc import Iterator
import io
import os
import struct
from typing import Any

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from tests.data.conftest import SIZES, Cached, Place, assert_equal, make_archives


def test_tfrecord_files_are_read_without_tensorflow(cached: Cached) -> None:
  place, dataset, cache_path = cached
  version_dir = cache_path.parent.parent
  builder = tfds.builder('mnist', data_dir=place.data_dir)
  for split in SIZES:
    source = builder.as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    path = version_dir / f'mnist-{split}.array_record-00000-of-00001'
    path.with_name(path.name.replace('array_', 'tf')).write_bytes(
      b''.join(
        struct.pack('<QI', len(record), 0) + record + bytes(4) for record in source
      )
    )
    path.unlink()
  info_path = version_dir / 'dataset_info.json'
  info_path.write_text(info_path.read_text().replace('array_record', 'tfrecord'))

  assert_equal(place.load('mnist'), dataset)

  # Without the cache, the files are read and the damage is noticed.
  cache_path.unlink()
  with (version_dir / 'mnist-train.tfrecord-00000-of-00001').open('r+b') as file:
    file.truncate(1000)
  assert 'got EOFError' in place.error('mnist')


@pytest.mark.parametrize('damage', ['cut', 'missing'])
def test_damaged_prepared_data_is_an_error(damage: str, cached: Cached) -> None:
  place, _, cache_path = cached
  cache_path.unlink()
  record_path = next(cache_path.parent.parent.glob('*train*'))
  if damage == 'cut':
    with record_path.open('r+b') as file:
      file.truncate(record_path.stat().st_size // 2)
  else:
    record_path.unlink()
  assert str(cache_path.parent.parent) in place.error('mnist')


def test_a_folder_that_is_no_data_set_is_an_error(place: Place) -> None:
  _, archives = make_archives('mnist')
  place.put('mnist', archives)
  (place.data_dir / 'mnist' / '3.0.1').mkdir(parents=True)
  assert 'remove that folder' in place.error('mnist')


class LamarckTestImages(tfds.core.GeneratorBasedBuilder):
  """A data set that a test may configure."""

  VERSION = tfds.core.Version('1.0.0')
  image_shape: tuple[int | None, ...] = (None, None, 3)
  label: Any = None
  dtype: Any = np.uint8
  sizes: tuple[tuple[int, int], ...] = ((6, 4),)
  splits: tuple[str, ...] = ('train', 'validation')

  def _info(self) -> Any:
    features = {
      'image': tfds.features.Image(shape=self.image_shape, dtype=self.dtype),
      'label': self.label or tfds.features.ClassLabel(num_classes=3),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    return {split: self._generate_examples() for split in self.splits}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    for index in range(30):
      width, height = self.sizes[index % len(self.sizes)]
      buffer = io.BytesIO()
      channels = self.image_shape[-1]
      mode = {1: 'L', 3: 'RGB', 4: 'RGBA'}[channels or 3]
      if self.dtype == np.uint16:
        image = Image.fromarray(np.full((height, width), 256 * index, np.uint16))
      else:
        image = Image.new(mode, (width, height), color=(index,) * len(mode))
      image.save(buffer, 'PNG')
      yield index, {'image': buffer.getvalue(), 'label': index % 3}


def _prepare_images(
  place: Place, monkeypatch: pytest.MonkeyPatch, **kwargs: Any
) -> str:
  for key, value in kwargs.items():
    monkeypatch.setattr(LamarckTestImages, key, value)
  builder = LamarckTestImages(data_dir=place.data_dir, file_format='array_record')
  builder.download_and_prepare()
  return 'lamarck_test_images'


def test_any_prepared_image_classification_data_set_is_read_by_its_name(
  place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
  name = _prepare_images(place, monkeypatch, image_shape=(4, 6, 3))

  dataset = place.load(name)

  sizes = [len(s.labels) for s in (dataset.train, dataset.validation, dataset.test)]
  assert sizes == [27, 3, 30]
  assert dataset.image_shape == (4, 6, 3)
  assert dataset.class_names == ('0', '1', '2')
  # Every pixel of example i is i, and its label i % 3.
  assert set(dataset.test.images.max(axis=(1, 2, 3)).tolist()) == set(range(30))
  np.testing.assert_array_equal(
    dataset.test.images[:, 0, 0, 0] % 3, dataset.test.labels
  )


def test_a_set_that_is_stored_by_class_is_split_with_all_classes(
  place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
  class LamarckTestSorted(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self) -> Any:
      features = {
        'image': tfds.features.Image(shape=(8, 8, 1)),
        'label': tfds.features.ClassLabel(num_classes=10),
      }
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      return {name: self._generate_examples(seed) for seed, name in enumerate(SIZES)}

    def _generate_examples(self, seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
      shape = (200, 8, 8, 1)
      images = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
      for index, image in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0]).save(buffer, 'PNG')
        yield index, {'image': buffer.getvalue(), 'label': index // 20}

  LamarckTestSorted(
    data_dir=place.data_dir, file_format='array_record'
  ).download_and_prepare()
  for kwargs, sizes in (
    ({}, (18, 2)),
    ({'num_train': 30, 'num_validation': 50}, (3, 5)),
  ):
    dataset = place.load('lamarck_test_sorted', **kwargs)
    assert np.bincount(dataset.train.labels).tolist() == [sizes[0]] * 10
    assert np.bincount(dataset.validation.labels).tolist() == [sizes[1]] * 10
    assert np.bincount(dataset.test.labels).tolist() == [20] * 10


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_images_are_decoded_as_those_of_a_folder(
  dtype: Any, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
  channels = 4 if dtype == np.uint8 else 1
  name = _prepare_images(place, monkeypatch, image_shape=(4, 6, channels), dtype=dtype)
  values = place.load(name).test.images[:, 0, 0].tolist()
  index = np.arange(30)
  if dtype == np.uint8:  # Of color and alpha i, on white.
    expected = np.rint(255 + (index - 255) * index / 255)
    np.testing.assert_allclose(
      sorted(values), sorted([value] * 3 for value in expected), atol=1
    )
  else:
    assert sorted(values) == [[value] for value in index]


def test_litter_beside_prepared_data_changes_nothing_and_a_pipe_is_refused(
  cached: Cached,
) -> None:
  place, dataset, _ = cached
  version_dir = place.version_dir('mnist')
  for folder in (place.data_dir, version_dir.parent, version_dir):
    (folder / '.DS_Store').write_bytes(b'litter')
    (folder / '._3.0.1').write_bytes(b'litter')
    for name in ('@eaDir', '__MACOSX', '.ipynb_checkpoints'):
      (folder / name).mkdir()
  assert_equal(place.load('mnist'), dataset)
  for path in sorted(version_dir.iterdir()):
    if path.is_file() and not path.name.startswith('.'):
      content = path.read_bytes()
      path.unlink()
      os.mkfifo(path)
      assert f'{path}: got Not a regular file' in place.error('mnist')
      path.unlink()
      path.write_bytes(content)
  assert_equal(place.load('mnist'), dataset)


def test_images_of_different_sizes_need_an_image_size(
  place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
  name = _prepare_images(place, monkeypatch, sizes=((6, 4), (3, 9)))
  assert 'dataset.image_size: got None' in place.error(name)
  assert place.load(name, image_size=5).image_shape == (5, 5, 3)


@pytest.mark.parametrize(
  ('kwargs', 'wanted'),
  [
    ({'label': tfds.features.Scalar(np.int64)}, 'one class label'),
    ({'splits': ('train',)}, '`test` or `validation`'),
    ({'splits': ('test',)}, 'a split `train`'),
  ],
)
def test_a_data_set_of_another_kind_is_an_error(
  kwargs: dict[str, Any], wanted: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
  assert wanted in place.error(_prepare_images(place, monkeypatch, **kwargs))
