"""Tests of `paths`."""

import pathlib

import pytest

from lamarck_jax.errors import UserError
from lamarck_jax.runtime import paths


def test_the_home_folder_is_expanded(monkeypatch):
  monkeypatch.setenv('HOME', '/home/ada')
  assert paths.local('workdir', '~/runs/1') == '/home/ada/runs/1'
  assert paths.local('workdir', pathlib.Path('~')) == '/home/ada'


@pytest.mark.parametrize(
  'path',
  [
    'run',
    '/a/b',
    '../run',
    './gs:/b',
    'a:b',
    'C:/runs',
    'x~y',
    'a/b:/c',
    '{é} %s\n\udcff',
  ],
)
def test_any_other_path_is_taken_as_it_is(path):
  assert paths.local('workdir', path) == path


@pytest.mark.parametrize(
  'path',
  [
    *('gs://bucket/run', 's3://bucket', 'file:///tmp/run', 'http://host/x', 'S3://b'),
    *('hdfs://host/run', 'abfs+ssl://x', 'memory://run', 'memory:run', 'file:run'),
    'gs:/bucket/run',  # What pathlib makes of it.
  ],
)
def test_a_url_is_refused_by_the_name_of_what_it_is_given_for(path):
  with pytest.raises(UserError, match=f"^workdir: got '{path}'".replace('+', r'\+')):
    paths.local('workdir', path)


def test_the_home_folder_of_an_unknown_user_is_refused():
  with pytest.raises(UserError, match='home folder'):
    paths.local('out', '~nobody_of_this_name/run')


def test_a_path_that_cannot_be_looked_at_is_refused(tmp_path):
  (tmp_path / 'loop').symlink_to('loop')
  for path in ('a' * 300, 'nul\0', tmp_path / 'loop' / 'run'):
    with pytest.raises(UserError, match=r'^workdir: got .* opening .*, want a path'):
      paths.local('workdir', path)
  (tmp_path / 'file').write_text('')
  for name in ('file', 'file/below', 'nothing/there'):
    assert paths.local('workdir', tmp_path / name) == str(tmp_path / name)
