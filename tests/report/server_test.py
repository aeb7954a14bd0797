import json
import urllib.error
import urllib.request

import pytest

from lamarck_jax.errors import UserError
from lamarck_jax.report import server
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


def test_a_port_in_use_is_refused(tmp_path):
  write_search(tmp_path, 2)
  with server.make_server(str(tmp_path)) as first:
    assert first.server_address[0] == '127.0.0.1'
    with pytest.raises(UserError, match='port: got'):
      server.make_server(str(tmp_path), port=first.server_port)
