"""The HTTP server of the report, which shows a search or a study while it runs."""

from collections.abc import Collection
import contextlib
import functools
import http.server
import ipaddress
import pathlib
import re
import signal
import socket
import time
from typing import Any
import urllib.parse

from absl import logging

from lamarck_jax.errors import UserError
from lamarck_jax.report import html_page
from lamarck_jax.study import checked_files

MAX_CONNECTIONS = 16
# A connection may take this many times as long as it may be silent.
_DEADLINE = 6
_REFRESH_SECONDS = {'run': 2, 'study': 30}
# A page or its data, of the directory itself or of a run of a study.
_PATH = re.compile(r'/(?:(?P<setting>[^/]+)/(?P<seed>seed-?\d+)/)?(?P<file>[^/]*)')
_PAGES, _DATA = ('', html_page.FILE_NAME), 'data.json'


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers with the page or its content as JSON, never with other files."""

  def __init__(self, workdir: str, names: Collection[str], timeout: float, *args: Any):
    self._workdir = workdir
    self._names = names
    self._timeout = timeout
    super().__init__(*args)

  def setup(self) -> None:
    super().setup()
    self.connection.settimeout(self._timeout)

  def do_GET(self) -> None:
    if not _is_own_name(self.headers.get('Host', ''), self._names):
      # A page from elsewhere may let its own name lead here (DNS rebinding), and the
      # browser would then let it read the answer.
      self.send_error(403, 'not a name of this server')
      return
    match = _PATH.fullmatch(self.path)
    workdir = match and self._directory(match['setting'], match['seed'])
    if not (match and workdir and match['file'] in (*_PAGES, _DATA)):
      self.send_error(404)
      return
    try:
      content = html_page.collect(workdir, served=True)
    except UserError as error:
      self.send_error(503, 'not ready', str(error))
      return
    content['refresh_seconds'] = _REFRESH_SECONDS[content['kind']]
    if match['file'] == _DATA:
      self._answer('application/json', html_page.to_json(content))
    else:
      self._answer('text/html; charset=utf-8', html_page.render(content))

  def _directory(self, setting: str | None, seed: str | None) -> pathlib.Path | None:
    """Returns the directory, or that of a run in it; None if there is no such run."""
    root = pathlib.Path(self._workdir)
    if setting is None or seed is None:
      return root
    # A setting's name has no slash and begins with no dot, so this does not lead out.
    run = root / setting / seed
    is_run = checked_files.is_setting_name(setting) and (run / 'config.json').is_file()
    return run if is_run else None

  def do_HEAD(self) -> None:
    self.do_GET()  # Which sends the header alone.

  def _answer(self, kind: str, text: str) -> None:
    body = text.encode(errors='backslashreplace')
    self.send_response(200)
    self.send_header('Content-Type', kind)
    self.send_header('Content-Length', str(len(body)))
    self.send_header('Cache-Control', 'no-store')
    self.send_header('X-Content-Type-Options', 'nosniff')
    # No page from elsewhere may show or load this one.
    self.send_header('Content-Security-Policy', "frame-ancestors 'none'")
    self.send_header('Cross-Origin-Resource-Policy', 'same-origin')
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(body)

  def log_message(self, format: str, *args: Any) -> None:
    logging.debug(format, *args)


class _Server(http.server.ThreadingHTTPServer):
  """A server of a bounded number of connections, which each have a thread and end."""

  def __init__(self, timeout: float, *args: Any):
    self._max_seconds = _DEADLINE * timeout
    self._starts: dict[Any, float] = {}  # By connection.
    super().__init__(*args)

  def process_request(self, request: Any, client_address: Any) -> None:
    if len(self._starts) >= MAX_CONNECTIONS:
      self.shutdown_request(request)
      return
    self._starts[request] = time.monotonic()
    super().process_request(request, client_address)

  def shutdown_request(self, request: Any) -> None:
    self._starts.pop(request, None)
    super().shutdown_request(request)

  def service_actions(self) -> None:
    """Ends connections that have taken too long; called twice a second."""
    oldest = time.monotonic() - self._max_seconds
    for request, start in list(self._starts.items()):
      if start < oldest:
        with contextlib.suppress(OSError):
          request.shutdown(socket.SHUT_RDWR)

  def handle_error(self, request: Any, client_address: Any) -> None:
    logging.debug('the connection of %s failed', client_address, exc_info=True)


def _is_own_name(header: str, names: Collection[str]) -> bool:
  """Returns whether a Host header has one of these names, or an address."""
  try:
    name = urllib.parse.urlsplit(f'//{header}').hostname or ''
    if name in names:
      return True
    ipaddress.ip_address(name)  # A name can be made to lead anywhere, an address not.
    return True
  except ValueError:
    return False


def _names(host: str) -> set[str]:
  """Returns the names by which a server on an address is asked for."""
  if host in ('127.0.0.1', 'localhost'):
    return {'localhost'}
  return {'localhost', host.lower(), socket.gethostname().lower(), socket.getfqdn()}


def make_server(
  workdir: str, host: str = '127.0.0.1', port: int = 0, timeout: float = 10
) -> http.server.ThreadingHTTPServer:
  """Returns a server of the report of a directory, computed anew for each request.

  Args:
    workdir: A run directory, finished or not, or a study's directory.
    host: Address to listen on; by default reachable from this machine only.
    port: Port to listen on; 0 takes a free one.
    timeout: Seconds for which a connection may be silent.

  Raises:
    UserError: If the directory is neither, or the address is not available.
  """
  html_page.collect(workdir)  # Refuses a bad directory before the first request.
  try:
    handler = functools.partial(_Handler, workdir, _names(host), timeout)
    return _Server(timeout, (host, port), handler)
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
