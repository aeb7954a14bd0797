"""The layout: imports point downwards, and the paper's files need nothing else."""

import ast
import pathlib

import pytest

_PACKAGE = pathlib.Path(__file__).parents[1] / 'lamarck_jax'
_MODULES = {
  '.'.join(path.relative_to(_PACKAGE.parent).with_suffix('').parts): path
  for path in _PACKAGE.rglob('*.py')
}
_PAPER_PURE = ('genotype', 'mutation', 'evolution', 'inheritance')
_PAPER = (*_PAPER_PURE, 'net2net', 'model', 'training', 'completion', 'search')
_PURE = (*_PAPER_PURE, 'crossover', 'population', 'search_state')


def imports_of(name: str, everywhere: bool = True) -> set[str]:
  """Returns the modules of this package that a module imports.

  Args:
    name: The module.
    everywhere: Inside functions too, or at import alone.
  """
  tree = ast.parse(_MODULES[name].read_text())
  found: set[str] = set()
  for node in ast.walk(tree) if everywhere else tree.body:
    if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('lamarck'):
      for alias in node.names:
        module = f'{node.module}.{alias.name}'
        found.add(module if module in _MODULES else f'{node.module}')
    elif isinstance(node, ast.Import):
      found |= {a.name for a in node.names if a.name in _MODULES}
  return {module for module in found if module in _MODULES}


def reachable(name: str) -> set[str]:
  """Returns all modules that a module imports, directly or not."""
  found: set[str] = set()
  waiting = {name}
  while waiting:
    waiting = set().union(*map(imports_of, waiting)) - found
    found |= waiting
  return found


@pytest.mark.parametrize('name', sorted(_MODULES))
def test_no_module_imports_itself_through_others(name):
  assert name not in reachable(name)


@pytest.mark.parametrize('name', _PURE)
def test_the_algorithm_needs_neither_files_nor_data_nor_what_makes_it_fast(name):
  packages = {module.split('.')[1] for module in reachable(f'lamarck_jax.{name}')}
  assert not packages & {'data', 'run_directory', 'runtime', 'xla', 'study', 'report'}


@pytest.mark.parametrize('name', _PAPER)
def test_a_search_needs_neither_studies_nor_reports(name):
  packages = {module.split('.')[1] for module in reachable(f'lamarck_jax.{name}')}
  assert not packages & {'study', 'report'}


def test_what_makes_training_fast_needs_nothing_but_itself():
  for name in _MODULES:
    if name.startswith('lamarck_jax.xla.'):
      assert all(module.startswith('lamarck_jax.xla') for module in reachable(name))


@pytest.mark.parametrize(
  'package', ['xla', 'runtime', 'data', 'run_directory', 'workers']
)
def test_a_package_says_what_is_inside_and_who_needs_to_read_it(package):
  docstring = ast.get_docstring(
    ast.parse((_PACKAGE / package / '__init__.py').read_text())
  )
  assert docstring and len(docstring.split()) > 15
