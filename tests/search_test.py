import json
import math
import shutil

from flax import traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy

from lamarck_jax import completion, evolution, search, training, trial
from lamarck_jax.data import datasets
from lamarck_jax.errors import UserError
from lamarck_jax.genotype import Genotype
from lamarck_jax.run_directory import records, training_state
from tests.conftest import read_events, run_until


def read_weights(workdir) -> dict[str, dict[str, np.ndarray]]:
  return {
    path.name: safetensors.numpy.load_file(path)
    for path in (workdir / 'weights').iterdir()
  }


def without_seconds(result: dict) -> dict:
  checkpoints = [{**entry, 'seconds': None} for entry in result['checkpoints']]
  return {**result, 'seconds': None, 'checkpoints': checkpoints}


def assert_same_run(workdir, other) -> None:
  assert read_events(workdir) == read_events(other)
  weights, other_weights = read_weights(workdir), read_weights(other)
  assert weights.keys() == other_weights.keys()
  for name, leaves in weights.items():
    assert leaves.keys() == other_weights[name].keys()
    for path, leaf in leaves.items():
      np.testing.assert_array_equal(leaf, other_weights[name][path])


def test_search_records_every_evaluation_and_a_result(tiny_config, undisturbed):
  workdir, result = undisturbed(tiny_config)
  events = read_events(workdir)
  assert [event['evaluation'] for event in events] == list(range(8))
  assert [event['epochs_used'] for event in events] == list(range(1, 9))
  best = -1.0
  for event in events:
    best = max(best, event['fitness'])
    assert event['best_fitness'] == best
    assert 0 <= event['fitness'] <= 1
    assert event['flops'] > 0
    parent = event['parent']
    assert (parent is None) == (event['evaluation'] == 0)
    if parent is not None:
      assert event['accepted'] == (event['fitness'] > events[parent]['fitness'])
      assert event['mutation']
  assert result['best']['fitness'] == best
  assert result['num_evaluations'] == 8
  assert result['flops'] == sum(event['flops'] for event in events)
  assert records.read_result(workdir) == result


def test_no_architecture_is_evaluated_twice(tiny_config, undisturbed):
  workdir, _ = undisturbed(tiny_config)
  genotypes = [json.dumps(event['genotype']) for event in read_events(workdir)]
  assert len(set(genotypes)) == len(genotypes)


def test_same_seed_gives_the_same_events_and_weights(
  tiny_config, undisturbed, tmp_path
):
  workdir, result = undisturbed(tiny_config)
  again = search.run(tiny_config, tmp_path / 'again')
  assert_same_run(workdir, tmp_path / 'again')
  assert without_seconds(again) == without_seconds(result)


def test_other_seeds_give_other_events(tiny_config, undisturbed, tmp_path):
  workdir, _ = undisturbed(tiny_config)
  tiny_config.seed += 1
  tiny_config.completion.enabled = False
  search.run(tiny_config, tmp_path / 'other')
  assert read_events(tmp_path / 'other') != read_events(workdir)


@pytest.mark.parametrize('stop_after', range(1, 9))
def test_a_search_resumed_after_any_event_is_the_uninterrupted_one(
  tiny_config, undisturbed, tmp_path, stop_after
):
  workdir, result = undisturbed(tiny_config)
  run_until(tiny_config, tmp_path / 'run', stop_after - 1)
  assert len(read_events(tmp_path / 'run')) == stop_after
  resumed = search.run(tiny_config, tmp_path / 'run')
  assert_same_run(workdir, tmp_path / 'run')
  assert without_seconds(resumed) == without_seconds(result)


def test_the_compared_search_opens_and_closes_niches(tiny_config, undisturbed):
  """Resuming is only tested inside niches if there are some."""
  workdir, _ = undisturbed(tiny_config)
  niches = [event['niche'] for event in read_events(workdir)]
  assert any(niche is not None for niche in niches)
  assert None in niches[1:]


def test_a_torn_last_event_is_evaluated_again(tiny_config, undisturbed, tmp_path):
  workdir, _ = undisturbed(tiny_config)
  run_until(tiny_config, tmp_path / 'run', 4)
  with (tmp_path / 'run' / 'events.jsonl').open('a') as file:
    file.write('{"evaluation": 5, "geno')
  search.run(tiny_config, tmp_path / 'run')
  assert_same_run(workdir, tmp_path / 'run')


def test_a_finished_search_is_reported_without_reading_data(
  tiny_config, undisturbed, monkeypatch
):
  workdir, result = undisturbed(tiny_config)
  monkeypatch.setattr(datasets, 'load', lambda **_: pytest.fail('data was read'))
  assert search.run(tiny_config, workdir) == result


def test_a_directory_with_another_config_is_refused_by_field(tiny_config, undisturbed):
  workdir, _ = undisturbed(tiny_config)
  tiny_config.seed = 7
  tiny_config.niching.rate = 0.25
  with pytest.raises(
    UserError, match=r'differs in niching\.rate, seed; give one with --workdir'
  ):
    search.run(tiny_config, workdir)


def test_only_weights_that_are_needed_stay_on_disk(tiny_config, tmp_path):
  tiny_config.completion.enabled = False
  state = search.initial_state(tiny_config)
  workdir = tmp_path / 'run'

  def check(event):
    nonlocal state
    state = state.tell(Genotype.from_json(event), event['fitness'])
    on_disk = {int(path.stem) for path in (workdir / 'weights').iterdir()}
    assert on_disk == state.needed
    assert state.evolution.parent is not None
    assert state.evolution.parent.evaluation in on_disk

  search.run(tiny_config, workdir, check)


def test_checkpoints_hold_the_best_at_each_budget(tiny_config, undisturbed):
  workdir, result = undisturbed(tiny_config)
  events = read_events(workdir)
  assert [checkpoint['epochs'] for checkpoint in result['checkpoints']] == [3, 8]
  for checkpoint in result['checkpoints']:
    within = [event for event in events if event['epochs_used'] <= checkpoint['epochs']]
    best = max(within, key=lambda event: event['fitness'])
    assert checkpoint['evaluation'] == best['evaluation']
    assert checkpoint['fitness'] == best['fitness']
    assert checkpoint['genotype'] == best['genotype']


def test_checkpoints_at_a_budget_between_evaluations_ignore_the_later_one(tiny_config):
  tiny_config.epochs_per_evaluation = 4
  tiny_config.budget_epochs = 10
  tiny_config.checkpoint_epochs = (2, 6)
  state = search.initial_state(tiny_config)
  for evaluation, fitness in enumerate([0.1, 0.5, 0.9]):
    assert not state.evolution.done
    state = state.tell(Genotype.parse(f'{evaluation + 1}c1'), fitness)
  assert state.evolution.done
  best = {budget: best and best.fitness for budget, best in state.checkpoints.items()}
  assert best == {2: None, 6: 0.1, 10: 0.9}


def test_the_test_split_is_used_only_for_completed_checkpoints(
  tiny_config, tmp_path, monkeypatch
):
  calls = []
  confusion = training.Trainer.confusion

  def recorded(self, genotype, variables, split):
    calls.append(split)
    return confusion(self, genotype, variables, split)

  monkeypatch.setattr(training.Trainer, 'confusion', recorded)
  result = search.run(tiny_config, tmp_path / 'run')
  completed = {checkpoint['evaluation'] for checkpoint in result['checkpoints']}
  assert calls == ['validation'] * 16 + ['test', 'train', 'validation'] * len(completed)


def test_the_fitness_is_the_measure_that_is_configured(tiny_config, tmp_path):
  tiny_config.fitness = 'balanced_accuracy'
  result = search.run(tiny_config, tmp_path / 'run')
  events = records.read_events(tmp_path / 'run')
  assert [event['fitness'] for event in events] == [
    event['balanced_accuracy'] for event in events
  ]
  assert any(event['accuracy'] != event['balanced_accuracy'] for event in events)
  for checkpoint in result['checkpoints']:
    confusion = np.array(checkpoint['test_confusion'])
    shares = confusion.diagonal() / confusion.sum(axis=1)
    assert checkpoint['test_balanced_accuracy'] == pytest.approx(shares.mean())


def test_the_learning_rate_of_an_evaluation_is_constant_or_a_cosine(tiny_config):
  tiny_config.epochs_per_evaluation = 4
  assert trial.learning_rates(tiny_config) == [1e-3] * 4
  tiny_config.learning_rate_schedule = 'cosine'
  expected = [9.62e-4, 6.91e-4, 3.09e-4, 3.81e-5]
  assert trial.learning_rates(tiny_config) == pytest.approx(expected, rel=2e-3)
  tiny_config.epochs_per_evaluation = 1
  assert trial.learning_rates(tiny_config) == pytest.approx([5e-4])


def test_an_evaluation_has_its_learning_rates(tiny_config, tmp_path, monkeypatch):
  used = []
  train = training.Trainer.train

  def recorded(self, key, genotype, variables, rates, on_epoch=None):
    used.append(rates)
    return train(self, key, genotype, variables, rates, on_epoch)

  monkeypatch.setattr(training.Trainer, 'train', recorded)
  tiny_config.learning_rate_schedule = 'cosine'
  tiny_config.budget_epochs = 1
  tiny_config.completion.enabled = False
  search.run(tiny_config, tmp_path / 'run')
  assert used == [trial.learning_rates(tiny_config)]


def test_completion_follows_the_papers_schedule(tiny_config):
  tiny_config.completion.epochs = (10, 20, 30)
  tiny_config.completion.learning_rates = (1e-3, 1e-4, 1e-5)
  assert completion.schedule(tiny_config) == [1e-3] * 10 + [1e-4] * 10 + [1e-5] * 10


def test_completion_starts_from_the_saved_weights_and_is_not_repeated(
  tiny_config, undisturbed, tmp_path, monkeypatch
):
  workdir, result = undisturbed(tiny_config)
  shutil.copytree(workdir, tmp_path / 'run')
  (tmp_path / 'run' / 'result.json').unlink()
  for method in ('train', 'train_epoch'):
    monkeypatch.setattr(training.Trainer, method, lambda *_: pytest.fail('trained'))
  assert search.run(tiny_config, tmp_path / 'run') == result


@pytest.mark.parametrize('damage', [None, 'a byte', 'another version'])
def test_an_interrupted_completion_goes_on_from_the_last_epoch_saved(
  tiny_config, tmp_path, monkeypatch, damage, caplog
):
  tiny_config.completion.epochs = (2, 4)
  tiny_config.completion.learning_rates = (1e-3, 1e-4)
  tiny_config.budget_epochs = 2
  tiny_config.checkpoint_epochs = ()
  desired = search.run(tiny_config, tmp_path / 'undisturbed')

  monkeypatch.setattr(completion, 'SAVING_SHARE', math.inf)
  train_epoch = training.Trainer.train_epoch
  epochs = []

  def counted(self, key, genotype, state, epoch, learning_rate):
    epochs.append(epoch)
    if epochs == [0, 0, 0, 1, 2, 3]:  # Two evaluations of one epoch went before.
      raise KeyboardInterrupt
    return train_epoch(self, key, genotype, state, epoch, learning_rate)

  monkeypatch.setattr(training.Trainer, 'train_epoch', counted)
  workdir = tmp_path / 'run'
  with pytest.raises(KeyboardInterrupt):
    search.run(tiny_config, workdir)
  (saved,) = (workdir / 'weights').glob('completing_*')
  if damage == 'a byte':
    saved.write_bytes(saved.read_bytes()[:-1] + b'?')
  elif damage:  # Version 0.1.0 had nine arrays for each block.
    content = training_state.to_arrays([np.zeros(2)] * 9, 3)
    directory = records.RunDirectory(workdir, tiny_config.to_dict())
    directory.write_completing(int(saved.stem.partition('_')[2]), content)
  epochs.clear()
  result = search.run(tiny_config, workdir)
  assert epochs == ([0, 1, 2, 3] if damage else [3])
  assert ('as of another version' in caplog.text) == (damage == 'another version')
  assert not saved.exists()
  for checkpoint in (*result['checkpoints'], *desired['checkpoints']):
    del checkpoint['seconds']
  assert result['checkpoints'] == desired['checkpoints']
  assert _weights(workdir) == _weights(tmp_path / 'undisturbed')


def _weights(workdir):
  return {path.name: path.read_bytes() for path in (workdir / 'weights').iterdir()}


def test_completed_weights_reach_the_recorded_test_accuracy(tiny_config, undisturbed):
  workdir, result = undisturbed(tiny_config)
  directory = records.RunDirectory(workdir, tiny_config.to_dict())
  dataset = datasets.load(**tiny_config.dataset)
  trainer = training.Trainer(dataset, batch_size=tiny_config.batch_size)
  for checkpoint in result['checkpoints']:
    accuracy = trainer.accuracy(
      Genotype.from_json(checkpoint),
      directory.read_completed_weights(checkpoint['evaluation']),
      'test',
    )
    assert accuracy == checkpoint['test_accuracy']
    shares = np.bincount(dataset.test.labels) / len(dataset.test.labels)
    by_class = checkpoint['test_accuracy_by_class']
    assert tuple(by_class) == dataset.class_names
    assert np.dot(list(by_class.values()), shares) == pytest.approx(accuracy)


def test_events_hold_what_the_algorithm_asked_for(tiny_config, undisturbed):
  """The events alone, folded with the same keys, lead to the same children."""
  workdir, _ = undisturbed(tiny_config)
  state = search.initial_state(tiny_config)
  for event in read_events(workdir):
    (offspring,) = state.ask()
    key = search.random_key(1, event['evaluation'], search.Purpose.MUTATION)
    child = offspring.genotype
    assert child == evolution.ask(key, state.evolution)
    recorded = Genotype.from_json(event)
    assert recorded == child
    assert [block.lineage for block in recorded.blocks] == [
      block.lineage for block in child.blocks
    ]
    state = state.tell(recorded, event['fitness'])


def test_random_keys_differ_by_seed_evaluation_and_purpose():
  keys = {
    tuple(np.asarray(jax.random.key_data(search.random_key(seed, number, purpose))))
    for seed in range(3)
    for number in range(3)
    for purpose in search.Purpose
  }
  assert len(keys) == 3 * 3 * len(search.Purpose)


def test_a_batch_larger_than_the_training_split_is_refused(tiny_config, tmp_path):
  tiny_config.dataset.num_train = None
  tiny_config.batch_size = 5000
  with pytest.raises(UserError, match=r'config\.batch_size: got 5000'):
    search.run(tiny_config, tmp_path / 'run')


def test_the_next_child_is_among_those_compiled_ahead(
  tiny_config, tmp_path, monkeypatch
):
  foreseen = []
  monkeypatch.setattr(
    training.Trainer,
    'compile_ahead',
    lambda self, genotypes: foreseen.append(genotypes),
  )
  search.run(tiny_config, tmp_path / 'run')
  children = [
    Genotype.from_json(event) for event in records.read_events(tmp_path / 'run')
  ]
  assert len(foreseen) == len(children)
  assert not foreseen.pop()
  for child, genotypes in zip(children[1:], foreseen):
    assert len(genotypes) == 2
    assert child in genotypes


def test_completion_starts_from_weights_shrunk_towards_initial_ones(
  tiny_config, tmp_path
):
  tiny_config.budget_epochs = 1
  tiny_config.checkpoint_epochs = ()
  tiny_config.completion.epochs = (1,)
  tiny_config.completion.learning_rates = (1e-12,)  # Leaves parameters as they are.
  tiny_config.completion.shrink = 0.5
  search.run(tiny_config, tmp_path)
  directory = records.RunDirectory(tmp_path, tiny_config.to_dict())
  before = traverse_util.flatten_dict(directory.read_weights(0)['params'])
  after = traverse_util.flatten_dict(directory.read_completed_weights(0)['params'])
  for path, leaf in before.items():
    if path[-1] == 'kernel':
      fresh = 2 * after[path] - leaf
      limit = math.sqrt(6 / (math.prod(leaf.shape[:-2]) * sum(leaf.shape[-2:])))
      assert np.all(np.abs(fresh) <= limit + 1e-5)
      assert np.std(fresh) > limit / 3
    else:
      expected = leaf / 2 + (path[-1] == 'scale') / 2
      np.testing.assert_allclose(after[path], expected, rtol=1e-5, atol=1e-7)
