"""An exported folder has one network, whole, and nothing of its owner's is lost."""

import json
import os
import pathlib
import shutil

import pytest

from lamarck_jax import exported_files
from lamarck_jax.errors import StorageError, UserError
from lamarck_jax.genotype import Genotype


def write(out: pathlib.Path, name: str = 'ant', onnx: bool = True) -> None:
  """Exports a network that has a name in every file."""
  files = {
    exported_files.PROGRAM: f'program of {name}'.encode(),
    exported_files.WEIGHTS: f'weights of {name}'.encode(),
    exported_files.README: f'# {name}'.encode(),
  }
  if onnx:
    files[exported_files.ONNX] = f'onnx of {name}'.encode()
  description = {
    **Genotype.parse('4c3').to_json(),
    'image_shape': (8, 8, 1),
    'class_names': (name, 'other'),
    'mean': (120.5,),
    'std': (60.25,),
    'test_accuracy': 0.5,
  }
  exported_files.write(out, files, description)


def read(out: pathlib.Path) -> tuple[str, str]:
  """Returns the name in the description, and that in the program."""
  description = exported_files.read_description(out)
  program = exported_files.read_program(out, description)
  return description.class_names[0], program.decode().removeprefix('program of ')


def refusal(out: pathlib.Path) -> str:
  with pytest.raises(UserError) as raised:
    read(out)
  assert '\n' not in str(raised.value)
  return str(raised.value)


def files(out: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def make_other(path: pathlib.Path, what: str) -> None:
  """Makes what is no regular file."""
  if what == 'pipe':
    os.mkfifo(path)
  elif what == 'folder':
    path.mkdir()
  else:
    path.symlink_to('nowhere')


def test_what_is_written_is_read_and_replaced_by_a_later_export(tmp_path):
  write(tmp_path / 'a' / 'out')
  assert read(tmp_path / 'a' / 'out') == ('ant', 'ant')
  write(tmp_path / 'a' / 'out', 'bee', onnx=False)
  assert read(tmp_path / 'a' / 'out') == ('bee', 'bee')
  assert sorted(files(tmp_path / 'a' / 'out')) == [
    'README.md',
    'network.json',
    'network.stablehlo',
    'weights.safetensors',
  ]


# ------------------------------------------------------------------------------
# One network at a time
# ------------------------------------------------------------------------------


@pytest.mark.parametrize('first', [True, False])
def test_an_export_stopped_at_any_call_leaves_one_network_or_none(
  tmp_path, monkeypatch, first
):
  """Each call that changes the file system is the last one in turn."""

  class KilledError(BaseException):
    pass

  for number in range(1000):
    out = tmp_path / str(number)
    if not first:
      write(out, 'ant')
    count = 0

    def killed(*args, call, last=number, **kwargs):
      nonlocal count
      count += 1
      if count > last:
        raise KilledError
      return call(*args, **kwargs)

    with monkeypatch.context() as patch:
      patch.setattr(os, 'fsync', lambda descriptor: None)  # It takes long.
      for name in ('write', 'replace', 'unlink', 'mkdir', 'fsync', 'rename'):
        call = getattr(os, name)
        patch.setattr(os, name, lambda *a, call=call, **k: killed(*a, call=call, **k))
      # A killed process cleans nothing up.
      patch.setattr(shutil, 'rmtree', lambda *args, **kwargs: None)
      try:
        write(out, 'bee')
        ended = True
      except KilledError:
        ended = False
    if not ended and not (out / exported_files.DESCRIPTION).exists():
      refusal(out)
    else:
      assert len(set(read(out))) == 1
    write(out, 'cat')
    assert read(out) == ('cat', 'cat')
    assert not [name for name in files(out) if name.startswith('README.md.')]
    if ended:
      break
  assert number > 20


def test_a_full_disk_keeps_the_earlier_export(tmp_path, monkeypatch):
  write(tmp_path / 'out')
  before = files(tmp_path / 'out')

  def full(*_args):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'write', full)
    with pytest.raises(StorageError, match='No space left'):
      write(tmp_path / 'out', 'bee')
  assert files(tmp_path / 'out') == before
  assert len(list((tmp_path / 'out').iterdir())) == len(before)


# ------------------------------------------------------------------------------
# The owner's files
# ------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['README.md', 'network.json', 'thesis.tex', '.git'])
def test_a_folder_of_the_users_own_is_refused_in_one_line_and_left_alone(
  tmp_path, name
):
  (tmp_path / name).write_text('mine')
  with pytest.raises(UserError, match='out: got') as raised:
    write(tmp_path)
  assert '\n' not in str(raised.value)
  assert name in str(raised.value)
  assert files(tmp_path) == {name: b'mine'}


def test_a_file_is_refused_as_a_folder(tmp_path):
  (tmp_path / 'file').write_text('mine')
  for out in (tmp_path / 'file', tmp_path / 'file' / 'below'):
    with pytest.raises(UserError, match='want a folder'):
      write(out)


def test_other_files_beside_an_export_and_an_edited_readme_are_kept(tmp_path):
  write(tmp_path)
  (tmp_path / 'photo.png').write_bytes(b'mine')
  (tmp_path / 'README.md').write_text('# ant, for the fair')
  write(tmp_path, 'bee')
  (tmp_path / 'README.md').write_text('# bee, for the fair')
  write(tmp_path, 'cat')
  found = files(tmp_path)
  assert found['photo.png'] == b'mine'
  assert found['README.md'] == b'# cat'
  assert found['README.md.old-1'] == b'# ant, for the fair'
  assert found['README.md.old-2'] == b'# bee, for the fair'


@pytest.mark.parametrize(
  'name', ['network.json', 'network.stablehlo', 'weights.safetensors', 'network.onnx']
)
def test_a_folder_with_the_name_of_a_file_is_refused_and_the_export_kept(
  tmp_path, name
):
  write(tmp_path)
  (tmp_path / name).unlink()
  (tmp_path / name).mkdir()
  (tmp_path / name / 'notes').write_text('mine')
  before = files(tmp_path)
  with pytest.raises(UserError, match=rf'out: got .*{name}, which is a folder'):
    write(tmp_path, 'bee')
  assert files(tmp_path) == before
  assert (tmp_path / name / 'notes').read_text() == 'mine'


@pytest.mark.parametrize('what', ['pipe', 'folder', 'dangling link'])
def test_a_readme_that_is_no_file_is_renamed(tmp_path, what):
  write(tmp_path)
  (tmp_path / 'README.md').unlink()
  make_other(tmp_path / 'README.md', what)
  mode = (tmp_path / 'README.md').lstat().st_mode
  write(tmp_path, 'bee')
  assert (tmp_path / 'README.md').read_text() == '# bee'
  assert (tmp_path / 'README.md.old-1').lstat().st_mode == mode


# ------------------------------------------------------------------------------
# Damage
# ------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'name', ['network.stablehlo', 'weights.safetensors', 'network.onnx']
)
def test_a_flipped_bit_or_another_networks_file_is_named(tmp_path, name):
  write(tmp_path / 'out')
  write(tmp_path / 'other', 'bee')
  content = (tmp_path / 'out' / name).read_bytes()
  for wrong in (
    b'',
    content[:-1],
    bytes([content[0] ^ 1]) + content[1:],
    (tmp_path / 'other' / name).read_bytes(),
  ):
    (tmp_path / 'out' / name).write_bytes(wrong)
    assert name in refusal(tmp_path / 'out')


def test_every_flipped_bit_of_the_description_is_found(tmp_path):
  write(tmp_path)
  path = tmp_path / 'network.json'
  written, wanted = path.read_bytes(), exported_files.read_description(tmp_path)
  for position in range(0, 8 * len(written), 13):
    damaged = bytearray(written)
    damaged[position // 8] ^= 1 << position % 8
    path.write_bytes(damaged)
    try:
      found = exported_files.read_description(tmp_path)
    except UserError as error:
      assert '\n' not in str(error)
    else:
      assert found == wanted  # White space has become other white space.


@pytest.mark.parametrize(
  'content',
  [
    '',
    '[]',
    'null',
    '{}',
    '{"format_version": 2}',
    '{"format_version": 1}',
    '{"format_version": [1]}',
    '{"format_version": 99}',
    '[' * 100_000,
  ],
  ids=range(9),
)
def test_a_description_of_the_wrong_form_is_named_in_one_line(tmp_path, content):
  write(tmp_path)
  (tmp_path / 'network.json').write_text(content)
  assert 'network.json' in refusal(tmp_path)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('genotype', 'abc'),
    ('genotype', [[4, 3, 'x']]),
    ('image_shape', [8, 8]),
    ('image_shape', 8),
    ('class_names', 'ant'),
    ('class_names', [1, 2]),
    ('mean', [None]),
    ('std', [0]),
    ('test_accuracy', 'high'),
    ('test_accuracy', 7),
  ],
)
def test_an_impossible_value_is_named_also_in_the_format_without_digests(
  tmp_path, field, value
):
  write(tmp_path)
  path = tmp_path / 'network.json'
  content = json.loads(path.read_text())
  del content['sha256'], content['files']
  content['format_version'] = 1
  path.write_text(json.dumps(content))
  assert read(tmp_path) == ('ant', 'ant')
  path.write_text(json.dumps({**content, field: value}))
  assert 'network.json' in refusal(tmp_path)


@pytest.mark.parametrize(
  'name', ['network.json', 'network.stablehlo', 'weights.safetensors', 'network.onnx']
)
@pytest.mark.parametrize('what', ['pipe', 'folder', 'dangling link'])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name, what):
  write(tmp_path)
  (tmp_path / name).unlink()
  make_other(tmp_path / name, what)
  assert 'regular' in refusal(tmp_path)


def test_what_a_program_does_without_may_be_edited_or_removed(tmp_path):
  write(tmp_path)
  (tmp_path / 'README.md').write_text('mine')
  (tmp_path / 'weights.safetensors').unlink()
  (tmp_path / 'network.onnx').unlink()
  assert read(tmp_path) == ('ant', 'ant')
