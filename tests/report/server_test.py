import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

from lamarck_jax.errors import UserError
from lamarck_jax.report import server
from lamarck_jax.study import results
from tests.report.conftest import data_of, serving, write_search


def test_the_server_shows_the_present_state_and_no_other_file(tmp_path):
  write_search(tmp_path, 6, finished=False)
  with serving(tmp_path) as url:
    with urllib.request.urlopen(f'{url}/') as response:
      assert len(data_of(response.read().decode())['events']) == 6
    events = (tmp_path / 'events.jsonl').read_text().splitlines(keepends=True)
    (tmp_path / 'events.jsonl').write_text(''.join(events[:4]))
    with urllib.request.urlopen(f'{url}/data.json') as response:
      assert len(json.load(response)['events']) == 4
    for path in ('/config.json', '/../../etc/passwd'):
      with pytest.raises(urllib.error.HTTPError, match='404'):
        urllib.request.urlopen(url + path)


def test_a_served_study_has_the_pages_of_its_runs(tmp_path):
  for seed, finished in ((1, True), (2, False)):
    path = tmp_path / 'lamarckian' / f'seed{seed}'
    write_search(path, 6, finished, setting='lamarckian', seed=seed)
  results.write_plan(tmp_path, [('lamarckian', seed) for seed in (1, 2, 3)])
  with serving(tmp_path) as url:
    with urllib.request.urlopen(f'{url}/') as response:
      links = [run['link'] for run in data_of(response.read().decode())['runs']]
    # The third has not begun.
    assert links == [f'./lamarckian/seed{seed}/report.html' for seed in (1, 2)] + [None]
    for link in links[:2]:
      with urllib.request.urlopen(urllib.parse.urljoin(f'{url}/', link)) as response:
        assert data_of(response.read().decode())['kind'] == 'run'
      # The page asks for its data anew, beside itself.
      beside = urllib.parse.urljoin(url, link.replace('report.html', 'data.json'))
      with urllib.request.urlopen(beside) as response:
        assert len(json.load(response)['events']) == 6
    for path in (
      '/lamarckian/seed3/',
      '/lamarckian/seed1/config.json',
      '/../seed1/',
      '/%2e%2e/seed1/',
      '/lamarckian/seed1/../../../',
      '/lamarckian/',
    ):
      assert request(url, path=path)[0] == 404, path


def test_a_port_in_use_is_refused(tmp_path):
  write_search(tmp_path, 2)
  with server.make_server(str(tmp_path)) as first:
    assert first.server_address[0] == '127.0.0.1'
    with pytest.raises(UserError, match='port: got'):
      server.make_server(str(tmp_path), port=first.server_port)


def request(url, method='GET', path='/data.json', **headers):
  """Returns the status, the header and the length of what comes after it."""
  connection = http.client.HTTPConnection(url.removeprefix('http://'), timeout=30)
  with contextlib.closing(connection):
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    return response.status, response.headers, len(response.read())


def test_a_page_under_another_name_is_told_nothing(tmp_path):
  write_search(tmp_path, 2)
  with serving(tmp_path) as url:
    port = url.rpartition(':')[2]
    for host in ('evil.example', f'evil.example:{port}', '', 'localhost.evil.example'):
      status, _, _ = request(url, Host=host)
      assert status == 403, host
    for host in ('localhost', f'LOCALHOST:{port}', '127.0.0.1', '[::1]', '10.1.2.3'):
      status, headers, _ = request(url, Host=host)
      assert status == 200, host
    assert headers['Cross-Origin-Resource-Policy'] == 'same-origin'
    assert headers['X-Content-Type-Options'] == 'nosniff'
    assert 'frame-ancestors' in headers['Content-Security-Policy']


def test_head_answers_the_header_of_get(tmp_path):
  write_search(tmp_path, 2)
  with serving(tmp_path) as url:
    for path, status in (('/', 200), ('/data.json', 200), ('/config.json', 404)):
      got, headers, num_bytes = request(url, 'HEAD', path)
      assert (got, num_bytes) == (status, 0)
      assert headers['Content-Length'] == request(url, 'GET', path)[1]['Content-Length']


def test_connections_are_few_and_end(tmp_path):
  write_search(tmp_path, 2)
  before = threading.active_count()
  with serving(tmp_path, timeout=0.3) as url, contextlib.ExitStack() as stack:
    host, port = url.removeprefix('http://').split(':')

    def connect():
      return stack.enter_context(socket.create_connection((host, int(port)), 10))

    silent = [connect() for _ in range(4 * server.MAX_CONNECTIONS)]
    assert threading.active_count() <= before + 1 + server.MAX_CONNECTIONS
    for connection in silent:
      with contextlib.suppress(ConnectionResetError):
        assert connection.recv(1) == b''
    # One that sends a byte now and then is ended as well.
    slow, start = connect(), time.monotonic()
    with contextlib.suppress(ConnectionError):
      while time.monotonic() < start + 10:
        slow.sendall(b'G')
        time.sleep(0.1)
    assert time.monotonic() < start + 9
    assert request(url)[0] == 200
