"""Tests of `progress`."""

import io
import re
import types

import pytest

from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import progress

_GENOTYPE = Genotype.parse('64c3 96c5s2')


class _Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


def _event(evaluation: int, epochs_used: int, fitness: float, best: float) -> dict:
  return {
    'evaluation': evaluation,
    'epochs_used': epochs_used,
    'fitness': fitness,
    'best_fitness': best,
  }


@pytest.fixture(name='clock')
def _clock(monkeypatch):
  """Stands in for the clock; `now` is the time in seconds."""
  clock = types.SimpleNamespace(now=100.0)
  clock.monotonic = lambda: clock.now
  monkeypatch.setattr(progress, 'time', clock)
  return clock


def _evaluate(bar: progress.Progress, event: dict, speed: float = 1234.5) -> None:
  bar.training(event['evaluation'], _GENOTYPE)
  for _ in range(4):
    bar.epoch(event['evaluation'])
  bar.evaluated(event, _GENOTYPE, speed)


def test_a_plain_line_says_all_that_matters_of_an_evaluation(clock):
  file = io.StringIO()
  with progress.Progress(512, file=file) as bar:
    clock.now += 2
    _evaluate(bar, _event(7, 32, 0.6543, 0.7891), speed=12345.6)
  (line,) = file.getvalue().splitlines()
  assert 'epoch 32/512' in line
  assert 'evaluation 7' in line
  assert ' 64c3 96c5s2 ' in line
  assert 'fitness 0.6543' in line
  assert 'best 0.7891' in line
  assert '12,346 images/s' in line
  # 480 epochs at 16 in a second.
  assert line.endswith('00:30 left')


def test_with_parsimony_the_selected_network_is_not_called_the_best(clock):
  file = io.StringIO()
  with progress.Progress(512, file=file) as bar:
    clock.now += 2
    _evaluate(bar, {**_event(7, 32, 0.6543, 0.7891), 'best': 3})
  assert 'selected 0.7891' in file.getvalue()
  assert 'best' not in file.getvalue()
  result = {
    'best': {**_GENOTYPE.to_json(), 'fitness': 0.7891, 'evaluation': 3},
    'num_evaluations': 8,
    'checkpoints': [],
  }
  lines = progress.result_lines(result, 'accuracy', parsimony=True)
  assert lines == [
    ('selected network', '64c3 96c5s2'),
    ('validation accuracy', '0.7891  (evaluation 3 of 8)'),
  ]


def test_there_is_one_plain_line_an_evaluation_and_no_control_characters(clock):
  file = io.StringIO()
  with progress.Progress(12, file=file) as bar:
    for evaluation in range(3):
      clock.now += 10
      event = _event(evaluation, 4 * (evaluation + 1), 0.5, 0.5)
      _evaluate(bar, event)
      # It is there at once, not when the search ends.
      assert len(file.getvalue().splitlines()) == evaluation + 1
  lines = file.getvalue()
  assert re.findall(r'epoch (\d+)/12', lines) == ['4', '8', '12']
  assert re.findall(r'(\S+) left', lines) == ['00:20', '00:10', '00:00']
  assert lines.isascii()
  assert not re.search(r'[\x00-\x09\x0b-\x1f]', lines)


def test_the_time_left_counts_only_what_ran_since_the_search_was_resumed(clock):
  file = io.StringIO()
  with progress.Progress(512, epochs_used=256, file=file) as bar:
    clock.now += 60
    _evaluate(bar, _event(64, 260, 0.5, 0.5))
  # 252 epochs at 4 in a minute.
  assert file.getvalue().strip().endswith('1:03:00 left')


def test_no_time_is_left_when_the_last_evaluation_exceeds_the_budget(clock):
  file = io.StringIO()
  with progress.Progress(6, file=file) as bar:
    clock.now += 10
    _evaluate(bar, _event(1, 8, 0.5, 0.5))
  assert 'epoch 8/6' in file.getvalue()
  assert file.getvalue().strip().endswith('00:00 left')


def test_a_terminal_gets_one_live_line_instead_of_plain_ones(clock):
  file = _Terminal()
  with progress.Progress(512, epochs_used=4, file=file) as bar:
    _evaluate(bar, _event(1, 8, 0.6543, 0.7891))
  output = file.getvalue()
  assert 'evaluation 1' not in output
  assert '\r' in output
  assert output.count('\n') <= 1
  last = output.rstrip().split('\r')[-1]
  assert '8/512 epochs' in last
  assert '#1 64c3 96c5s2' in last
  assert 'fitness 0.6543' in last
  assert 'best 0.7891' in last


def test_a_terminal_shows_the_network_in_training_before_its_first_epoch_ends():
  file = _Terminal()
  with progress.Progress(512, file=file) as bar:
    bar.training(3, _GENOTYPE)
    assert '#3 64c3 96c5s2' in file.getvalue()


def test_standard_error_is_the_default(capsys, clock):
  with progress.Progress(8) as bar:
    clock.now += 1
    _evaluate(bar, _event(0, 4, 0.5, 0.5))
  captured = capsys.readouterr()
  assert 'epoch 4/8' in captured.err
  assert captured.out == ''


class _Broken(io.StringIO):
  """A file that raises on every call, on a terminal or elsewhere."""

  def __init__(self, terminal: bool, error: Exception):
    super().__init__()
    self.terminal, self.error = terminal, error

  def isatty(self) -> bool:
    return self.terminal

  def write(self, text: str) -> int:
    raise self.error

  def flush(self) -> None:
    raise self.error


@pytest.mark.parametrize('terminal', [True, False])
@pytest.mark.parametrize(
  'error',
  [
    *(BrokenPipeError(), OSError(28, 'No space left on device'), OSError(5, 'EIO')),
    ValueError('I/O operation on closed file'),
    UnicodeEncodeError('ascii', 'é', 0, 1, 'ordinal not in range'),
  ],
  ids=str,
)
def test_what_cannot_be_printed_ends_no_search(clock, terminal, error):
  _show_everything(_Broken(terminal, error), clock)


def test_a_search_without_standard_error_goes_on(clock, monkeypatch, capsys):
  monkeypatch.setattr('sys.stderr', None)
  _show_everything(None, clock)
  assert capsys.readouterr().out == ''


def _show_everything(file, clock) -> None:
  description = {'name': 'tiny', 'image_shape': (8, 8, 1), 'class_names': 'ab'}
  sizes = {f'num_{split}': 1 for split in ('train', 'validation', 'test')}
  progress.print_dataset({**description, **sizes}, file)
  with progress.Progress(8, file=file) as bar:
    clock.now += 1
    _evaluate(bar, _event(0, 4, 0.5, 0.5))
  with progress.CompletionProgress(3, _GENOTYPE, 2, file=file) as bar:
    bar.epoch()
    bar.tested({'validation_accuracy': 0.5, 'test_accuracy': 0.5})


def test_a_notebook_has_the_bar_of_a_terminal():
  class OutStream(io.StringIO):
    """As a notebook's kernel has it: no terminal, but a line can be overwritten."""

    __module__ = 'ipykernel.iostream'

  file = OutStream()
  with progress.Progress(64, file=file) as bar:
    _evaluate(bar, _event(0, 4, 0.5, 0.5))
  assert file.getvalue().count('\r') > 1
  assert '4/64 epochs' in file.getvalue()


def test_inside_quiet_nothing_is_printed(capsys):
  with progress.quiet(), progress.Progress(64) as bar:
    _evaluate(bar, _event(0, 4, 0.5, 0.5))
  assert capsys.readouterr().err == ''
  with progress.Progress(64) as bar:
    _evaluate(bar, _event(0, 4, 0.5, 0.5))
  assert 'epoch 4/64' in capsys.readouterr().err
