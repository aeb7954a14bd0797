"""Settings of the documentation: python -m sphinx -W docs docs/_build."""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import lamarck_jax

project = 'Lamarck-JAX'
release = lamarck_jax.__version__
extensions = [
  'myst_nb',
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
  'sphinx.ext.viewcode',
]
exclude_patterns = ['_build', 'jupyter_execute', 'runs']
html_theme = 'furo'
html_title = f'Lamarck-JAX {release}'
myst_heading_anchors = 3

autodoc_default_options = {'members': True, 'ignore-module-all': True}
autodoc_member_order = 'bysource'
autodoc_preserve_defaults = True
# Types stand in the signature alone. As descriptions they would be a second list of
# parameters under each dataclass, whose docstring lists them as attributes.
autodoc_typehints = 'signature'
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_use_ivar = True

# The notebook runs whenever the documentation is built, and an error fails the build.
nb_execution_mode = 'force'
nb_execution_in_temp = True  # For its run directories.
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_output_stderr = 'remove'  # Progress bars.

# In the order in which to read them.
_PAPER = [
  'genotype',
  'mutation',
  'evolution',
  'inheritance',
  'net2net',
  'model',
  'training',
  'completion',
  'search',
]


def _write_reference(app: Any) -> None:
  """Writes a page for every module, and one for every group of modules.

  They are made of the modules on disk, so that none is forgotten when one is added.
  """
  package = pathlib.Path(lamarck_jax.__file__).parent
  pages = pathlib.Path(app.srcdir) / 'reference'
  pages.mkdir(exist_ok=True)
  for page in pages.glob('*.md'):
    page.unlink()

  def write_group(name: str, heading: str, modules: list[str]) -> None:
    lines = [heading, '```{toctree}', ':maxdepth: 1', *modules, '```', '']
    (pages / f'{name}.md').write_text('\n'.join(lines))
    for module in modules:
      (pages / f'{module}.md').write_text(_page(module))

  top = _public_modules(package)
  write_group('paper', '# The paper in nine files\n', _PAPER)
  write_group('beside', '# Other modules\n', sorted(set(top) - set(_PAPER)))
  for folder in sorted(path.parent for path in package.glob('*/__init__.py')):
    modules = [f'{folder.name}.{module}' for module in _public_modules(folder)]
    write_group(folder.name, _page(folder.name, ':no-members:'), modules)


def _public_modules(folder: pathlib.Path) -> list[str]:
  return sorted(path.stem for path in folder.glob('[!_]*.py'))


def _page(name: str, *options: str) -> str:
  body = [f'.. automodule:: lamarck_jax.{name}', *(f'   {o}' for o in options)]
  return '\n'.join([f'# {name}\n', '```{eval-rst}', *body, '```', ''])


def _skip_fields(
  app: Any, what: str, name: str, obj: object, skip: bool, options: Any
) -> bool | None:
  # The docstring of a class lists its fields. Their members would repeat them, as
  # "Alias for field number 0" or as the default value.
  is_field = type(obj).__name__ == '_tuplegetter' or (
    what == 'class' and '.' not in getattr(obj, '__qualname__', '.')
  )
  return is_field or None


def _shorten_signature(
  app: Any, what: str, name: str, obj: object, options: Any, signature: str, result: str
) -> tuple[str, str] | None:
  # Flax adds `parent` and `name` to every module.
  if what != 'class' or ', parent: ' not in (signature or ''):
    return None
  signature = signature.split(', parent: ')[0] + ')'
  return re.sub(r"<class '([\w.]+)'>", r'\1', signature), result


def _add_example_report(app: Any, exception: Exception | None) -> None:
  """Runs the README's search, a minute on two cores, and adds its report."""
  if exception or app.builder.format != 'html':
    return
  root = pathlib.Path(__file__).parents[1]
  with tempfile.TemporaryDirectory() as folder:
    run = pathlib.Path(folder) / 'digits-lamarckian-seed0'
    command = [sys.executable, 'run_evolution.py', f'--workdir={run}']
    finished = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if finished.returncode:
      raise RuntimeError(f'the example search failed: {finished.stderr}')
    shutil.copy(run / 'report.html', pathlib.Path(app.outdir) / 'example_report.html')


def setup(app: Any) -> None:
  """Connects the functions above to Sphinx, which calls this."""
  app.connect('builder-inited', _write_reference)
  app.connect('autodoc-skip-member', _skip_fields)
  app.connect('autodoc-process-signature', _shorten_signature)
  app.connect('build-finished', _add_example_report)
