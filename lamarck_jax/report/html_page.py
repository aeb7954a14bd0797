"""The report: one HTML file that shows a search or a study, and opens offline.

  python -m lamarck_jax.report WORKDIR          # Writes WORKDIR/report.html.
  python -m lamarck_jax.report WORKDIR --serve  # Shows it while the search runs.

WORKDIR is a run directory, finished or not, or a study's. The page holds everything it
needs, Plotly included. It is also written at the end of every run and study.
"""

import base64
from collections.abc import Mapping
import functools
import html
import http.server
import importlib.resources
import io
import json
import math
import os
import pathlib
import signal
import string
from typing import Any

from absl import flags, logging

from lamarck_jax.errors import UserError
from lamarck_jax.run_directory import records
from lamarck_jax.study import results

FILE_NAME = 'report.html'
_REFRESH_SECONDS = {'run': 2, 'study': 30}


def write(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes the report of a run or a study into its directory.

  Args:
    workdir: A run directory, finished or not, or a study's directory.

  Returns:
    The file.

  Raises:
    UserError: If it is neither, or cannot be written.
  """
  path = pathlib.Path(workdir, FILE_NAME)
  page = render(collect(workdir))
  temporary = path.with_name(f'.{path.name}.tmp')
  try:
    temporary.write_text(page, encoding='utf-8')
    temporary.replace(path)
  except OSError as error:
    raise UserError(f'report: {path}: {error.strerror}') from error
  return path


def write_if_possible(workdir: str | os.PathLike[str]) -> pathlib.Path | None:
  """Does as `write` does at the end of a run or a study.

  An error is a warning: the results are on disk. A report that is newer than they are
  is left as it is.

  Args:
    workdir: A run directory or a study's.

  Returns:
    The file, or None if there is none.
  """
  path = pathlib.Path(workdir, FILE_NAME)
  try:
    written = [
      result.stat().st_mtime_ns
      for name in ('result.json', 'results.json')
      if (result := path.with_name(name)).exists()
    ]
    if path.exists() and written and path.stat().st_mtime_ns >= max(written):
      return path
    return write(workdir)
  except (UserError, OSError, ValueError, LookupError) as error:
    logging.warning('no report of %s: %s', workdir, error)
    return None


def collect(workdir: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns what the report of a run or a study shows, ready for JSON.

  Args:
    workdir: A run directory, finished or not, or a study's directory.

  Raises:
    UserError: If it is neither.
  """
  path = pathlib.Path(workdir)
  if (path / 'study.json').exists():
    return _collect_study(path)
  if (path / 'config.json').exists():
    return _collect_run(path)
  raise UserError(f'report: got {path}, want the directory of a run or a study')


def render(content: Mapping[str, Any]) -> str:
  """Returns the page that shows what `collect` has returned."""
  import plotly.offline  # Half a second, which refusing bad input need not wait for.

  folder = importlib.resources.files('lamarck_jax.report') / 'assets'
  parts = {
    name: (folder / f'page.{name}').read_text(encoding='utf-8')
    for name in ('html', 'css', 'js')
  }
  # A closing tag inside a string would end the script.
  data = json.dumps(_without_nan(content)).replace('<', '\\u003c')
  return string.Template(parts['html']).substitute(
    title=html.escape(content['title']),
    style=parts['css'],
    data=data,
    plotly=plotly.offline.get_plotlyjs().replace('</script', '<\\/script'),
    script=parts['js'],
  )


def _collect_run(path: pathlib.Path) -> dict[str, Any]:
  return {
    'kind': 'run',
    'title': path.resolve().name,
    'config': records.read_config(path),
    'environment': records.read_environment(path),
    'events': records.read_events(path),
    'result': records.read_result(path),
  }


def _collect_study(path: pathlib.Path) -> dict[str, Any]:
  from lamarck_jax.study import analysis, figures  # Matplotlib and SciPy.

  study = results.collect(path)
  runs = []
  for setting in study.settings:
    done = {run.seed: run for run in setting.runs}
    for seed in sorted({*done, *setting.missing}):
      directory = pathlib.Path(setting.name, f'seed{seed}')
      has_report = (path / directory / FILE_NAME).exists()
      runs.append(
        {
          'setting': setting.name,
          'seed': seed,
          'best': done[seed].best_fitness[-1] if seed in done else None,
          'why': setting.missing.get(seed),
          'link': (directory / FILE_NAME).as_posix() if has_report else None,
        }
      )
  return {
    'kind': 'study',
    'title': f'study {path.resolve().name}',
    'dataset': study.dataset,
    'budget_epochs': study.budget_epochs,
    'num_runs': len(runs),
    'settings': [
      {
        'name': setting.name,
        'label': figures.label(setting),
        'runs': [
          {'seed': run.seed, 'epochs': run.epochs, 'best_fitness': run.best_fitness}
          for run in setting.runs
        ],
      }
      for setting in study.settings
    ],
    'table': analysis.table(study),
    'report': analysis.report(study),
    'figures': [
      (name, _data_url(figure)) for name, figure in figures.figures(study).items()
    ],
    'runs': runs,
  }


def _data_url(figure: Any) -> str:
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=150, metadata={'Software': None})
  return f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def _without_nan(value: Any) -> Any:
  """Returns JSON content with null for what JSON has no number for."""
  match value:
    case float() if not math.isfinite(value):
      return None
    case dict():
      return {key: _without_nan(part) for key, part in value.items()}
    case list() | tuple():
      return [_without_nan(part) for part in value]
  return value


# ------------------------------------------------------------------------------
# Serving
# ------------------------------------------------------------------------------


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers with the page, or with what it shows as JSON, and nothing else."""

  def __init__(self, workdir: str, *args: Any):
    self._workdir = workdir
    super().__init__(*args)

  def do_GET(self) -> None:
    try:
      content = collect(self._workdir)
      content['refresh_seconds'] = _REFRESH_SECONDS[content['kind']]
    except UserError as error:
      self.send_error(503, 'not ready', str(error))
      return
    if self.path in ('/', f'/{FILE_NAME}'):
      self._answer('text/html; charset=utf-8', render(content))
    elif self.path == '/data.json':
      self._answer('application/json', json.dumps(_without_nan(content)))
    else:
      self.send_error(404)

  def _answer(self, kind: str, text: str) -> None:
    body = text.encode()
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
  """Returns a server of the report of a directory; it shows the present state.

  Args:
    workdir: A run directory, finished or not, or a study's directory.
    host: Address to listen on; the default is this machine alone.
    port: Port to listen on; 0 takes a free one.

  Raises:
    UserError: If the directory is neither, or the address cannot be had.
  """
  collect(workdir)
  try:
    return http.server.ThreadingHTTPServer(
      (host, port), functools.partial(_Handler, workdir)
    )
  except OSError as error:
    raise UserError(f'port: got {host}:{port}, want a free one: {error}') from error


def main(argv: list[str]) -> None:
  """Writes the report of a directory, or serves it."""
  if len(argv) != 2:
    raise UserError(
      f'arguments: got {len(argv) - 1}, want one, the directory of a run or a study'
    )
  if not flags.FLAGS.serve:
    print(write(argv[1]))
    return
  with make_server(argv[1], flags.FLAGS.host, flags.FLAGS.port) as server:
    print(f'http://{flags.FLAGS.host}:{server.server_port}/', flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
      server.serve_forever()
    except KeyboardInterrupt:
      print()
