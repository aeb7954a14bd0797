"""Tests of `datasets` and `tfds_preparation` on small data made here.

Archives have the official layout, names and URLs; only their registered checksums
are replaced. Nothing here needs a network or data that was prepared before.
"""

import collections
from collections.abc import Iterator, Mapping
import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from typing import Any

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

from lamarck_jax import errors
from lamarck_jax.data import datasets, tfds_preparation

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
_SIZES = {'train': 40, 'test': 20}


# ------------------------------------------------------------------------------
# Small archives
# ------------------------------------------------------------------------------


def _random_splits(
  shape: tuple[int, ...], num_classes: int
) -> dict[str, datasets.Split]:
  generator = np.random.default_rng(0)
  return {
    name: datasets.Split(
      generator.integers(0, 256, (size, *shape), np.uint8),
      generator.integers(0, num_classes, size, np.int32),
    )
    for name, size in _SIZES.items()
  }


def _idx(values: np.ndarray) -> bytes:
  header = struct.pack(
    f'>{1 + values.ndim}I', 0x800 | values.ndim, *(int(n) for n in values.shape)
  )
  return header + values.astype(np.uint8).tobytes()


def _mnist_files(splits: Mapping[str, datasets.Split]) -> dict[str, bytes]:
  files = {}
  for name, prefix in (('train', 'train'), ('test', 't10k')):
    images, labels = splits[name].images[..., 0], splits[name].labels
    files[f'{prefix}-images-idx3-ubyte.gz'] = gzip.compress(_idx(images))
    files[f'{prefix}-labels-idx1-ubyte.gz'] = gzip.compress(_idx(labels))
  return files


def _cifar_records(split: datasets.Split, num_labels: int) -> bytes:
  images = split.images.transpose(0, 3, 1, 2).reshape(len(split.images), -1)
  labels = [split.labels % 20] * (num_labels - 1) + [split.labels]
  return np.column_stack([*labels, images]).astype(np.uint8).tobytes()


def _cifar_members(
  name: str, splits: Mapping[str, datasets.Split]
) -> list[tuple[tarfile.TarInfo, bytes]]:
  if name == 'cifar10':
    prefix, num_labels = 'cifar-10-batches-bin', 1
    train = _cifar_records(splits['train'], num_labels)
    fifth = len(train) // 5
    files = {
      f'data_batch_{i + 1}.bin': train[i * fifth : (i + 1) * fifth] for i in range(5)
    }
    files['test_batch.bin'] = _cifar_records(splits['test'], num_labels)
    files['batches.meta.txt'] = _names('class', 10)
  else:
    prefix, num_labels = 'cifar-100-binary', 2
    files = {
      'train.bin': _cifar_records(splits['train'], num_labels),
      'test.bin': _cifar_records(splits['test'], num_labels),
      'coarse_label_names.txt': _names('coarse', 20),
      'fine_label_names.txt': _names('class', 100),
    }
  return [_member(f'{prefix}/{filename}', data) for filename, data in files.items()]


def _names(prefix: str, count: int) -> bytes:
  return ''.join(f'{prefix}{i}\n' for i in range(count)).encode() + b'\n'


def _member(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
  info = tarfile.TarInfo(name)
  info.size = len(data)
  return info, data


def _tar_gz(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
    for info, data in members:
      archive.addfile(info, io.BytesIO(data))
  return buffer.getvalue()


def _archives(
  name: str, splits: Mapping[str, datasets.Split] | None = None
) -> tuple[dict[str, datasets.Split], dict[str, bytes]]:
  """Returns small splits, and {official file name: content} that holds them."""
  if name in ('mnist', 'fashion_mnist'):
    made = dict(splits or _random_splits((28, 28, 1), 10))
    return made, _mnist_files(made)
  made = dict(splits or _random_splits((32, 32, 3), 10 if name == 'cifar10' else 100))
  filename = (
    'cifar-10-binary.tar.gz' if name == 'cifar10' else 'cifar-100-binary.tar.gz'
  )
  return made, {filename: _tar_gz(_cifar_members(name, made))}


class _Place:
  """A data folder and a folder of archives, whose checksums tfds takes for its own."""

  def __init__(self, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    self.data_dir = path / 'data'
    self.manual_dir = path / 'manual'
    self.manual_dir.mkdir()
    self._monkeypatch = monkeypatch

  def put(self, name: str, archives: Mapping[str, bytes]) -> None:
    for filename, content in archives.items():
      (self.manual_dir / filename).write_bytes(content)
    builder_cls = tfds.builder_cls(name)
    self._monkeypatch.setattr(
      builder_cls, 'url_infos', self.url_infos(builder_cls, archives)
    )

  @staticmethod
  def url_infos(builder_cls: Any, archives: Mapping[str, bytes]) -> dict[str, Any]:
    return {
      url: checksums.UrlInfo(
        size=len(archives[info.filename]),
        checksum=hashlib.sha256(archives[info.filename]).hexdigest(),
        filename=info.filename,
      )
      for url, info in builder_cls.url_infos.items()
    }

  def load(self, name: str, **kwargs: Any) -> datasets.Dataset:
    return datasets.load(
      name, data_dir=str(self.data_dir), manual_dir=str(self.manual_dir), **kwargs
    )

  def version_dir(self, name: str) -> pathlib.Path:
    (path,) = (self.data_dir / name).iterdir()
    return path

  def error(self, name: str, **kwargs: Any) -> str:
    """Returns the message of the error that loading ends in, which is one line."""
    with pytest.raises(datasets.DatasetError) as caught:
      self.load(name, **kwargs)
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> _Place:
  return _Place(tmp_path, monkeypatch)


def _counts(*splits: datasets.Split) -> collections.Counter[tuple[bytes, int]]:
  """Returns how often each labelled image occurs."""
  return collections.Counter(
    (image.tobytes(), int(label))
    for split in splits
    for image, label in zip(split.images, split.labels, strict=True)
  )


def _assert_equal(first: datasets.Dataset, second: datasets.Dataset) -> None:
  assert first.class_names == second.class_names
  for name in ('train', 'validation', 'test'):
    for array in ('images', 'labels'):
      np.testing.assert_array_equal(
        getattr(getattr(first, name), array), getattr(getattr(second, name), array)
      )


# ------------------------------------------------------------------------------
# Digits, sizes and names
# ------------------------------------------------------------------------------


def test_digits_splits_hold_every_example_exactly_once() -> None:
  from sklearn import datasets as sklearn_datasets

  digits = datasets.load('digits')
  source = sklearn_datasets.load_digits()
  expected = datasets.Split(
    np.rint(source.images * 255 / 16).astype(np.uint8), source.target
  )

  sizes = [len(s.labels) for s in (digits.train, digits.validation, digits.test)]
  assert sizes == [1137, 300, 360]
  assert digits.image_shape == (8, 8, 1)
  assert digits.num_classes == 10
  assert digits.class_names == tuple('0123456789')
  for split in (digits.train, digits.validation, digits.test):
    assert split.images.dtype == np.uint8
    assert split.labels.dtype == np.int32
    assert set(split.labels.tolist()) == set(range(10))
  assert digits.train.images.max() == 255
  assert _counts(digits.train, digits.validation, digits.test) == _counts(expected)


def test_fewer_training_examples_leave_the_other_splits_as_they_are() -> None:
  whole, small = datasets.load('digits'), datasets.load('digits', num_train=100)

  np.testing.assert_array_equal(small.train.images, whole.train.images[:100])
  np.testing.assert_array_equal(small.validation.images, whole.validation.images)
  np.testing.assert_array_equal(small.test.labels, whole.test.labels)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'num_train': 1138}, r'dataset\.num_train is 1138: wanted is 1 to 1137'),
    ({'num_train': 0}, r'dataset\.num_train is 0'),
    ({'num_train': -5}, r'dataset\.num_train is -5'),
    ({'num_train': 1000, 'num_validation': 500}, r'dataset\.num_train is 1000.* 937'),
    ({'num_validation': 1437}, r'dataset\.num_validation is 1437.* 1 to 1436'),
    ({'num_validation': 0}, r'dataset\.num_validation is 0'),
    ({'image_size': 0}, r'dataset\.image_size is 0'),
  ],
)
def test_impossible_numbers_name_the_field(
  kwargs: dict[str, Any], message: str
) -> None:
  with pytest.raises(datasets.DatasetError, match=message):
    datasets.load('digits', **kwargs)


def test_channel_statistics_are_those_of_numpy() -> None:
  pixels = np.random.default_rng(0).integers(0, 256, (50, 5, 7, 3)).astype(np.uint8)
  pixels[..., 2] = 9  # A constant channel must not divide by zero.
  mean, std = datasets.channel_statistics(pixels)
  np.testing.assert_allclose(mean, pixels.astype(float).mean((0, 1, 2)), rtol=1e-6)
  np.testing.assert_allclose(
    std[:2], pixels.astype(float).std((0, 1, 2))[:2], rtol=1e-6
  )
  assert std[2] == 1


def test_images_are_resized_by_area_averaging() -> None:
  images = datasets.load('digits').test.images.astype(np.float64)
  resized = datasets.load('digits', image_size=4)

  assert resized.image_shape == (4, 4, 1)
  means = images.reshape(-1, 4, 2, 4, 2, 1).mean(axis=(2, 4))
  # Pillow rounds twice: after averaging along rows, and then along columns.
  assert np.abs(resized.test.images - means).max() <= 1


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(place: _Place) -> None:
  assert issubclass(datasets.DatasetError, errors.UserError)
  for name in ('mnits', '', '../mnist', 'some:thing', 'a/b/c', 'mnist:9.9.9'):
    start = time.monotonic()
    message = place.error(name)
    assert time.monotonic() - start < 5
    assert repr(name) in message
    assert 'digits, mnist, fashion_mnist, cifar10, cifar100' in message
  assert not place.data_dir.exists()


def test_a_data_set_that_is_not_prepared_here_says_how_to_prepare_it(
  place: _Place,
) -> None:
  message = place.error('kmnist')
  assert 'tfds build kmnist --file_format=array_record' in message
  assert 'dataset.data_dir' in message


def test_importing_the_module_imports_no_library_of_data() -> None:
  code = (
    'import sys, lamarck_jax.data.datasets;'
    "heavy = {'tensorflow_datasets', 'tensorflow', 'sklearn', 'PIL', 'requests'};"
    'sys.exit(str(heavy & sys.modules.keys()) if heavy & sys.modules.keys() else 0)'
  )
  subprocess.run([sys.executable, '-c', code], cwd=_REPOSITORY, check=True)


# ------------------------------------------------------------------------------
# Preparation from official archives
# ------------------------------------------------------------------------------


@pytest.mark.parametrize('name', tfds_preparation.PREPARABLE)
def test_official_archives_become_the_data_set(name: str, place: _Place) -> None:
  splits, archives = _archives(name)
  place.put(name, archives)

  dataset = place.load(name)

  sizes = [len(s.labels) for s in (dataset.train, dataset.validation, dataset.test)]
  assert sizes == [36, 4, 20]
  assert _counts(dataset.train, dataset.validation) == _counts(splits['train'])
  assert _counts(dataset.test) == _counts(splits['test'])
  assert dataset.image_shape == splits['train'].images.shape[1:]
  assert dataset.train.images.dtype == np.uint8
  assert dataset.train.labels.dtype == np.int32
  expected_class_names = {
    'mnist': tuple('0123456789'),
    'fashion_mnist': tuple(tfds.builder('fashion_mnist').info.features['label'].names),
    'cifar10': tuple(f'class{i}' for i in range(10)),
    'cifar100': tuple(f'class{i}' for i in range(100)),
  }
  assert dataset.class_names == expected_class_names[name]

  # What is left behind is what tfds itself would have made, and nothing else.
  info = json.loads((place.version_dir(name) / 'dataset_info.json').read_text())
  assert info['fileFormat'] == 'array_record'
  assert info['moduleName'].startswith('tensorflow_datasets.')
  source = tfds.data_source(name, split='test', data_dir=place.data_dir)
  np.testing.assert_array_equal(
    np.stack([example['image'] for example in source]), dataset.test.images
  )
  assert not (place.data_dir / '.lamarck_jax' / name).exists()
  assert not list(place.data_dir.rglob('*.bin'))
  assert not list(place.data_dir.rglob('*ubyte*'))


def test_a_cifar10_example_keeps_its_official_id(place: _Place) -> None:
  splits, archives = _archives('cifar10')
  place.put('cifar10', archives)
  place.load('cifar10')

  source = tfds.data_source('cifar10', split='train', data_dir=place.data_dir)
  for example in source:
    index = int(example['id'].decode().removeprefix('train_'))
    np.testing.assert_array_equal(example['image'], splits['train'].images[index])


def test_prepared_data_is_resized_and_sized_as_asked(place: _Place) -> None:
  _, archives = _archives('mnist')
  place.put('mnist', archives)
  whole = place.load('mnist', num_validation=8)

  small = place.load('mnist', num_train=10, num_validation=8, image_size=14)

  assert small.train.images.shape == (10, 14, 14, 1)
  means = whole.validation.images.reshape(8, 14, 2, 14, 2, 1).mean(axis=(2, 4))
  assert np.abs(small.validation.images - means).max() <= 1
  np.testing.assert_array_equal(small.train.labels, whole.train.labels[:10])
  assert 'dataset.num_train is 33' in place.error(
    'mnist', num_train=33, num_validation=8
  )


def test_an_archive_with_a_wrong_checksum_is_refused_by_name(place: _Place) -> None:
  _, archives = _archives('mnist')
  place.put('mnist', archives)
  path = place.manual_dir / 't10k-labels-idx1-ubyte.gz'
  path.write_bytes(path.read_bytes()[:-1] + b'!')

  message = place.error('mnist')

  assert 't10k-labels-idx1-ubyte.gz' in message
  assert 'SHA-256' in message
  assert not place.data_dir.exists()


def test_the_checksums_are_those_that_tfds_registers(place: _Place) -> None:
  _, archives = _archives('cifar10')
  (place.manual_dir / 'cifar-10-binary.tar.gz').write_bytes(
    archives['cifar-10-binary.tar.gz']
  )
  assert 'c4a38c50a1bc5f3a1c5537f2155ab9d6' in place.error('cifar10')


def test_missing_archives_are_named_if_they_cannot_be_downloaded(
  place: _Place, monkeypatch: pytest.MonkeyPatch
) -> None:
  _, archives = _archives('mnist')
  place.put('mnist', archives)
  (place.manual_dir / 'train-labels-idx1-ubyte.gz').unlink()
  monkeypatch.setattr(tfds_preparation, '_why_unreachable', lambda url: 'no network')

  message = place.error('mnist')

  assert 'put train-labels-idx1-ubyte.gz into' in message
  assert 'dataset.manual_dir' in message
  assert 'dataset.data_dir' in message
  assert not place.data_dir.exists()


def test_a_missing_manual_dir_is_named(place: _Place) -> None:
  place.manual_dir.rmdir()
  assert 'dataset.manual_dir is' in place.error('mnist')


def test_a_data_dir_that_cannot_be_written_to_is_named(place: _Place) -> None:
  _, archives = _archives('mnist')
  place.put('mnist', archives)
  place.data_dir.write_text('a file where the folder should be')
  assert 'dataset.data_dir' in place.error('mnist')


@pytest.fixture
def server(place: _Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
  """Serves MNIST's archives on this machine, from where tfds downloads them."""
  _, archives = _archives('mnist')
  served_dir = place.manual_dir.with_name('served')
  place.put('mnist', archives)
  place.manual_dir.rename(served_dir)
  place.manual_dir.mkdir()

  class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args: Any) -> None:
      super().__init__(*args, directory=str(served_dir))

    def log_message(self, *args: Any) -> None:
      del args

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as http_server:
    url = f'http://127.0.0.1:{http_server.server_port}/'
    mnist = tfds.builder_cls('mnist')
    infos = {url + info.filename: info for info in mnist.url_infos.values()}
    monkeypatch.setattr(mnist, 'url_infos', infos)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    thread = threading.Thread(target=http_server.serve_forever)
    thread.start()
    yield
    http_server.shutdown()
    thread.join()


@pytest.mark.usefixtures('server')
def test_archives_are_downloaded_once_and_kept(place: _Place) -> None:
  dataset = place.load('mnist')
  assert _counts(dataset.test) == _counts(_archives('mnist')[0]['test'])

  # What has been downloaded needs no network any more.
  shutil.rmtree(place.data_dir / 'mnist')
  for path in place.manual_dir.with_name('served').iterdir():
    path.unlink()
  _assert_equal(place.load('mnist'), dataset)


@pytest.mark.usefixtures('server')
def test_a_download_with_a_wrong_checksum_is_refused_by_name(place: _Place) -> None:
  path = place.manual_dir.with_name('served') / 't10k-labels-idx1-ubyte.gz'
  path.write_bytes(path.read_bytes()[:-1] + b'!')
  message = place.error('mnist')
  assert 't10k-labels-idx1-ubyte.gz' in message
  assert 'wrong checksum' in message
  assert not (place.data_dir / 'mnist').exists()


def _without_network(seconds_until_refusal: str) -> tuple[dict[str, str], Any]:
  """Returns an environment in which every connection fails or hangs."""
  server = socket.create_server(('127.0.0.1', 0))
  proxy = f'http://127.0.0.1:{server.getsockname()[1]}'
  if seconds_until_refusal == 'at once':
    server.close()
  env = {k: v for k, v in os.environ.items() if k.lower() != 'no_proxy'}
  names = ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY')
  return env | dict.fromkeys(names, proxy), server


@pytest.mark.parametrize('refusal', ['at once', 'never'])
def test_without_a_network_the_error_comes_soon_and_says_what_helps(
  refusal: str, tmp_path: pathlib.Path
) -> None:
  env, server = _without_network(refusal)
  code = (
    'from lamarck_jax import datasets;'
    f"datasets.load('mnist', data_dir={str(tmp_path)!r})"
  )

  start = time.monotonic()
  process = subprocess.run(
    [sys.executable, '-c', code],
    cwd=_REPOSITORY,
    env=env,
    capture_output=True,
    text=True,
    timeout=60,
  )
  seconds = time.monotonic() - start
  server.close()

  last_line = process.stderr.strip().splitlines()[-1]
  assert seconds < 15
  assert process.returncode == 1
  assert process.stdout == ''
  assert 'DatasetError: mnist is not prepared' in last_line
  assert 'storage.googleapis.com' in last_line
  assert 't10k-images-idx3-ubyte.gz' in last_line
  assert 'dataset.manual_dir' in last_line
  assert 'dataset.data_dir' in last_line


# ------------------------------------------------------------------------------
# Interruption and company
# ------------------------------------------------------------------------------


def test_an_interrupted_preparation_leaves_nothing_in_the_way(
  place: _Place, monkeypatch: pytest.MonkeyPatch
) -> None:
  splits, archives = _archives('mnist')
  place.put('mnist', archives)

  def interrupt(image: np.ndarray) -> bytes:
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(tfds_preparation, '_encode_png', interrupt)
    with pytest.raises(KeyboardInterrupt):
      place.load('mnist')
  assert not (place.data_dir / 'mnist').exists()
  # A process that was killed has had no time to clean up.
  staging_dir = place.data_dir / '.lamarck_jax' / 'mnist'
  staging_dir.mkdir()
  (staging_dir / 'left over').write_text('')

  assert _counts(place.load('mnist').test) == _counts(splits['test'])
  assert not staging_dir.exists()


def test_processes_may_prepare_the_same_data_set_at_once(place: _Place) -> None:
  _, archives = _archives('mnist')
  place.put('mnist', archives)
  code = f"""
import hashlib, pathlib, sys
sys.path.insert(0, {str(_REPOSITORY / 'tests')!r})
import datasets_test, tensorflow_datasets as tfds
from lamarck_jax.data import datasets
data_dir, manual_dir = {str(place.data_dir)!r}, {str(place.manual_dir)!r}
paths = pathlib.Path(manual_dir).iterdir()
archives = {{path.name: path.read_bytes() for path in paths}}
mnist = tfds.builder_cls('mnist')
mnist.url_infos = datasets_test._Place.url_infos(mnist, archives)
loaded = datasets.load('mnist', data_dir=data_dir, manual_dir=manual_dir)
print(hashlib.sha256(loaded.train.images.tobytes()).hexdigest())
"""
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', code], cwd=_REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    for _ in range(3)
  ]
  outputs = [process.communicate(timeout=120)[0] for process in processes]

  train_images = place.load('mnist').train.images
  expected = hashlib.sha256(train_images.tobytes()).hexdigest() + '\n'
  assert outputs == [expected] * 3
  assert len(list((place.data_dir / 'mnist').iterdir())) == 1


def test_data_prepared_by_another_process_while_this_one_looks_are_found(
  place: _Place, monkeypatch: pytest.MonkeyPatch
) -> None:
  _, archives = _archives('mnist')
  place.put('mnist', archives)
  make_builder = tfds.builder

  def late(*args: Any, **kwargs: Any) -> Any:
    monkeypatch.setattr(tfds, 'builder', make_builder)
    builder = make_builder(*args, **kwargs)
    place.load('mnist')  # As another process would, after the builder has looked.
    return builder

  monkeypatch.setattr(tfds, 'builder', late)
  loaded = place.load('mnist')
  np.testing.assert_array_equal(loaded.train.images, place.load('mnist').train.images)


# ------------------------------------------------------------------------------
# Bad archives, with checksums that fit them
# ------------------------------------------------------------------------------


def _bad_idx_files() -> Iterator[Any]:
  splits, files = _archives('mnist')
  images_name, labels_name = 'train-images-idx3-ubyte.gz', 'train-labels-idx1-ubyte.gz'
  images = gzip.decompress(files[images_name])
  labels = gzip.decompress(files[labels_name])

  yield 'cut gzip', images_name, files[images_name][:-100]
  yield 'no gzip', images_name, images
  yield 'damaged gzip', images_name, files[images_name][:-8] + b'12345678'
  yield 'empty', images_name, b''
  yield 'no header', images_name, gzip.compress(images[:7])
  yield 'cut data', images_name, gzip.compress(images[:-1])
  yield 'more data', images_name, gzip.compress(images + b'x')
  yield 'labels for images', images_name, files[labels_name]
  yield 'images for labels', labels_name, files[images_name]
  yield 'no examples', images_name, gzip.compress(struct.pack('>4I', 0x803, 0, 28, 28))
  absurd = struct.pack('>4I', 0x803, 2**32 - 1, 28, 28)
  yield 'absurd count', images_name, gzip.compress(absurd + images[16:])
  wide = struct.pack('>4I', 0x803, 40, 14, 56)
  yield 'other shape', images_name, gzip.compress(wide + images[16:])
  fewer = splits['train'].labels[:-1]
  yield 'fewer labels', labels_name, gzip.compress(_idx(fewer))
  yield 'eleventh class', labels_name, gzip.compress(labels[:-1] + b'\x0a')


@pytest.mark.parametrize(
  ('filename', 'content'), [pytest.param(*c[1:], id=c[0]) for c in _bad_idx_files()]
)
def test_a_bad_idx_file_is_an_error(
  filename: str, content: bytes, place: _Place
) -> None:
  _, archives = _archives('mnist')
  place.put('mnist', archives | {filename: content})

  message = place.error('mnist')

  assert filename in message or 'mnist: train has the label 10' in message
  assert not (place.data_dir / 'mnist').exists()


def _bad_cifar_archives() -> Iterator[Any]:
  splits, _ = _archives('cifar10')
  members = _cifar_members('cifar10', splits)
  whole = _tar_gz(members)
  batch = 'cifar-10-batches-bin/data_batch_3.bin'

  def replaced(info: tarfile.TarInfo, data: bytes = b'') -> bytes:
    others = [member for member in members if member[0].name != batch]
    return _tar_gz([*others, (info, data)])

  def linked(kind: bytes, target: str) -> bytes:
    info = tarfile.TarInfo(batch)
    info.type, info.linkname = kind, target
    return replaced(info)

  yield 'cut gzip', whole[: len(whole) // 2], 'gzip'
  yield 'no tar', gzip.compress(b'not a tar file' * 1000), 'tar'
  yield 'cut tar', gzip.compress(gzip.decompress(whole)[:20_000]), 'cifar-10'
  yield 'missing file', _tar_gz(members[1:]), 'data_batch_1.bin'
  yield 'no class names', _tar_gz(members[:-1]), 'batches.meta.txt'
  yield 'symbolic link', linked(tarfile.SYMTYPE, '/etc/passwd'), batch
  yield 'hard link', linked(tarfile.LNKTYPE, members[0][0].name), batch
  yield 'device', linked(tarfile.CHRTYPE, ''), batch
  yield 'twice', _tar_gz([*members, members[0]]), 'data_batch_1.bin'
  yield 'other path', replaced(*_member(f'../{batch}', b'x' * 3073)), batch
  yield 'half a record', replaced(*_member(batch, b'\0' * 3000)), 'data_batch_3.bin'
  yield 'empty batch', replaced(*_member(batch, b'')), 'data_batch_3.bin'
  yield 'eleventh class', replaced(*_member(batch, b'\x0a' * 3073)), 'label 10'
  names = _member('cifar-10-batches-bin/batches.meta.txt', _names('class', 9))
  yield 'nine names', _tar_gz([*members[:-1], names]), '9 class names'
  huge = tarfile.TarInfo(batch)
  huge.size = 2**40
  cut = gzip.decompress(_tar_gz(members[:1]))[: -20 * 512] + huge.tobuf()
  yield 'absurd size', gzip.compress(cut), 'cifar-10-binary.tar.gz'


@pytest.mark.parametrize(
  ('content', 'wanted'),
  [pytest.param(*case[1:], id=case[0]) for case in _bad_cifar_archives()],
)
def test_a_bad_cifar_archive_is_an_error(
  content: bytes, wanted: str, place: _Place
) -> None:
  place.put('cifar10', {'cifar-10-binary.tar.gz': content})
  assert wanted in place.error('cifar10')
  assert not (place.data_dir / 'cifar10').exists()


def test_an_archive_that_expands_without_end_is_an_error(
  place: _Place, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(tfds_preparation, '_MAX_TAR_BYTES', 2**20)
  content = gzip.compress(bytes(2**24))
  place.put('cifar10', {'cifar-10-binary.tar.gz': content})
  assert 'more than the 1048576 bytes' in place.error('cifar10')


def test_other_members_of_an_archive_are_left_alone(place: _Place) -> None:
  splits, _ = _archives('cifar10')
  outside = place.manual_dir.parent / 'outside'
  link = tarfile.TarInfo('cifar-10-batches-bin/link')
  link.type, link.linkname = tarfile.SYMTYPE, '/'
  members = [
    _member('../outside', b'evil'),
    _member(str(outside), b'evil'),
    (link, b''),
    *_cifar_members('cifar10', splits),
  ]
  place.put('cifar10', {'cifar-10-binary.tar.gz': _tar_gz(members)})

  assert _counts(place.load('cifar10').test) == _counts(splits['test'])
  assert not outside.exists()


# ------------------------------------------------------------------------------
# The cache
# ------------------------------------------------------------------------------


@pytest.fixture
def cached(place: _Place) -> tuple[_Place, datasets.Dataset, pathlib.Path]:
  """Returns a place where MNIST has been read once, its data set and its cache."""
  _, archives = _archives('mnist')
  place.put('mnist', archives)
  dataset = place.load('mnist')
  (path,) = (place.version_dir('mnist') / 'lamarck_jax_cache').iterdir()
  return place, dataset, path


def test_reading_is_quiet(
  cached: tuple[_Place, datasets.Dataset, pathlib.Path],
  capfd: pytest.CaptureFixture[str],
) -> None:
  place, dataset, path = cached
  path.unlink()
  capfd.readouterr()
  _assert_equal(place.load('mnist'), dataset)
  assert capfd.readouterr() == ('', '')


def test_the_second_read_is_from_the_cache(
  cached: tuple[_Place, datasets.Dataset, pathlib.Path],
  monkeypatch: pytest.MonkeyPatch,
  capfd: pytest.CaptureFixture[str],
) -> None:
  place, dataset, _ = cached
  capfd.readouterr()
  with monkeypatch.context() as patch:
    patch.delattr(datasets, '_read_split')
    _assert_equal(place.load('mnist'), dataset)
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize(
  'damage', ['one byte', 'cut', 'empty', 'other file', 'pickle', 'other data']
)
def test_a_damaged_or_foreign_cache_is_made_anew(
  damage: str, cached: tuple[_Place, datasets.Dataset, pathlib.Path]
) -> None:
  place, dataset, path = cached
  content = path.read_bytes()
  if damage == 'one byte':
    middle = len(content) // 2
    path.write_bytes(
      content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    )
  elif damage == 'cut':
    path.write_bytes(content[: len(content) // 2])
  elif damage == 'empty':
    path.write_bytes(b'')
  elif damage == 'other file':
    path.write_bytes(b'{"not": "an array"}')
  elif damage == 'pickle':
    np.savez(path, fingerprint=np.array([object()]))
  else:
    with np.load(path) as arrays:
      changed = dict(arrays)
    changed['fingerprint'] = changed['fingerprint'] ^ 1
    changed['test_labels'] = changed['test_labels'] + 1
    np.savez(path, **changed)

  _assert_equal(place.load('mnist'), dataset)
  assert path.stat().st_size == len(content)
  assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_cache_that_cannot_be_written_is_no_error(
  cached: tuple[_Place, datasets.Dataset, pathlib.Path],
) -> None:
  place, dataset, path = cached
  path.unlink()
  path.parent.rmdir()
  path.parent.write_text('a file where the folder should be')
  _assert_equal(place.load('mnist'), dataset)


# ------------------------------------------------------------------------------
# Prepared data of all kinds
# ------------------------------------------------------------------------------


def test_tfrecord_files_are_read_without_tensorflow(
  cached: tuple[_Place, datasets.Dataset, pathlib.Path],
) -> None:
  place, dataset, cache_path = cached
  version_dir = cache_path.parent.parent
  builder = tfds.builder('mnist', data_dir=place.data_dir)
  for split in _SIZES:
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

  _assert_equal(place.load('mnist'), dataset)

  # The cache has been of array_record; it is made anew, and this damage seen.
  cache_path.unlink()
  with (version_dir / 'mnist-train.tfrecord-00000-of-00001').open('r+b') as file:
    file.truncate(1000)
  assert 'cannot read example' in place.error('mnist')


@pytest.mark.parametrize('damage', ['cut', 'missing'])
def test_damaged_prepared_data_is_an_error(
  damage: str, cached: tuple[_Place, datasets.Dataset, pathlib.Path]
) -> None:
  place, _, cache_path = cached
  cache_path.unlink()
  record_path = next(cache_path.parent.parent.glob('*train*'))
  if damage == 'cut':
    with record_path.open('r+b') as file:
      file.truncate(record_path.stat().st_size // 2)
  else:
    record_path.unlink()
  assert str(cache_path.parent.parent) in place.error('mnist')


def test_a_folder_that_is_no_data_set_is_an_error(place: _Place) -> None:
  _, archives = _archives('mnist')
  place.put('mnist', archives)
  (place.data_dir / 'mnist' / '3.0.1').mkdir(parents=True)
  assert 'remove it' in place.error('mnist')


class LamarckTestImages(tfds.core.GeneratorBasedBuilder):
  """A data set of whatever kind a test asks for."""

  VERSION = tfds.core.Version('1.0.0')
  image_shape: tuple[int | None, ...] = (None, None, 3)
  label: Any = None
  sizes: tuple[tuple[int, int], ...] = ((6, 4),)
  splits: tuple[str, ...] = ('train', 'validation')

  def _info(self) -> Any:
    features = {
      'image': tfds.features.Image(shape=self.image_shape),
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
      Image.new(mode, (width, height), color=(index,) * len(mode)).save(buffer, 'PNG')
      yield index, {'image': buffer.getvalue(), 'label': index % 3}


def _prepare_images(
  place: _Place, monkeypatch: pytest.MonkeyPatch, **kwargs: Any
) -> str:
  for key, value in kwargs.items():
    monkeypatch.setattr(LamarckTestImages, key, value)
  builder = LamarckTestImages(data_dir=place.data_dir, file_format='array_record')
  builder.download_and_prepare()
  return 'lamarck_test_images'


def test_any_prepared_image_classification_data_set_is_read_by_its_name(
  place: _Place, monkeypatch: pytest.MonkeyPatch
) -> None:
  name = _prepare_images(place, monkeypatch, image_shape=(4, 6, 3))

  dataset = place.load(name)

  sizes = [len(s.labels) for s in (dataset.train, dataset.validation, dataset.test)]
  assert sizes == [27, 3, 30]
  assert dataset.image_shape == (4, 6, 3)
  assert dataset.class_names == ('0', '1', '2')
  # Of example i, every pixel is i and the label i % 3.
  assert set(dataset.test.images.max(axis=(1, 2, 3)).tolist()) == set(range(30))
  np.testing.assert_array_equal(
    dataset.test.images[:, 0, 0, 0] % 3, dataset.test.labels
  )


def test_images_of_different_sizes_need_an_image_size(
  place: _Place, monkeypatch: pytest.MonkeyPatch
) -> None:
  name = _prepare_images(place, monkeypatch, sizes=((6, 4), (3, 9)))
  assert 'dataset.image_size is None' in place.error(name)
  assert place.load(name, image_size=5).image_shape == (5, 5, 3)


@pytest.mark.parametrize(
  ('kwargs', 'wanted'),
  [
    ({'image_shape': (4, 6, 4)}, '1 or 3 channels'),
    ({'label': tfds.features.Scalar(np.int64)}, 'one class label'),
    ({'splits': ('train',)}, '`test` or `validation`'),
    ({'splits': ('test',)}, 'a split `train`'),
  ],
)
def test_a_data_set_of_another_kind_is_an_error(
  kwargs: dict[str, Any], wanted: str, place: _Place, monkeypatch: pytest.MonkeyPatch
) -> None:
  assert wanted in place.error(_prepare_images(place, monkeypatch, **kwargs))
