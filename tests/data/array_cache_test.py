"""The cache of decoded arrays."""

import numpy as np
import pytest

from lamarck_jax.data import decoding
from tests.data.conftest import Cached, assert_equal


def test_reading_is_quiet(cached: Cached, capfd: pytest.CaptureFixture[str]) -> None:
  place, dataset, path = cached
  path.unlink()
  capfd.readouterr()
  assert_equal(place.load('mnist'), dataset)
  assert capfd.readouterr() == ('', '')


def test_the_second_read_is_from_the_cache(
  cached: Cached, capfd: pytest.CaptureFixture[str]
) -> None:
  place, dataset, _ = cached
  for records in place.version_dir('mnist').glob('*.array_record*'):
    records.unlink()
  capfd.readouterr()
  assert_equal(place.load('mnist'), dataset)
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize(
  'damage', ['one byte', 'cut', 'empty', 'other file', 'pickle', 'other data']
)
def test_a_cache_that_is_damaged_or_of_other_data_is_replaced(
  damage: str, cached: Cached
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

  assert_equal(place.load('mnist'), dataset)
  assert path.stat().st_size == len(content)
  assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_cache_of_other_rules_of_decoding_is_not_used(
  cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
  place, dataset, path = cached
  monkeypatch.setattr(decoding, 'VERSION', decoding.VERSION + 1)
  old = path.read_bytes()
  assert_equal(place.load('mnist'), dataset)
  assert path.read_bytes() != old


def test_a_cache_that_cannot_be_written_is_no_error(cached: Cached) -> None:
  place, dataset, path = cached
  path.unlink()
  path.parent.rmdir()
  path.parent.write_text('a file where the folder should be')
  assert_equal(place.load('mnist'), dataset)
