"""`python -m lamarck_jax.study`: see `lamarck_jax.study.runner`."""

from lamarck_jax.study import runner

if __name__ == '__main__':
  runner.cli()
