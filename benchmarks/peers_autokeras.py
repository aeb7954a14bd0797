"""A search of `benchmarks.peers` with AutoKeras.

  python -m benchmarks.peers_autokeras TASK

TASK is a file of `benchmarks.peers`. The methods are `autokeras`, its image classifier
with its own defaults, and `autokeras_conv`, its plain convolutional block alone, so
that no network is beyond one core. Both select by validation accuracy.

AutoKeras ends by a number of networks, not by the clock: a callback stops it in the
middle of a batch when the time is up. Its result is its best network at its best epoch,
as AutoKeras itself keeps it if it is given validation data, the network in progress
included.
"""

import sys
from typing import Any

import numpy as np

from benchmarks import peers_attempt
from benchmarks.peers_attempt import Attempt

# Stopped before by the clock.
_MAX_TRIALS = 10_000
# Its share of the time, to restore the best weights.
_END = 0.98


def _make_callback(attempt: Attempt) -> Any:
  """Returns a Keras callback that keeps the best network and stops the search."""
  import keras
  import keras_tuner

  class KeepBest(keras.callbacks.Callback):
    """Keeps the best network of all trials, with its weights."""

    best_model: Any = None
    best_weights: Any = None

    def __deepcopy__(self, memo: Any) -> 'KeepBest':
      return self  # KerasTuner copies callbacks for every trial.

    def on_train_begin(self, logs: Any = None) -> None:
      del logs
      attempt.evaluations += 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
      del batch, logs
      if attempt.elapsed > _END * attempt.task['seconds'] and self.best_model:
        raise keras_tuner.errors.FatalError('the time is up')

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
      # What ends after the deadline does not count, unless there is nothing else.
      in_time = attempt.elapsed <= attempt.task['seconds'] or not self.best_model
      if in_time and attempt.record(float(logs['val_accuracy'])):
        self.best_model, self.best_weights = self.model, self.model.get_weights()

  return KeepBest()


def _make_classifier(attempt: Attempt) -> Any:
  """Returns AutoKeras's model for a method."""
  import autokeras
  import keras

  common = {
    'max_trials': _MAX_TRIALS,
    'directory': attempt.task['scratch'],
    'objective': 'val_accuracy',
    'overwrite': True,
    'seed': attempt.task['seed'],
  }
  keras.utils.set_random_seed(attempt.task['seed'])
  if attempt.task['method'] == 'autokeras':
    return autokeras.ImageClassifier(**common)
  inputs = autokeras.ImageInput()
  outputs = autokeras.Normalization()(inputs)
  outputs = autokeras.ConvBlock()(outputs)
  outputs = autokeras.ClassificationHead()(outputs)
  return autokeras.AutoModel(inputs, outputs, tuner='greedy', **common)


def main() -> None:
  """Searches until the time is up; evaluates the best network once on the test set."""
  attempt = peers_attempt.begin()
  with np.load(attempt.task['data']) as arrays:
    data = {name: arrays[name] for name in arrays.files}
  keep_best = _make_callback(attempt)
  images = {
    split: data[f'{split}_images'].astype(np.float32)
    for split in ('train', 'validation', 'test')
  }
  ended = 'it has tried all networks'
  try:
    _make_classifier(attempt).fit(
      images['train'],
      data['train_labels'],
      validation_data=(images['validation'], data['validation_labels']),
      callbacks=[keep_best],
      verbose=0,
    )
  except Exception as error:  # Its own, after networks that fail, among others.
    ended = str(error).strip().split('\n')[0][:200]
    if keep_best.best_model is None:
      raise
  print(ended, file=sys.stderr)
  best = keep_best.best_model
  best.set_weights(keep_best.best_weights)
  usage = attempt.usage()

  def accuracy(split: str) -> float:
    predicted = best.predict(images[split], verbose=0).argmax(axis=1)
    return float((predicted == data[f'{split}_labels']).mean())

  attempt.write(
    search_seconds=usage['seconds'],
    **usage,
    network=' '.join(layer.__class__.__name__ for layer in best.layers),
    parameters=int(best.count_params()),
    ended=ended,
    validation_accuracy=accuracy('validation'),
    test_accuracy=accuracy('test'),
  )


if __name__ == '__main__':
  main()
