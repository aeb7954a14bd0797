"""Bad archives, whose checksums are as registered, are refused by name."""

from collections.abc import Iterator
import gzip
import struct
import tarfile
from typing import Any

import pytest

from tests.data.conftest import (
  Place,
  cifar_members,
  class_names,
  counts,
  idx,
  make_archives,
  member,
  tar_gz,
)


def _bad_idx_files() -> Iterator[Any]:
  splits, files = make_archives('mnist')
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
  yield 'fewer labels', labels_name, gzip.compress(idx(fewer))
  yield 'eleventh class', labels_name, gzip.compress(labels[:-1] + b'\x0a')


@pytest.mark.parametrize(
  ('filename', 'content'), [pytest.param(*c[1:], id=c[0]) for c in _bad_idx_files()]
)
def test_a_bad_idx_file_is_an_error(
  filename: str, content: bytes, place: Place
) -> None:
  _, archives = make_archives('mnist')
  place.put('mnist', archives | {filename: content})

  message = place.error('mnist')

  assert filename in message
  assert not (place.data_dir / 'mnist').exists()


def _bad_cifar_archives() -> Iterator[Any]:
  splits, _ = make_archives('cifar10')
  members = cifar_members('cifar10', splits)
  whole = tar_gz(members)
  batch = 'cifar-10-batches-bin/data_batch_3.bin'

  def replaced(info: tarfile.TarInfo, data: bytes = b'') -> bytes:
    others = [member for member in members if member[0].name != batch]
    return tar_gz([*others, (info, data)])

  def linked(kind: bytes, target: str) -> bytes:
    info = tarfile.TarInfo(batch)
    info.type, info.linkname = kind, target
    return replaced(info)

  yield 'cut gzip', whole[: len(whole) // 2], 'gzip'
  yield 'no tar', gzip.compress(b'not a tar file' * 1000), 'tar'
  yield 'cut tar', gzip.compress(gzip.decompress(whole)[:20_000]), 'cifar-10'
  yield 'missing file', tar_gz(members[1:]), 'data_batch_1.bin'
  yield 'no class names', tar_gz(members[:-1]), 'batches.meta.txt'
  yield 'symbolic link', linked(tarfile.SYMTYPE, '/etc/passwd'), batch
  yield 'hard link', linked(tarfile.LNKTYPE, members[0][0].name), batch
  yield 'device', linked(tarfile.CHRTYPE, ''), batch
  yield 'twice', tar_gz([*members, members[0]]), 'data_batch_1.bin'
  yield 'other path', replaced(*member(f'../{batch}', b'x' * 3073)), batch
  yield 'half a record', replaced(*member(batch, b'\0' * 3000)), 'data_batch_3.bin'
  yield 'empty batch', replaced(*member(batch, b'')), 'data_batch_3.bin'
  yield (
    'eleventh class',
    replaced(*member(batch, b'\x0a' * 3073)),
    'got label 10',
  )
  names = member('cifar-10-batches-bin/batches.meta.txt', class_names('class', 9))
  yield 'nine names', tar_gz([*members[:-1], names]), 'got 9 class names, want 10'
  huge = tarfile.TarInfo(batch)
  huge.size = 2**40
  cut = gzip.decompress(tar_gz(members[:1]))[: -20 * 512] + huge.tobuf()
  yield 'absurd size', gzip.compress(cut), 'cifar-10-binary.tar.gz'


@pytest.mark.parametrize(
  ('content', 'wanted'),
  [pytest.param(*case[1:], id=case[0]) for case in _bad_cifar_archives()],
)
def test_a_bad_cifar_archive_is_an_error(
  content: bytes, wanted: str, place: Place
) -> None:
  place.put('cifar10', {'cifar-10-binary.tar.gz': content})
  assert wanted in place.error('cifar10')
  assert not (place.data_dir / 'cifar10').exists()


def test_an_archive_that_expands_without_end_is_an_error(place: Place) -> None:
  content = gzip.compress(bytes(2**20)) * 1000
  place.put('cifar10', {'cifar-10-binary.tar.gz': content})
  assert 'want at most 268435456' in place.error('cifar10')


def test_other_members_of_an_archive_are_ignored(place: Place) -> None:
  splits, _ = make_archives('cifar10')
  outside = place.manual_dir.parent / 'outside'
  link = tarfile.TarInfo('cifar-10-batches-bin/link')
  link.type, link.linkname = tarfile.SYMTYPE, '/'
  members = [
    member('../outside', b'evil'),
    member(str(outside), b'evil'),
    (link, b''),
    *cifar_members('cifar10', splits),
  ]
  place.put('cifar10', {'cifar-10-binary.tar.gz': tar_gz(members)})

  assert counts(place.load('cifar10').test) == counts(splits['test'])
  assert not outside.exists()
