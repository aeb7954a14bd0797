"""The HTTP server of the report, which shows a search or a study while it runs."""

import functools
import http.server
import signal
from typing import Any

from absl import logging

from lamarck_jax.errors import UserError
from lamarck_jax.report import html_page

_REFRESH_SECONDS = {'run': 2, 'study': 30}


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers with the page or its content as JSON, never with other files."""

  def __init__(self, workdir: str, *args: Any):
    self._workdir = workdir
    super().__init__(*args)

  def do_GET(self) -> None:
    try:
      content = html_page.collect(self._workdir)
      content['refresh_seconds'] = _REFRESH_SECONDS[content['kind']]
    except UserError as error:
      self.send_error(503, 'not ready', str(error))
      return
    if self.path in ('/', f'/{html_page.FILE_NAME}'):
      self._answer('text/html; charset=utf-8', html_page.render(content))
    elif self.path == '/data.json':
      self._answer('application/json', html_page.to_json(content))
    else:
      self.send_error(404)

  def _answer(self, kind: str, text: str) -> None:
    body = text.encode(errors='backslashreplace')
    self.send_response(200)
    self.send_header('Content-Type', kind)
    self.send_header('Content-Length', str(len(body)))
    self.send_header('Cache-Control', 'no-store')
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, format: str, *args: Any) -> None:
    logging.debug(format, *args)


def make_server(
  workdir: str, host: str = '127.0.0.1', port: int = 0
) -> http.server.ThreadingHTTPServer:
  """Returns a server of the report of a directory, computed anew for each request.

  Args:
    workdir: A run directory, finished or not, or a study's directory.
    host: Address to listen on; by default reachable from this machine only.
    port: Port to listen on; 0 takes a free one.

  Raises:
    UserError: If the directory is neither, or the address is not available.
  """
  html_page.collect(workdir)  # Refuses a bad directory before the first request.
  try:
    return http.server.ThreadingHTTPServer(
      (host, port), functools.partial(_Handler, workdir)
    )
  except OSError as error:
    raise UserError(f'port: got {host}:{port}, want a free one: {error}') from error


def serve(workdir: str, host: str, port: int) -> None:
  """Serves the report of a directory until Ctrl-C.

  Args:
    workdir: A run directory, finished or not, or a study's directory.
    host: Address to listen on.
    port: Port to listen on; 0 takes a free one.

  Raises:
    UserError: If the directory is neither, or the address is not available.
  """
  with make_server(workdir, host, port) as server:
    print(f'http://{host}:{server.server_port}/', flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
      server.serve_forever()
    except KeyboardInterrupt:
      print()
