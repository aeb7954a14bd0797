"""A run keeps to the data set that it was started with, wherever its files lie."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from lamarck_jax.errors import DamagedError, UserError
from lamarck_jax.run_directory import dataset_record, records
from tests.run_directory.conftest import make_config, make_variables

SECTION = {
  'name': 'npz:photos.npz',
  'data_dir': None,
  'manual_dir': None,
  'num_train': None,
  'num_validation': 9,
  'image_size': None,
}


def write_photos(path: pathlib.Path, **changes: Any) -> None:
  rng = np.random.default_rng(0)
  arrays: dict[str, Any] = {
    'x_train': rng.integers(0, 256, (60, 8, 8, 1)).astype(np.uint8),
    'y_train': np.arange(60) % 3,
    'x_test': rng.integers(0, 256, (12, 8, 8, 1)).astype(np.uint8),
    'y_test': np.arange(12) % 3,
    'class_names': np.array(['ant', 'bee', 'cat']),
  }
  np.savez(path, **{**arrays, **changes})


@pytest.fixture(name='started')
def _started(tmp_path, monkeypatch):
  """A run directory whose search was started from the folder of its data."""
  home = tmp_path / 'home'
  home.mkdir()
  monkeypatch.chdir(home)
  write_photos(home / 'photos.npz')
  return start(tmp_path / 'run')


def start(workdir: pathlib.Path) -> pathlib.Path:
  """Starts a search as `search.run` does, without any evaluation."""
  config = make_config(dataset__name=SECTION['name'])
  _, record = dataset_record.load(SECTION, workdir)
  directory = records.RunDirectory(workdir, config)
  directory.write_dataset(record)
  directory.write_start(record.description, {'cores': 1})
  return workdir


def contents(path: pathlib.Path) -> dict[str, bytes]:
  return {str(p): p.read_bytes() for p in path.rglob('*') if p.is_file()}


def refusal(workdir: pathlib.Path, **changes: object) -> str:
  """Returns the one line with which a later start is refused."""
  before = contents(workdir)
  with pytest.raises(UserError) as raised:
    dataset_record.load({**SECTION, **changes}, workdir)
  assert '\n' not in str(raised.value)
  assert contents(workdir) == before
  return str(raised.value)


def test_the_first_start_records_the_data_and_a_later_one_agrees(started):
  content = json.loads((started / 'dataset.json').read_text())
  assert content['class_names'] == ['ant', 'bee', 'cat']
  assert content['as_typed']['name'] == 'npz:photos.npz'
  assert content['absolute']['name'] == f'npz:{pathlib.Path.cwd()}/photos.npz'
  before = contents(started)
  dataset, record = dataset_record.load(SECTION, started)
  records.RunDirectory(
    started, make_config(dataset__name=SECTION['name'])
  ).write_dataset(record)
  assert contents(started) == before
  assert dataset.name == 'npz:photos.npz'


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'y_train': (np.arange(60) + 1) % 3}, 'other labels in train, validation'),
    ({'y_test': (np.arange(12) + 1) % 3}, 'in test'),
    ({'x_test': np.zeros((12, 8, 8, 1), np.uint8)}, 'other images'),
    (
      {'x_train': np.zeros((66, 8, 8, 1), np.uint8), 'y_train': np.arange(66) % 3},
      '57 train images instead of 51',
    ),
    (
      {
        'y_train': np.arange(60) % 4,
        'y_test': np.arange(12) % 4,
        'class_names': np.array(['ant', 'bee', 'cat', 'dog']),
      },
      "class 'dog' added",
    ),
    ({'class_names': np.array(['bee', 'ant', 'cat'])}, 'another order'),
  ],
  ids=['labels', 'test labels', 'test images', 'images added', 'class', 'names'],
)
def test_other_data_behind_the_same_name_are_refused_with_what_differs(
  started, changes, words
):
  write_photos(pathlib.Path('photos.npz'), **changes)
  message = refusal(started)
  assert message.startswith('dataset: got ')
  assert words in message
  assert 'want the data set that' in message


def test_other_sizes_of_the_splits_are_refused(started):
  assert '8 validation images instead of 9' in refusal(started, num_validation=8)


def test_the_same_relative_name_leads_to_the_data_from_every_folder(
  started, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  dataset, _ = dataset_record.load(SECTION, started)
  assert dataset.name == f'npz:{tmp_path}/home/photos.npz'
  # A file of that name that is here is what was meant, so others are refused.
  write_photos(tmp_path / 'photos.npz', y_test=(np.arange(12) + 1) % 3)
  assert str(tmp_path / 'photos.npz') in refusal(started)
  write_photos(tmp_path / 'photos.npz')
  dataset_record.load(SECTION, started)


def test_relative_data_folders_lead_to_the_data_from_every_folder(
  started, tmp_path, monkeypatch
):
  (started / 'dataset.json').unlink()
  (tmp_path / 'home' / 'tfds').mkdir()
  section = {**SECTION, 'data_dir': 'tfds', 'manual_dir': '~/archives'}
  _, record = dataset_record.load(section, started)
  assert record.absolute['data_dir'] == str(tmp_path / 'home' / 'tfds')
  assert record.absolute['manual_dir'] == str(pathlib.Path.home() / 'archives')
  assert record.as_typed['manual_dir'] == '~/archives'


def test_two_spellings_of_a_path_are_one_data_set(started, tmp_path):
  for name in (
    f'npz:{tmp_path}/home/photos.npz',
    'npz:./photos.npz',
    'npz:../home/photos.npz',
  ):
    records.check(started, make_config(dataset__name=name))
    dataset_record.load({**SECTION, 'name': name}, started)
    dataset_record.check_finished({**SECTION, 'name': name}, started)
    assert not dataset_record.needs_check({**SECTION, 'name': name}, started)
  # An older run has no record, so the paths decide.
  (started / 'dataset.json').unlink()
  records.check(started, make_config(dataset__name='npz:../home/photos.npz'))
  for name in ('npz:other.npz', 'folder:photos.npz', 'digits'):
    with pytest.raises(UserError, match=r'differs in dataset\.name'):
      records.check(started, make_config(dataset__name=name))


def test_data_that_have_moved_are_recognised_and_others_are_not(started, tmp_path):
  pathlib.Path('photos.npz').rename(tmp_path / 'moved.npz')
  moved = {**SECTION, 'name': f'npz:{tmp_path}/moved.npz'}
  records.check(started, make_config(dataset__name=moved['name']))
  dataset_record.load(moved, started)
  assert dataset_record.needs_check(moved, started)
  assert dataset_record.check_finished(moved, started)
  write_photos(tmp_path / 'moved.npz', y_train=(np.arange(60) + 1) % 3)
  with pytest.raises(UserError, match='other labels in train'):
    dataset_record.check_finished(moved, started)


def test_a_finished_run_does_without_its_data(started, tmp_path, monkeypatch):
  pathlib.Path('photos.npz').unlink()
  for folder in (tmp_path / 'home', tmp_path):
    monkeypatch.chdir(folder)
    assert not dataset_record.check_finished(SECTION, started)
  assert str(tmp_path / 'home' / 'photos.npz') in refusal(started)


# ------------------------------------------------------------------------------
# Runs that predate dataset.json
# ------------------------------------------------------------------------------


@pytest.mark.parametrize('environment', [True, False])
def test_an_older_run_is_given_the_file_at_its_next_start(started, environment):
  written = (started / 'dataset.json').read_bytes()
  (started / 'dataset.json').unlink()
  if not environment:
    (started / 'environment.json').unlink()
  start(started)
  assert (started / 'dataset.json').read_bytes() == written


def test_an_older_run_refuses_data_of_which_it_knows_that_they_differ(started):
  (started / 'dataset.json').unlink()
  names = np.array(['ant', 'bee', 'cat', 'dog'])
  labels = {'y_train': np.arange(60) % 4, 'y_test': np.arange(12) % 4}
  write_photos(pathlib.Path('photos.npz'), **labels, class_names=names)
  assert "class 'dog' added" in refusal(started)
  # Where nothing but its networks is left, they tell the number of classes.
  (started / 'environment.json').write_text('damaged')
  config = make_config(dataset__name=SECTION['name'])
  records.RunDirectory(started, config).write_weights(0, make_variables())
  assert '4 classes instead of 10' in refusal(started)


# ------------------------------------------------------------------------------
# Damage
# ------------------------------------------------------------------------------


def test_every_flipped_bit_is_found(started):
  path = started / 'dataset.json'
  written, wanted = path.read_bytes(), dataset_record.read(started)
  for position in range(0, len(written), 7):
    path.write_bytes(
      written[:position]
      + bytes([written[position] ^ (1 << position % 8)])
      + written[position + 1 :]
    )
    try:
      found = dataset_record.read(started)
    except UserError:
      continue
    # White space may have become other white space.
    assert found == wanted


@pytest.mark.parametrize('content', ['', '{}', '[]', '{"format_version": 9}', 'null'])
def test_a_file_of_the_wrong_form_is_named_in_one_line(started, content):
  (started / 'dataset.json').write_text(content)
  with pytest.raises(DamagedError, match=r'dataset\.json') as raised:
    dataset_record.load(SECTION, started)
  assert '\n' not in str(raised.value)
  # The report still says what it can.
  assert records.read_environment(started)['dataset']['class_names'][0] == 'ant'
