"""The network to take home equals the one that was found."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

import lamarck_jax
from lamarck_jax import export, search
from lamarck_jax.data import datasets, decoding
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import records
from tests import conftest

# Without this project: what it exports must stand alone.
_ALONE = """
import sys, jax.export, numpy as np
sys.modules['lamarck_jax'] = None
program = jax.export.deserialize(bytearray(open('network.stablehlo', 'rb').read()))
images = np.load('images.npy')
np.save('probabilities.npy', program.call(images))
"""


_ONNX_ALONE = """
import sys, numpy as np, onnxruntime
sys.modules['lamarck_jax'] = sys.modules['jax'] = None
session = onnxruntime.InferenceSession('network.onnx')
images = np.load('images.npy')
np.save('probabilities.npy', session.run(['probabilities'], {'images': images})[0])
"""


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """Configuration and directory of a finished search, and what it exports."""
  config = conftest.make_tiny_config()
  config.budget_epochs = 3
  config.checkpoint_epochs = (2,)
  workdir = tmp_path_factory.mktemp('export') / 'run'
  search.run(config, workdir)
  out = workdir.parent / 'out'
  export.export(workdir, out)
  return config, workdir, out


def test_the_exported_network_has_the_recorded_test_accuracy(finished):
  config, workdir, out = finished
  test = datasets.load(**config.dataset).test
  np.save(out / 'images.npy', test.images)
  subprocess.run([sys.executable, '-c', _ALONE], cwd=out, check=True, timeout=120)
  probabilities = np.load(out / 'probabilities.npy')
  np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
  accuracy = np.mean(probabilities.argmax(-1) == test.labels)
  checkpoint = records.read_result(workdir)['checkpoints'][-1]
  assert accuracy == pytest.approx(checkpoint['test_accuracy'], abs=1e-9)
  for path in (out, workdir):
    network = lamarck_jax.load(path)
    np.testing.assert_allclose(network(test.images), probabilities, atol=1e-6)
    assert network.test_accuracy == checkpoint['test_accuracy']
    assert network.class_names == tuple('0123456789')


@pytest.mark.parametrize('compute_dtype', ['float32', 'bfloat16'])
def test_onnx_runtime_predicts_the_same(tmp_path, compute_dtype):
  pytest.importorskip('jax2onnx')
  pytest.importorskip('onnxruntime')
  config = conftest.make_tiny_config()
  config.compute_dtype = compute_dtype
  config.budget_epochs = 1
  config.checkpoint_epochs = ()
  search.run(config, tmp_path / 'run')
  network = export.export(tmp_path / 'run', tmp_path / 'out', onnx=True)
  images = datasets.load(**config.dataset).test.images
  tolerance = {'float32': 1e-4, 'bfloat16': 0.02}[compute_dtype]
  for number in (len(images), 1):
    np.save(tmp_path / 'out' / 'images.npy', images[:number])
    subprocess.run(
      [sys.executable, '-c', _ONNX_ALONE], cwd=tmp_path / 'out', check=True, timeout=120
    )
    probabilities = np.load(tmp_path / 'out' / 'probabilities.npy')
    np.testing.assert_allclose(probabilities, network(images[:number]), atol=tolerance)
  assert run_readme(tmp_path / 'out', images[0]).splitlines()[1] == '(1, 10)'
  # The oldest runtime for this Python reads up to opset 19 and format version 9.
  assert onnx_versions(tmp_path / 'out') == (15, 8)
  export.export(tmp_path / 'run', tmp_path / 'out', onnx=True, onnx_opset=19)
  assert onnx_versions(tmp_path / 'out') == (19, 9)
  for opset in (14, 99):
    with pytest.raises(UserError, match=f'onnx_opset: got {opset}, want 15 to'):
      export.export(tmp_path / 'run', tmp_path / 'out', onnx=True, onnx_opset=opset)
  assert onnx_versions(tmp_path / 'out') == (19, 9)
  # Exported again without, none is left that may be another network's.
  export.export(tmp_path / 'run', tmp_path / 'out')
  assert not (tmp_path / 'out' / 'network.onnx').exists()
  assert 'onnx' not in (tmp_path / 'out' / 'README.md').read_text()


def onnx_versions(out) -> tuple[int, int]:
  """Returns the versions of the operators and of the format of a file."""
  content = pytest.importorskip('onnx').load(out / 'network.onnx')
  return content.opset_import[0].version, content.ir_version


def test_without_the_converter_the_extra_is_named(finished, tmp_path, monkeypatch):
  _, workdir, _ = finished
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)
  with pytest.raises(UserError, match=r"pip install -e '\.\[onnx\]'") as raised:
    export.export(workdir, tmp_path / 'out', onnx=True)
  assert '\n' not in str(raised.value)
  assert not (tmp_path / 'out').exists()


def test_a_network_is_what_its_run_recorded_and_not_what_the_data_are_today(
  finished, tmp_path, monkeypatch
):
  _, workdir, out = finished

  def gone(**_fields):
    raise AssertionError('the data were read')

  monkeypatch.setattr(datasets, 'load', gone)
  recorded = json.loads((workdir / 'dataset.json').read_text())
  network = export.export(workdir, tmp_path / 'out')
  assert list(network.class_names) == recorded['class_names']
  assert list(network.mean) == recorded['mean']
  assert list(network.std) == recorded['std']
  assert network == lamarck_jax.load(out) == lamarck_jax.load(tmp_path / 'out')


def test_of_an_older_run_the_data_are_read_if_they_have_the_classes_that_it_knows(
  finished, tmp_path
):
  _, workdir, out = finished
  shutil.copytree(workdir, tmp_path / 'run')
  (tmp_path / 'run' / 'dataset.json').unlink()
  network = lamarck_jax.load(tmp_path / 'run')
  assert network.mean == lamarck_jax.load(out).mean
  path = tmp_path / 'run' / 'environment.json'
  environment = json.loads(path.read_text())
  environment['dataset']['class_names'][3] = 'three'
  path.write_text(json.dumps(environment))
  with pytest.raises(UserError, match="class '3' added, class 'three' missing"):
    lamarck_jax.load(tmp_path / 'run')


def test_an_older_export_without_digests_loads(finished, tmp_path):
  _, _, out = finished
  shutil.copytree(out, tmp_path / 'out')
  path = tmp_path / 'out' / 'network.json'
  content = json.loads(path.read_text())
  del content['sha256'], content['files']
  path.write_text(json.dumps({**content, 'format_version': 1}))
  assert lamarck_jax.load(tmp_path / 'out') == lamarck_jax.load(out)
  # Nothing but the program's shapes tells that a description is another network's.
  for field, value in (
    ('class_names', ['a', 'b']),
    ('image_shape', [9, 8, 1]),
  ):
    path.write_text(json.dumps({**content, 'format_version': 1, field: value}))
    with pytest.raises(UserError, match='inputs and outputs') as raised:
      lamarck_jax.load(tmp_path / 'out')
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
  'content', ['{}', '[]', '', '{"checkpoints": [], "best": {"genotype": "x"}}']
)
def test_a_result_of_the_wrong_form_is_named(finished, tmp_path, content):
  _, workdir, _ = finished
  shutil.copytree(workdir, tmp_path / 'run')
  (tmp_path / 'run' / 'result.json').write_text(content)
  with pytest.raises(UserError, match=r'result\.json') as raised:
    export.export(tmp_path / 'run', tmp_path / 'out')
  assert '\n' not in str(raised.value)
  assert not (tmp_path / 'out').exists()


def test_any_number_of_images_can_be_classified_and_nothing_else(finished):
  _, _, out = finished
  network = lamarck_jax.load(out)
  images = np.random.default_rng(0).integers(0, 256, (5, *network.image_shape))
  images = images.astype(np.uint8)
  together = network(images)
  alone = np.concatenate([network(images[i : i + 1]) for i in range(5)])
  np.testing.assert_allclose(together, alone, atol=1e-6)
  for wrong in (images.astype(np.float32), images[:, 1:], images[0], images[:0]):
    with pytest.raises(ValueError, match=r'want uint8 .*, at least one image'):
      network(wrong)


def test_the_description_and_the_weights_are_those_of_the_search(finished):
  config, workdir, out = finished
  description = json.loads((out / 'network.json').read_text())
  checkpoint = records.read_result(workdir)['checkpoints'][-1]
  assert description['genotype'] == checkpoint['genotype']
  images = datasets.load(**config.dataset).train.images
  np.testing.assert_allclose(description['mean'], images.mean((0, 1, 2)), rtol=1e-6)
  np.testing.assert_allclose(description['std'], images.std((0, 1, 2)), rtol=1e-6)
  assert 'classifier/dense' in (out / 'weights.safetensors').read_bytes().decode(
    'latin-1'
  )
  readme = (out / 'README.md').read_text()
  assert 'network.stablehlo' in readme
  assert f'mean {images.mean():.1f} and deviation {images.std():.1f}' in readme


def run_readme(out, image) -> str:
  """Runs the programs of an exported README, but the package's, on a picture."""
  Image.fromarray(image[..., 0]).save(out / 'picture.png')
  parts = (out / 'README.md').read_text().split('```python\n')[1:]
  programs = [part.split('```')[0] for part in parts]
  programs = [program for program in programs if 'lamarck_jax' not in program]
  programs.append('print(probabilities.shape)')
  return subprocess.run(
    [sys.executable, '-c', '\n'.join(programs)],
    cwd=out,
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  ).stdout


def test_the_program_of_the_readme_names_the_class_of_a_picture(finished):
  _, _, out = finished
  network = lamarck_jax.load(out)
  image = np.random.default_rng(2).integers(0, 256, (20, 30, 1)).astype(np.uint8)
  printed = run_readme(out, image).splitlines()
  assert printed[1] == '(1, 10)'
  probabilities = network(network.read_images([out / 'picture.png']))
  assert printed[0] == network.class_names[probabilities.argmax()]


def test_the_readme_and_the_package_decode_alike(finished, tmp_path):
  _, _, out = finished
  network = lamarck_jax.load(out)
  rng = np.random.default_rng(4)
  gray = rng.integers(0, 2**16, (20, 30)).astype(np.uint16)
  colour = Image.fromarray(rng.integers(0, 256, (20, 30, 4)).astype(np.uint8))
  exif = Image.Exif()
  exif[0x0112] = 6
  transparent = colour.convert('RGB').quantize(16)
  pictures = {
    '16 bits': (Image.fromarray(gray), {}),
    'transparent': (colour, {}),
    'rotated': (colour.convert('RGB'), {'exif': exif}),
    'palette': (transparent, {}),
    'transparent palette': (transparent, {'transparency': 3}),
    'gray and transparent': (colour.convert('LA'), {}),
    'one bit': (colour.convert('1'), {}),
  }
  program = (out / 'README.md').read_text().split('```python\n')[1].split('```')[0]
  for name, (picture, options) in pictures.items():
    path = tmp_path / 'picture.png'
    picture.save(path, **options)
    names = {}
    decode = program.split('program = ')[0].replace('picture.png', str(path))
    exec(decode, names)
    for paths in ([str(path)], str(path), path, [path]):
      found = network.read_images(paths)
      np.testing.assert_array_equal(found, names['images'], err_msg=name)
  os.mkfifo(tmp_path / 'pipe.png')
  with pytest.raises(UserError, match=r'pipe\.png'):
    network.read_images(tmp_path / 'pipe.png')


def test_image_files_become_what_the_network_takes(finished, tmp_path):
  _, _, out = finished
  network = lamarck_jax.load(out)
  pixels = np.random.default_rng(3).integers(0, 256, (16, 16, 1)).astype(np.uint8)
  Image.fromarray(pixels[..., 0]).save(tmp_path / 'large.png')
  Image.fromarray(np.repeat(pixels[:8, :8], 3, axis=-1)).save(tmp_path / 'colour.png')
  found = network.read_images([tmp_path / 'large.png', str(tmp_path / 'colour.png')])
  np.testing.assert_array_equal(found, [decoding.resize(pixels, 8), pixels[:8, :8]])
  assert network.read_images([]).shape == (0, 8, 8, 1)
  (tmp_path / 'damaged.png').write_bytes(b'damaged')
  for name in ('damaged.png', 'missing.png'):
    with pytest.raises(UserError, match=name):
      network.read_images([tmp_path / name])


def test_without_completion_the_best_network_is_exported(finished, tmp_path):
  config, _, _ = finished
  config = config.copy_and_resolve_references()
  config.completion.enabled = False
  result = search.run(config, tmp_path / 'run')
  network = export.export(tmp_path / 'run', tmp_path / 'out')
  assert network.test_accuracy is None
  assert network.genotype == Genotype.from_json(result['best'])
  split = datasets.load(**config.dataset).validation
  accuracy = np.mean(network(split.images).argmax(-1) == split.labels)
  assert accuracy == pytest.approx(result['best']['fitness'], abs=1e-9)


def test_any_network_whose_weights_are_there_can_be_exported(finished, tmp_path):
  config, workdir, out = finished
  events = conftest.read_events(workdir)
  there = sorted({int(p.stem[-6:]) for p in (workdir / 'weights').iterdir()})
  validation = datasets.load(**config.dataset).validation
  for evaluation in there:
    network = export.export(workdir, tmp_path / 'out', evaluation=evaluation)
    facts = json.loads((tmp_path / 'out' / 'network.json').read_text())
    assert facts['evaluation'] == evaluation
    assert facts['genotype'] == events[evaluation]['genotype']
    assert facts['completed'] == (network.test_accuracy is not None)
    predicted = lamarck_jax.load(tmp_path / 'out')(validation.images).argmax(-1)
    assert np.mean(predicted == validation.labels) == facts['validation_accuracy']
    said = 'not trained to completion' in (tmp_path / 'out' / 'README.md').read_text()
    assert said != facts['completed']
  # By default it is the completed one of the largest budget.
  checkpoint = records.read_result(workdir)['checkpoints'][-1]
  facts = json.loads((out / 'network.json').read_text())
  assert (facts['evaluation'], facts['completed']) == (checkpoint['evaluation'], True)
  for name in ('validation_accuracy', 'test_accuracy', 'test_balanced_accuracy'):
    assert facts[name] == checkpoint[name]


def test_a_network_of_a_search_that_is_not_finished_can_be_exported(finished, tmp_path):
  config, _, _ = finished
  conftest.run_until(config, tmp_path / 'run', 0)
  with pytest.raises(UserError, match=r'result\.json'):
    export.export(tmp_path / 'run', tmp_path / 'out')
  export.export(tmp_path / 'run', tmp_path / 'out', evaluation=0)
  facts = json.loads((tmp_path / 'out' / 'network.json').read_text())
  (event,) = conftest.read_events(tmp_path / 'run')
  assert facts['validation_accuracy'] == event['fitness']
  assert (facts['completed'], facts['test_accuracy']) == (False, None)


@pytest.mark.parametrize('evaluation', [-1, 999])
def test_a_network_without_weights_is_refused_with_those_that_have_some(
  finished, tmp_path, evaluation
):
  _, workdir, _ = finished
  there = sorted({int(p.stem[-6:]) for p in (workdir / 'weights').iterdir()})
  want = f'evaluation: got {evaluation}, want one whose weights are in {workdir}: '
  with pytest.raises(UserError) as raised:
    export.export(workdir, tmp_path / 'out', evaluation=evaluation)
  assert str(raised.value) == want + ', '.join(map(str, there))
  assert not (tmp_path / 'out').exists()


def test_the_description_says_what_its_accuracy_depends_on(finished):
  _, _, out = finished
  facts = json.loads((out / 'network.json').read_text())
  fields = ('class_weights', 'fitness', 'init_from', 'parsimony')
  assert [facts[name] for name in fields] == ['none', 'accuracy', None, 0.0]


@pytest.mark.parametrize('how', ['nowhere', 'unfinished', 'damaged', 'later format'])
def test_what_cannot_be_loaded_is_named(finished, tmp_path, how):
  _, workdir, out = finished
  path = tmp_path / 'own'
  if how == 'unfinished':
    shutil.copytree(workdir, path)
    (path / 'result.json').unlink()
  elif how != 'nowhere':
    shutil.copytree(out, path)
    if how == 'damaged':
      (path / 'network.stablehlo').write_bytes(b'damaged')
    else:
      (path / 'network.json').write_text('{"format_version": 99}')
  with pytest.raises(UserError, match='own') as raised:
    lamarck_jax.load(path)
  assert '\n' not in str(raised.value)
