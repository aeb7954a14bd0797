"""Tests of `pool`, with workers that are no processes and do as they are told."""

import io

import pytest

from lamarck_jax import search, trial
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Genotype
from lamarck_jax.population import Offspring
from lamarck_jax.run_directory.progress import Progress
from lamarck_jax.trial import Candidate, Outcome
from lamarck_jax.workers.pool import MAX_DEATHS, Kind, Report, Workers
from tests.workers.conftest import make_population_config


class WorkersHere:
  """Workers that are this process; the evaluations that they have made."""

  def __init__(self):
    self.evaluations = []

  def start(self, config):
    self._config = config

  def send_dataset(self, dataset):
    self._trainer = trial.make_trainer(self._config, dataset)

  def evaluate(self, candidates, progress):
    self.evaluations += [candidate.evaluation for candidate in candidates]
    return trial.one_by_one(self._config, self._trainer, candidates, progress)

  def close(self):
    self._trainer.close()


def test_the_search_itself_trains_no_network_not_even_the_first(tmp_path):
  workers = WorkersHere()
  search.run(make_population_config(), tmp_path / 'run', workers=workers)
  assert workers.evaluations == list(range(7))


class Data:
  """What a generation needs to know of a data set."""

  image_shape = (8, 8, 1)
  num_classes = 10

  def __str__(self):
    return 'data'


class ScriptedWorker:
  """A worker whose test says what happens to it."""

  def __init__(self, engine, index, report):
    self.engine, self.index, self._report = engine, index, report
    self.candidate = None
    self.killed = False

  def load(self, dataset):
    assert dataset == 'the data'
    self.report(*self.engine.at_start.pop(0) if self.engine.at_start else [Kind.READY])

  def evaluate(self, candidate):
    assert self.candidate is None and not self.killed
    self.candidate = candidate.evaluation
    self.engine.on_evaluate(self)

  def kill(self):
    self.killed = True

  def report(self, kind, value=None):
    if kind is Kind.OUTCOME:
      self.candidate = None
    self._report(Report(self, kind, value))

  def succeed(self):
    self.report(Kind.OUTCOME, Outcome(fitness=self.candidate / 100))


class ScriptedEngine:
  """Starts such workers.

  Attributes:
    at_start: What the workers that are started next report, instead of READY.
    on_evaluate: Called with each worker that gets a candidate; by default it succeeds.
  """

  def __init__(self, num_workers=2):
    self.num_workers = num_workers
    self.workers = []
    self.at_start = []
    self.on_evaluate = ScriptedWorker.succeed
    self.closed = False

  def start(self, index, config, report):
    self.workers.append(ScriptedWorker(self, index, report))
    return self.workers[-1]

  def share(self, dataset):
    return f'the {dataset}'

  def close(self):
    self.closed = True

  def training(self):
    """The evaluations in training, by worker."""
    return {w: w.candidate for w in self.workers if w.candidate and not w.killed}


def evaluate(engine, count=5):
  """Returns the outcomes of a generation of candidates from number 1 on."""
  workers = Workers(engine)
  workers.start(None)
  workers.send_dataset(Data())
  genotype = Genotype.parse('4c1')
  generation = [Candidate(i, Offspring(genotype)) for i in range(1, count + 1)]
  with Progress(100, file=io.StringIO()) as progress:
    outcomes = [*workers.evaluate(generation, progress)]
  workers.close()
  assert engine.closed
  assert all(worker.killed for worker in engine.workers)
  return outcomes


FITNESSES = [0.01, 0.02, 0.03, 0.04, 0.05]


def fitnesses(outcomes):
  return [outcome.fitness for outcome in outcomes]


@pytest.mark.parametrize('num_workers', [1, 2, 3, 7])
def test_outcomes_come_in_the_order_of_the_candidates(num_workers):
  assert fitnesses(evaluate(ScriptedEngine(num_workers))) == FITNESSES


def test_outcomes_come_in_order_whichever_worker_is_done_first():
  engine = ScriptedEngine(3)

  def succeed_together(worker):
    if worker.candidate == 3:
      for other in reversed(engine.workers):
        other.succeed()

  engine.on_evaluate = succeed_together
  assert fitnesses(evaluate(engine, count=3)) == FITNESSES[:3]


def test_an_outcome_is_given_as_soon_as_all_before_it_are_known():
  engine = ScriptedEngine(2)
  engine.on_evaluate = lambda worker: worker.succeed() if worker.candidate == 1 else 0
  workers = Workers(engine)
  workers.start(None)
  workers.send_dataset(Data())
  generation = [Candidate(i, Offspring(Genotype.parse('4c1'))) for i in (1, 2)]
  with Progress(100, file=io.StringIO()) as progress:
    assert next(workers.evaluate(generation, progress)).fitness == 0.01


def test_the_largest_networks_are_trained_first():
  names = ['4c1', '8c3 8c3', '4c3', '8c3s2 8c3']
  generation = [
    Candidate(i, Offspring(Genotype.parse(name))) for i, name in enumerate(names)
  ]
  trained = []

  def succeed(worker):
    trained.append(worker.candidate)
    worker.succeed()

  engine = ScriptedEngine(1)
  engine.on_evaluate = succeed
  workers = Workers(engine)
  workers.start(None)
  workers.send_dataset(Data())
  with Progress(100, file=io.StringIO()) as progress:
    outcomes = [*workers.evaluate(generation, progress)]
  assert trained == [1, 3, 2, 0]
  assert fitnesses(outcomes) == [0, 0.01, 0.02, 0.03]


def test_the_candidate_of_a_worker_that_dies_is_evaluated_by_its_replacement():
  engine = ScriptedEngine(2)
  deaths = []

  def die_once(worker):
    if worker.candidate == 2 and not deaths:
      deaths.append(worker)
      worker.report(Kind.DIED, 'signal 9')
      worker.report(Kind.OUTCOME, Outcome(fitness=0.9))  # Too late to count.
    else:
      worker.succeed()

  engine.on_evaluate = die_once
  assert fitnesses(evaluate(engine)) == FITNESSES
  assert [worker.index for worker in engine.workers] == [0, 1, deaths[0].index]


def test_a_candidate_that_ends_its_workers_fails_after_a_try_alone():
  engine = ScriptedEngine(2)
  beside = []

  def die(worker):
    others = [other for other in engine.training() if other is not worker]
    if worker.candidate == 3:
      beside.append(len(others))
      worker.report(Kind.DIED, 'signal 9')
      for other in others if len(beside) == 2 else []:
        other.succeed()
    elif len(beside) != 1:  # The fourth one takes longer than two deaths.
      worker.succeed()

  engine.on_evaluate = die
  outcomes = evaluate(engine)
  assert beside == [0, 1, 0]
  assert len(beside) == MAX_DEATHS
  assert fitnesses(outcomes) == [0.01, 0.02, None, 0.04, 0.05]
  assert outcomes[2].failure == f'its worker died {MAX_DEATHS} times: signal 9'


def test_workers_that_never_start_end_the_search_with_one_line():
  engine = ScriptedEngine(2)
  engine.at_start = [[Kind.DIED, 'exit status 1']] * (MAX_DEATHS + 1)
  with pytest.raises(UserError, match=r'num_workers: got 2, .*exit status 1.*want'):
    evaluate(engine)


def test_a_worker_that_dies_while_it_starts_or_waits_is_replaced():
  engine = ScriptedEngine(2)
  engine.at_start = [[Kind.DIED, 'signal 9'], [Kind.READY], [Kind.DIED, 'signal 9']]
  assert fitnesses(evaluate(engine)) == FITNESSES
  assert len(engine.workers) == 4


def test_an_error_of_a_worker_is_an_error_of_the_search():
  """Such as a device that computes nothing any more: others would fail as well."""
  engine = ScriptedEngine(2)
  engine.on_evaluate = lambda worker: worker.report(Kind.ERROR, MemoryError('lost'))
  with pytest.raises(MemoryError, match='lost'):
    evaluate(engine)
