"""Tests of `fork_server`, in processes of their own."""

import os
import subprocess
import sys
import textwrap

from tests.conftest import ROOT

PROGRAM = textwrap.dedent("""
  import sys

  sys.path.insert(0, sys.argv[1])

  def look():
    imported = 'jax' in sys.modules
    import lamarck_jax
    return imported, lamarck_jax.__file__

  if __name__ == '__main__':
    from lamarck_jax.workers import fork_server
    context = fork_server.start()
    assert 'jax' not in sys.modules
    with context.Pool(1) as pool:
      print(*pool.apply(look))
""")


def test_workers_find_jax_imported_and_the_package_where_the_search_found_it(tmp_path):
  other = tmp_path / 'elsewhere'
  (other / 'lamarck_jax').mkdir(parents=True)
  (other / 'lamarck_jax' / '__init__.py').write_text('# Another version.\n')
  program = tmp_path / 'program.py'
  program.write_text(PROGRAM)
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  found = subprocess.run(
    [sys.executable, program, ROOT],
    cwd=other,
    env=environment,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  package = ROOT / 'lamarck_jax' / '__init__.py'
  assert found.stdout.split() == ['True', str(package)]
