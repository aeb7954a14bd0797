"""What the tests of the runner and of the command share: a study of seconds."""

import contextlib
import pathlib
import threading

from lamarck_jax.study import executors, runner

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = str(ROOT / 'configs' / 'digits.py')
TINY = {
  'dataset.num_train': 96,
  'dataset.num_validation': 50,
  'budget_epochs': 6,
  'epochs_per_evaluation': 1,
  'search_space.filters': (4, 8),
  'search_space.kernel_sizes': (1, 3),
  'checkpoint_epochs': (3,),
  'completion.epochs': (1,),
  'completion.learning_rates': (1e-3,),
}


def make_tasks(
  workdir, cache, *, settings=('lamarckian',), num_seeds=2, **overrides
) -> list[executors.Task]:
  """Returns the runs of a study of the digits."""
  return runner.make_tasks(
    DIGITS, {**TINY, **overrides}, settings, num_seeds, workdir, str(cache)
  )


def run_locally(tasks, num_workers=2, **callbacks) -> dict[executors.Task, str]:
  """Runs searches in processes of this machine; returns why runs failed."""
  for task in tasks:
    task.log.parent.mkdir(parents=True, exist_ok=True)
  executor = executors.LocalExecutor(num_workers)
  try:
    return runner.run(tasks, executor, **callbacks)
  finally:
    executor.close()


@contextlib.contextmanager
def called_often(function):
  """Calls a function every 20 ms: a run of tiny networks takes less than a second."""
  stop = threading.Event()

  def call():
    while not stop.wait(0.02):
      function()

  thread = threading.Thread(target=call)
  thread.start()
  try:
    yield
  finally:
    stop.set()
    thread.join()
