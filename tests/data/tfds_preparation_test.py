"""Downloading and preparing the data sets of the paper from small archives."""

from collections.abc import Iterator
import hashlib
import http.server
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from lamarck_jax.data import archives as archives_lib
from tests.data.conftest import REPOSITORY, Place, assert_equal, counts, make_archives


@pytest.mark.parametrize('name', archives_lib.FORMATS)
def test_official_archives_become_the_data_set(name: str, place: Place) -> None:
  splits, archives = make_archives(name)
  place.put(name, archives)

  dataset = place.load(name)

  sizes = [len(s.labels) for s in (dataset.train, dataset.validation, dataset.test)]
  assert sizes == [36, 4, 20]
  assert counts(dataset.train, dataset.validation) == counts(splits['train'])
  assert counts(dataset.test) == counts(splits['test'])
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

  # The result on disk is what TFDS itself would have made, and nothing else.
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


def test_a_cifar10_example_keeps_its_official_id(place: Place) -> None:
  splits, archives = make_archives('cifar10')
  place.put('cifar10', archives)
  place.load('cifar10')

  source = tfds.data_source('cifar10', split='train', data_dir=place.data_dir)
  for example in source:
    index = int(example['id'].decode().removeprefix('train_'))
    np.testing.assert_array_equal(example['image'], splits['train'].images[index])


def test_prepared_data_is_resized_and_sized_as_asked(place: Place) -> None:
  _, archives = make_archives('mnist')
  place.put('mnist', archives)
  whole = place.load('mnist', num_validation=8)

  small = place.load('mnist', num_train=10, num_validation=8, image_size=14)

  assert small.train.images.shape == (10, 14, 14, 1)
  means = whole.validation.images.reshape(8, 14, 2, 14, 2, 1).mean(axis=(2, 4))
  assert np.abs(small.validation.images - means).max() <= 1
  np.testing.assert_array_equal(small.train.labels, whole.train.labels[:10])
  assert 'dataset.num_train: got 33, want 1 to 32' in place.error(
    'mnist', num_train=33, num_validation=8
  )


def test_an_archive_with_a_wrong_checksum_is_refused_by_name(place: Place) -> None:
  _, archives = make_archives('mnist')
  place.put('mnist', archives)
  path = place.manual_dir / 't10k-labels-idx1-ubyte.gz'
  path.write_bytes(path.read_bytes()[:-1] + b'!')

  message = place.error('mnist')

  assert 't10k-labels-idx1-ubyte.gz' in message
  assert 'SHA-256' in message
  assert not place.data_dir.exists()


def test_the_checksums_are_those_that_tfds_registers(place: Place) -> None:
  _, archives = make_archives('cifar10')
  (place.manual_dir / 'cifar-10-binary.tar.gz').write_bytes(
    archives['cifar-10-binary.tar.gz']
  )
  assert 'c4a38c50a1bc5f3a1c5537f2155ab9d6' in place.error('cifar10')


def test_missing_archives_are_named_if_they_cannot_be_downloaded(
  place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
  _, archives = make_archives('mnist')
  with socket.create_server(('127.0.0.1', 0)) as server:
    url = f'http://127.0.0.1:{server.getsockname()[1]}/'  # Refuses once it is closed.
  monkeypatch.setenv('NO_PROXY', '127.0.0.1')
  monkeypatch.setenv('no_proxy', '127.0.0.1')
  place.put('mnist', archives, url)
  (place.manual_dir / 'train-labels-idx1-ubyte.gz').unlink()

  message = place.error('mnist')

  assert 'want train-labels-idx1-ubyte.gz in' in message
  assert 'dataset.manual_dir' in message
  assert 'dataset.data_dir' in message
  assert not place.data_dir.exists()


def test_a_missing_manual_dir_is_named(place: Place) -> None:
  place.manual_dir.rmdir()
  assert 'dataset.manual_dir: got' in place.error('mnist')


def test_litter_beside_archives_is_ignored_and_a_pipe_is_refused(place: Place) -> None:
  _, archives = make_archives('mnist')
  place.put('mnist', archives)
  for name in ('.DS_Store', '._train-images-idx3-ubyte.gz', 'Thumbs.db'):
    (place.manual_dir / name).write_bytes(b'litter')
  (place.manual_dir / '@eaDir').mkdir()
  path = place.manual_dir / 'train-images-idx3-ubyte.gz'
  path.unlink()
  os.mkfifo(path)
  assert 'train-images-idx3-ubyte.gz: got Not a regular file' in place.error('mnist')
  path.unlink()
  path.write_bytes(archives[path.name])
  assert len(place.load('mnist').test.labels) == 20


def test_a_data_dir_that_cannot_be_written_to_is_named(place: Place) -> None:
  _, archives = make_archives('mnist')
  place.put('mnist', archives)
  place.data_dir.write_text('a file where the folder should be')
  assert 'dataset.data_dir' in place.error('mnist')


@pytest.fixture
def server(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
  """Serves MNIST's archives locally, and has TFDS download them from there."""
  _, archives = make_archives('mnist')
  served_dir = place.manual_dir.with_name('served')
  served_dir.mkdir()

  class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args: Any) -> None:
      super().__init__(*args, directory=str(served_dir))

    def log_message(self, *args: Any) -> None:
      del args

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as http_server:
    place.put('mnist', archives, f'http://127.0.0.1:{http_server.server_port}/')
    for path in place.manual_dir.iterdir():
      path.rename(served_dir / path.name)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    thread = threading.Thread(target=http_server.serve_forever)
    thread.start()
    yield
    http_server.shutdown()
    thread.join()


@pytest.mark.usefixtures('server')
def test_archives_are_downloaded_once_and_kept(place: Place) -> None:
  dataset = place.load('mnist')
  assert counts(dataset.test) == counts(make_archives('mnist')[0]['test'])

  # Without the server, the downloaded archives are used again.
  shutil.rmtree(place.data_dir / 'mnist')
  for path in place.manual_dir.with_name('served').iterdir():
    path.unlink()
  assert_equal(place.load('mnist'), dataset)


@pytest.mark.usefixtures('server')
def test_a_download_with_a_wrong_checksum_is_refused_by_name(place: Place) -> None:
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
    'from lamarck_jax.data import datasets;'
    f"datasets.load('mnist', data_dir={str(tmp_path)!r})"
  )

  start = time.monotonic()
  process = subprocess.run(
    [sys.executable, '-c', code],
    cwd=REPOSITORY,
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
  assert "DatasetError: dataset.name: got 'mnist', which is not prepared" in last_line
  assert 'storage.googleapis.com' in last_line
  assert 't10k-images-idx3-ubyte.gz' in last_line
  assert 'dataset.manual_dir' in last_line
  assert 'dataset.data_dir' in last_line


def test_an_interrupted_preparation_leaves_nothing_in_the_way(
  place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
  splits, archives = make_archives('mnist')
  place.put('mnist', archives)

  def interrupt(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(Image.Image, 'save', interrupt)  # While images are encoded.
    with pytest.raises(KeyboardInterrupt):
      place.load('mnist')
  assert not (place.data_dir / 'mnist').exists()
  # A killed process leaves its files behind.
  staging_dir = place.data_dir / '.lamarck_jax' / 'mnist'
  staging_dir.mkdir()
  (staging_dir / 'left over').write_text('')

  assert counts(place.load('mnist').test) == counts(splits['test'])
  assert not staging_dir.exists()


def test_processes_may_prepare_the_same_data_set_at_once(place: Place) -> None:
  _, archives = make_archives('mnist')
  place.put('mnist', archives)
  code = f"""
import hashlib, pathlib
import tensorflow_datasets as tfds
from lamarck_jax.data import datasets
from lamarck_jax.data import archives as archives_lib
from tests.data.conftest import Place
data_dir, manual_dir = {str(place.data_dir)!r}, {str(place.manual_dir)!r}
paths = pathlib.Path(manual_dir).iterdir()
archives = {{path.name: path.read_bytes() for path in paths}}
mnist = tfds.builder_cls('mnist')
mnist.url_infos = Place.url_infos(mnist, archives)
loaded = datasets.load('mnist', data_dir=data_dir, manual_dir=manual_dir)
print(hashlib.sha256(loaded.train.images.tobytes()).hexdigest())
"""
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    for _ in range(3)
  ]
  outputs = [process.communicate(timeout=120)[0] for process in processes]

  train_images = place.load('mnist').train.images
  expected = hashlib.sha256(train_images.tobytes()).hexdigest() + '\n'
  assert outputs == [expected] * 3
  assert len(list((place.data_dir / 'mnist').iterdir())) == 1


def test_data_prepared_by_another_process_while_this_one_looks_are_found(
  place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
  _, archives = make_archives('mnist')
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
