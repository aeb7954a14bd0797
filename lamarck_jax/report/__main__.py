"""Writes or serves the report of a run or a study.

  python -m lamarck_jax.report WORKDIR          # Writes WORKDIR/report.html.
  python -m lamarck_jax.report WORKDIR --serve  # Shows it while the search runs.

WORKDIR is a run directory, finished or not, or the directory of a study.
"""

from absl import flags

from lamarck_jax.errors import UserError
from lamarck_jax.report import html_page, server
from lamarck_jax.runtime import command_line


def _define_flags() -> None:
  flags.DEFINE_bool('serve', False, 'Serve the report, and refresh it as it grows.')
  flags.DEFINE_string('host', '127.0.0.1', 'Address to serve on.')
  flags.DEFINE_integer(
    'port',
    8265,
    'Port to serve on; 0 takes a free one.',
    lower_bound=0,
    upper_bound=2**16 - 1,
  )


def main(argv: list[str]) -> None:
  """Writes the report of a directory, or serves it."""
  if len(argv) != 2:
    raise UserError(
      f'arguments: got {len(argv) - 1}, want one, the directory of a run or a study'
    )
  for name in ('host', 'port'):
    if flags.FLAGS[name].present and not flags.FLAGS.serve:
      raise UserError(f'{name}: got a value without an effect, want --serve')
  if not flags.FLAGS.host:
    raise UserError('host: got nothing, want an address; 0.0.0.0 is all of them')
  if flags.FLAGS.serve:
    server.serve(argv[1], flags.FLAGS.host, flags.FLAGS.port)
  else:
    print(html_page.write(argv[1]))


if __name__ == '__main__':
  _define_flags()
  command_line.run(main)
