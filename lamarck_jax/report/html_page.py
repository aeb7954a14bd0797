"""The report: one HTML file that shows a search or a study, and opens offline.

The page contains everything it needs, including Plotly. It is written at the end of
every run and study, and by `python -m lamarck_jax.report` at any time.
"""

import base64
from collections.abc import Iterable, Mapping
import hashlib
import html
import importlib.resources
import json
import math
import os
import pathlib
import string
from typing import Any
import urllib.parse

from absl import logging

from lamarck_jax import metrics
from lamarck_jax.errors import StorageError, UserError
from lamarck_jax.run_directory import durable, records
from lamarck_jax.study import checked_files, results
from lamarck_jax.study.results import Study

FILE_NAME = 'report.html'
# One script on the page, in this order.
_SCRIPTS = ('elements.js', 'outcome.js', 'network.js', 'run.js', 'study.js', 'start.js')
_END = b'</html>\n'
# What may prevent a report; the last where Plotly was left out of an installation.
_ERRORS = (UserError, StorageError, OSError, ValueError, LookupError, ImportError)


def write(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes the report of a run or a study into its directory.

  Args:
    workdir: A run directory, finished or not, or a study's directory.

  Returns:
    The path of the report.

  Raises:
    UserError: If it is neither.
    StorageError: If the report cannot be written.
  """
  path = pathlib.Path(workdir, FILE_NAME)
  # A path that is no text has surrogates, which UTF-8 cannot encode.
  durable.write(path, render(collect(workdir)).encode(errors='backslashreplace'))
  return path


def write_if_possible(workdir: str | os.PathLike[str]) -> pathlib.Path | None:
  """Writes the report at the end of a run or a study, unless it is up to date.

  An error is only a warning, since the results are on disk.

  Args:
    workdir: A run directory or a study's.

  Returns:
    The path of the report, or None if there is none.
  """
  path = pathlib.Path(workdir, FILE_NAME)
  try:
    written = [
      result.stat().st_mtime_ns
      for name in ('result.json', 'results.json')
      if (result := path.with_name(name)).exists()
    ]
    if written and _is_whole(path) and path.stat().st_mtime_ns >= max(written):
      return path
    return write(workdir)
  except _ERRORS as error:
    logging.warning('no report of %s: %s', workdir, error)
    return None


def _is_whole(path: pathlib.Path) -> bool:
  """Returns whether a file is a report to its end, and not one that was cut off."""
  return path.is_file() and path.read_bytes()[-len(_END) :] == _END


def collect(workdir: str | os.PathLike[str], served: bool = False) -> dict[str, Any]:
  """Returns the content of the report of a run or a study, ready for JSON.

  Args:
    workdir: A run directory, finished or not, or a study's directory.
    served: Whether every run of a study that has begun has a page, made when it is
      asked for, and not those alone whose report has been written.

  Raises:
    UserError: If it is neither.
  """
  path = pathlib.Path(workdir)
  if (path / 'study.json').exists():
    return _collect_study(path, served)
  if (path / 'config.json').exists():
    return _collect_run(path)
  raise UserError(f'report: got {path}, want the directory of a run or a study')


def to_json(content: Mapping[str, Any]) -> str:
  """Returns content as JSON, with null for NaN and infinity, which JSON lacks."""
  return json.dumps(_without_nan(content))


def _without_nan(value: Any) -> Any:
  match value:
    case float() if not math.isfinite(value):
      return None
    case dict():
      return {key: _without_nan(part) for key, part in value.items()}
    case list() | tuple():
      return [_without_nan(part) for part in value]
  return value


def render(content: Mapping[str, Any]) -> str:
  """Returns the HTML page for content that `collect` has returned.

  The page's policy lets it run its own scripts and nothing else, so that text which
  somebody else wrote into a run cannot become a program in the reader's browser.
  """
  import plotly.offline  # Takes half a second, which bad input need not wait for.

  plotly_script = plotly.offline.get_plotlyjs().replace('</script', '<\\/script')
  script = '\n'.join(map(_asset, _SCRIPTS))
  # A closing tag inside a string would end the script.
  data = to_json(content).replace('<', '\\u003c')
  return string.Template(_asset('page.html')).substitute(
    policy=_policy(plotly_script, script),
    title=html.escape(content['title']),
    style=_asset('page.css'),
    data=data,
    plotly=plotly_script,
    script=script,
  )


def _policy(*scripts: str) -> str:
  """Returns a Content-Security-Policy under which nothing but these scripts runs.

  Styles are admitted, since Plotly makes some; without images and fonts from elsewhere
  they can send nothing anywhere.
  """
  digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
  hashes = ' '.join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests)
  return (
    f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline';"
    " img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
  )


def _asset(name: str) -> str:
  folder = importlib.resources.files('lamarck_jax.report') / 'assets'
  return (folder / name).read_text(encoding='utf-8')


def _collect_run(path: pathlib.Path) -> dict[str, Any]:
  config = checked_files.read_config(path)
  result = checked_files.read_result(path)
  for checkpoint in result['checkpoints'] if result else ():
    # A list, since JavaScript puts the names of an object that are numbers first.
    checkpoint['class_names'] = list(checkpoint.get('test_accuracy_by_class', ()))
  return {
    'kind': 'run',
    'title': path.resolve().name,
    'config': config,
    'fitness_name': metrics.name(config['fitness'], 'validation'),
    'is_balanced': config['fitness'] == 'balanced_accuracy',
    'environment': records.read_environment(path),
    'events': checked_files.read_events(path),
    'result': result,
  }


def _collect_study(path: pathlib.Path, served: bool) -> dict[str, Any]:
  # These import Matplotlib and SciPy, which the report of a run need not wait for.
  from lamarck_jax.study import figures, plots, tables

  study = results.collect(path)
  runs = _list_runs(path, study, 'config.json' if served else FILE_NAME)
  return {
    'kind': 'study',
    'title': f'study {path.resolve().name}',
    'dataset': _listed(setting.dataset or study.dataset for setting in study.settings),
    'budget_epochs': _listed(map(study.budget_of, study.settings)),
    'selected_name': study.selected_name,
    'num_runs': len(runs),
    'settings': [
      {
        'name': setting.name,
        'label': plots.label(setting),
        'runs': [
          {'seed': run.seed, 'epochs': run.epochs, 'best_fitness': run.best_fitness}
          for run in setting.runs
        ],
      }
      for setting in study.settings
    ],
    'table': tables.table(study),
    'report': tables.report(study),
    'figures': [
      (name, _data_url(figures.to_bytes(figure, 'png')))
      for name, figure in figures.figures(study).items()
    ],
    'runs': runs,
  }


def _listed(values: Iterable[object]) -> str:
  return ', '.join(dict.fromkeys(map(str, values)))


def _list_runs(path: pathlib.Path, study: Study, needed: str) -> list[dict[str, Any]]:
  """Returns the runs of a study, finished or not, with links to their reports.

  Args:
    path: The study's directory.
    needed: Name of the file without which a run's directory has no report.
  """
  runs = []
  for setting in study.settings:
    finished = {run.seed: run for run in setting.runs}
    for seed in sorted({*finished, *setting.missing}):
      directory = pathlib.Path(setting.name, f'seed{seed}')
      has_report = (path / directory / needed).is_file()
      runs.append(
        {
          'setting': setting.name,
          'seed': seed,
          'best': finished[seed].best_fitness[-1] if seed in finished else None,
          'why': setting.missing.get(seed),
          'link': _link(directory / FILE_NAME) if has_report else None,
        }
      )
  return runs


def _link(path: pathlib.Path) -> str:
  """Returns a link to a file below the page's folder, whatever it is named."""
  return f'./{urllib.parse.quote(path.as_posix())}'


def _data_url(image: bytes) -> str:
  return f'data:image/png;base64,{base64.b64encode(image).decode()}'
