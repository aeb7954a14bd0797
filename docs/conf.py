"""Settings of the documentation: python -m sphinx -W docs docs/_build."""

from lamarck_jax import __version__

project = 'Lamarck-JAX'
release = __version__
extensions = [
  'myst_nb',
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
  'sphinx.ext.viewcode',
]
exclude_patterns = ['_build', 'jupyter_execute']
html_theme = 'furo'
html_title = f'Lamarck-JAX {release}'

autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_use_ivar = True

# The notebook runs whenever the documentation is built, and an error fails the build.
nb_execution_mode = 'force'
nb_execution_raise_on_error = True
nb_execution_timeout = 600
