"""Tests of `fork_server`, in processes of their own."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests.conftest import ROOT, run_program
from tests.workers.conftest import children

LOOK = textwrap.dedent("""
  import sys

  sys.path.insert(0, sys.argv[1])

  def look():
    imported = 'jax' in sys.modules
    import jax, lamarck_jax, optax
    # One that is initialised keeps its devices.
    jax.config.update('jax_num_cpu_devices', 3)
    return imported, lamarck_jax.__file__, hasattr(optax, 'adam'), jax.device_count()

  if __name__ == '__main__':
    from lamarck_jax.workers import fork_server
    context = fork_server.start()
    assert 'jax' not in sys.modules
    with context.Pool(1) as pool:
      print(*pool.apply(look))
""")


def test_workers_find_the_modules_of_the_search_imported_and_no_device(tmp_path):
  elsewhere = tmp_path / 'elsewhere'
  for package in ('lamarck_jax', 'optax'):
    (elsewhere / package).mkdir(parents=True)
    (elsewhere / package / '__init__.py').write_text('# Another version.\n')
  program = tmp_path / 'program.py'
  program.write_text(LOOK)
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  found = subprocess.run(
    [sys.executable, program, ROOT],
    cwd=elsewhere,
    env=environment,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  package = ROOT / 'lamarck_jax' / '__init__.py'
  assert found.stdout.split() == ['True', str(package), 'True', '3']


@pytest.mark.slow
def test_workers_have_the_environment_of_the_search_and_not_of_an_earlier_one():
  program = textwrap.dedent("""
    import multiprocessing
    import os
    import queue
    os.environ['XLA_FLAGS'] = '--xla_no_such_flag'  # Would end a process.
    os.environ['JAX_PLATFORMS'] = 'cpu'
    from lamarck_jax.data import datasets
    from lamarck_jax.workers import fork_server, local, pool
    from tests.workers.conftest import make_population_config
    fork_server.start()
    del os.environ['XLA_FLAGS']
    cores = sorted(os.sched_getaffinity(0))[:1]
    os.sched_setaffinity(0, cores)
    reports = queue.SimpleQueue()
    worker = local.LocalEngine(1).start(0, make_population_config(), reports.put)
    worker.load(datasets.load('digits'))
    assert reports.get(timeout=60).kind is pool.Kind.READY
    (process,) = multiprocessing.active_children()
    print(os.sched_getaffinity(process.pid) == set(cores))
    worker.kill()
  """)
  path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
  assert run_program(program, PYTHONPATH=path).split() == ['True']


@pytest.mark.slow
def test_workers_end_also_if_what_they_are_forked_from_has_died():
  program = textwrap.dedent("""
    import multiprocessing
    import os
    import pathlib
    import queue
    import signal
    import time
    from multiprocessing import forkserver
    from lamarck_jax.data import datasets
    from lamarck_jax.workers import local, pool
    from tests.workers.conftest import make_population_config
    reports = queue.SimpleQueue()
    engine = local.LocalEngine(2)
    first = engine.start(0, make_population_config(), reports.put)
    first.load(datasets.load('digits'))
    assert reports.get(timeout=60).kind is pool.Kind.READY
    (process,) = multiprocessing.active_children()
    parent = int(pathlib.Path(f'/proc/{process.pid}/stat').read_text().split()[3])
    os.kill(parent, signal.SIGKILL)
    second = engine.start(1, make_population_config(), reports.put)
    first.kill()
    second.kill()
    deadline = time.monotonic() + 30
    while pathlib.Path(f'/proc/{process.pid}').exists():
      assert time.monotonic() < deadline
      time.sleep(0.1)
  """)
  path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
  run_program(program, PYTHONPATH=path)


@pytest.mark.slow
@pytest.mark.parametrize('seconds', [0, 0.5, 2])
def test_ctrl_c_while_workers_start_shows_no_traceback(tmp_path, seconds):
  process = subprocess.Popen(
    [
      sys.executable,
      'run_evolution.py',
      '--config.algorithm=population',
      '--num_workers=2',
      f'--workdir={tmp_path / "run"}',
    ],
    cwd=ROOT,
    stderr=subprocess.PIPE,
    start_new_session=True,
    text=True,
  )
  # Until the program's own imports have ended, Python would show its own.
  deadline = time.monotonic() + 60
  while not children(process.pid):
    assert time.monotonic() < deadline
    time.sleep(0.01)
  time.sleep(seconds)
  os.killpg(process.pid, signal.SIGINT)
  _, stderr = process.communicate(timeout=60)
  assert 'Traceback' not in stderr
