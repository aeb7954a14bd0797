"""`python -m lamarck_jax.report`: see `lamarck_jax.report.html_page`."""

from absl import flags

from lamarck_jax.report import html_page
from lamarck_jax.runtime import command_line

if __name__ == '__main__':
  flags.DEFINE_bool('serve', False, 'Serve the report, and refresh it as it grows.')
  flags.DEFINE_string('host', '127.0.0.1', 'Address to serve on.')
  flags.DEFINE_integer('port', 8265, 'Port to serve on; 0 takes a free one.')
  command_line.run(html_page.main)
