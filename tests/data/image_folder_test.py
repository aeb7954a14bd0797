"""Folders as people have them: litter, links, other formats, folders in folders."""

import logging
import os
import unicodedata

import numpy as np
from PIL import Image
import pytest

from lamarck_jax.data import datasets, files
from lamarck_jax.data.datasets import DatasetError

_LITTER = (
  *('.DS_Store', '._0.png', 'Thumbs.db', 'desktop.ini', '.hidden.png', '.gitkeep'),
  *('0.png~', '#0.png#', '0.png.bak', '~$0.png', '.0.png.swp', 'ICON\r', '0.png.tmp'),
)
_LITTER_FOLDERS = (
  *('@eaDir', '__MACOSX', '.ipynb_checkpoints', '.git', '__pycache__', 'lost+found'),
  *('$RECYCLE.BIN', 'System Volume Information', '#recycle', '.Trash-1000'),
)


def _pixels(count, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, 9, 9, 3), np.uint8)


def _write(folder, count=12, seed=0, suffixes=('.png',)):
  folder.mkdir(parents=True, exist_ok=True)
  for index, pixels in enumerate(_pixels(count, seed)):
    Image.fromarray(pixels).save(folder / f'{index}{suffixes[index % len(suffixes)]}')


@pytest.fixture
def folder(tmp_path):
  """A folder with 12 images of each of two classes."""
  _write(tmp_path / 'own' / 'train' / 'ant', seed=1)
  _write(tmp_path / 'own' / 'train' / 'bee', seed=2)
  return tmp_path / 'own'


def _load(folder, **options):
  return datasets.load(f'folder:{folder}', **options)


def _size(dataset):
  splits = (dataset.train, dataset.validation, dataset.test)
  return sum(len(split.labels) for split in splits)


def _warning(folder, caplog, size):
  with caplog.at_level(logging.WARNING):
    assert _size(_load(folder)) == size
  (record,) = [r for r in caplog.records if 'not read' in r.getMessage()]
  assert '\n' not in record.getMessage()
  return record.getMessage()


def _error(folder):
  with pytest.raises(DatasetError) as raised:
    _load(folder)
  assert '\n' not in str(raised.value)
  return str(raised.value)


def test_litter_is_skipped_as_file_and_as_folder_everywhere(folder, caplog):
  before = _load(folder)
  _write(folder / 'test' / 'ant', 2, seed=3)
  _write(folder / 'test' / 'bee', 2, seed=4)
  for place in ('', 'train', 'test', 'train/ant', 'test/bee'):
    for name in _LITTER:
      (folder / place / name).write_bytes(b'litter')
    for name in _LITTER_FOLDERS:
      _write(folder / place / name / 'ant', 1)
      _write(folder / place / name, 1)
  with caplog.at_level(logging.WARNING):
    dataset = _load(folder)
  assert dataset.class_names == before.class_names == ('ant', 'bee')
  assert _size(dataset) == 24 + 4
  assert 'not read' not in caplog.text


def test_names_that_only_resemble_litter_are_read():
  for name in ('a.png', '0001', '@.png', 'tmp', 'bak.png', 'thumbs.png', '_.png'):
    assert not files.is_litter(name)


def test_every_format_is_read_at_any_depth_whatever_its_name(folder):
  _write(folder / 'train' / 'ant' / 'more' / 'of them', 8, 3, ('.webp', '.TIF', '.JPG'))
  _write(folder / 'train' / 'bee' / 'a.png', 4, seed=4)  # A folder, whatever its name.
  Image.fromarray(_pixels(1, 5)[0]).save(folder / 'train' / 'bee' / 'noname', 'PNG')
  Image.fromarray(_pixels(1, 6)[0]).save(folder / 'train' / 'bee' / 'x.jpg', 'PNG')
  assert _size(_load(folder)) == 24 + 8 + 4 + 2


def test_what_is_not_read_is_counted_by_reason_in_one_line(folder, caplog):
  for number in range(3):
    (folder / 'train' / 'ant' / f'{number}.txt').write_text('no image')
  (folder / 'train' / 'bee' / 'table.csv').write_text('a,b')
  (folder / 'train' / 'bee' / 'noname').write_text('no image')
  (folder / 'train' / 'loose.png').write_bytes(b'')
  _write(folder / 'val' / 'ant', 1)
  message = _warning(folder, caplog, 24)
  assert '6 files are not read: 3 .txt, ' in message
  for part in ('1 .csv', '1 without suffix', '1 in train/ but in no class', 'val'):
    assert part in message


def test_images_that_cannot_be_read_are_refused_together(folder):
  ant = folder / 'train' / 'ant'
  for number in range(5):
    (ant / f'{number}.png').write_bytes((ant / f'{number}.png').read_bytes()[:-40])
  (ant / '5.png').write_text('no image')
  message = _error(folder)
  assert 'got images that cannot be read (6): train/ant/0.png (' in message
  assert '3 more' in message


def test_an_image_of_too_many_pixels_is_refused(folder, monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
  Image.new('L', (11, 11)).save(folder / 'train' / 'ant' / 'large.png')
  assert 'train/ant/large.png (more than 100 pixels)' in _error(folder)


def test_links_are_followed_and_a_circle_ends(folder, tmp_path):
  before = _load(folder)
  ant = folder / 'train' / 'ant'
  (ant / 'circle').symlink_to(folder / 'train' / 'ant')
  (folder / 'train' / 'bee').rename(tmp_path / 'elsewhere')
  (folder / 'train' / 'bee').symlink_to(tmp_path / 'elsewhere')
  (ant / '0.png').rename(tmp_path / 'image.png')
  (ant / '0.png').symlink_to(tmp_path / 'image.png')
  after = _load(folder)
  np.testing.assert_array_equal(after.train.images, before.train.images)
  np.testing.assert_array_equal(after.test.images, before.test.images)


def test_class_names_that_look_alike_are_one_class(folder):
  composed = unicodedata.normalize('NFC', 'café')
  decomposed = unicodedata.normalize('NFD', 'café')
  _write(folder / 'train' / composed, 6, seed=3)
  _write(folder / 'train' / decomposed, 6, seed=4)
  for number, name in enumerate(('ant', 'bee', decomposed)):
    _write(folder / 'test' / name, 2, seed=5 + number)
  dataset = _load(folder)
  assert dataset.class_names == ('ant', 'bee', composed)
  assert _size(dataset) == 24 + 12 + 6


def test_a_class_name_that_cannot_be_printed_is_refused(folder):
  os.mkdir(os.fsencode(folder / 'train') + b'/caf\xe9')
  assert 'want a folder name of printable characters' in _error(folder)


def test_an_empty_class_is_named(folder):
  (folder / 'train' / 'cow').mkdir()
  (folder / 'train' / 'cow' / '.gitkeep').write_bytes(b'')
  assert 'train/cow: got no images, want at least 1' in _error(folder)


def test_files_that_cannot_be_printed_stay_in_one_line(folder, caplog):
  ant = folder / 'train' / 'ant'
  (ant / 'a.x\ny').write_text('no image')
  assert '1 .x\\ny' in _warning(folder, caplog, 24)
  (ant / 'a\nb.png').write_text('no image')
  assert 'a\\nb.png (no image)' in _error(folder)


def test_splits_are_the_same_at_every_image_size(folder):
  def labels(size):
    dataset = _load(folder, image_size=size)
    return [split.labels.tolist() for split in (dataset.train, dataset.test)]

  assert labels(None) == labels(16) == labels(8)


def test_images_that_show_nothing_are_told(folder, caplog):
  for file in sorted(folder.rglob('*.png')):  # Values of 8 bits in 16.
    gray = np.asarray(Image.open(file))[..., 0].astype(np.uint16)
    Image.fromarray(gray).save(file)
  with caplog.at_level(logging.WARNING):
    _load(folder)
  assert '24 of 24 training images have one colour only' in caplog.text


def test_transparent_and_16_bit_images_are_told_apart(folder):
  for number, name in enumerate(('ant', 'bee')):
    for index in range(12):
      square = np.zeros((9, 9), np.uint16)
      square[number : number + 3, index % 6 : index % 6 + 3] = 60_000 + index
      (folder / 'train' / name / f'{index}.png').unlink()
      Image.fromarray(square).save(folder / 'train' / name / f'{index}.png')
  dataset = _load(folder)
  assert dataset.image_shape == (9, 9, 1)
  assert set(np.unique(dataset.train.images)) == {0, 60_000 // 256}
