"""Paired births: children of one parent by mutation and by crossover, trained alike.

  python -m benchmarks.crossover_births --out=docs/results/crossover/births.jsonl

Population searches on `configs/digits.py` give the states: two parents, drawn by
tournament at the end of a generation, that have a cut; a pair is used once. From each
state the arms of `ARMS` are trained for e epochs with one key for initial weights and
one for training:

  mutant          a mutant of the first parent, by the paper's inheritance
  mutant_net2net  the same mutant, function-preserving or by least squares
  stitched        the crossover child with the layer behind the seam fitted
  leaf_rule       the same child without the fit
  unrelated       a stitched child with a mate that has no common ancestor
  fresh           the network of `stitched` from fresh weights

The unrelated mate is an individual of the next seed's search at the same generation. It
is cut where its strides' product is that of the first parent at its cut, so that the
child stays in the search space, as near as possible to the stitched child's number of
blocks behind the cut. The first such mate in a random order is taken.

From every fifth state the arms of `COMPLETED` are trained on to completion, and
evaluated on the test set. Each state is a line of the file, on disk before the next
one begins; the same command resumes after an interruption.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import functools
import json
import pathlib
from typing import Any

import jax

from benchmarks import common
from benchmarks.crossover_states import (
  Searched,
  crossovers,
  distance,
  make_config,
  renumbered_variables,
  search,
  unrelated_child,
)
from lamarck_jax import completion, initialisation, mutation, trial
from lamarck_jax.data import datasets
from lamarck_jax.genotype import Genotype
from lamarck_jax.model import Variables
from lamarck_jax.population import Offspring, PopulationState
from lamarck_jax.run_directory import durable
from lamarck_jax.runtime import jax_settings, process
from lamarck_jax.search_state import Purpose, random_key
from lamarck_jax.training import Trainer
from lamarck_jax.trial import learning_rates

# Arm -> the fields of the configuration that fix how it inherits.
ARMS: dict[str, dict[str, Any]] = {
  'mutant': {'inheritance': 'lamarckian'},
  'mutant_net2net': {'inheritance': 'net2net'},
  'stitched': {'population.crossover_inheritance': 'stitched'},
  'leaf_rule': {'population.crossover_inheritance': 'leaf_rule'},
  'unrelated': {'population.crossover_inheritance': 'stitched'},
  'fresh': {'population.crossover_inheritance': 'none'},
}
COMPLETED = ('stitched', 'leaf_rule', 'fresh')
COMPLETE_EVERY = 5

# ------------------------------------------------------------------------------
# Births
# ------------------------------------------------------------------------------


def births(
  seed: int,
  searched: Searched,
  other: Searched,
  trainer: Trainer,
  known: Sequence[Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
  """Yields the records of a search's states, without those that are known.

  Args:
    seed: The search's.
    searched: The search.
    other: The search that unrelated mates are taken from.
    trainer: Trains the arms.
    known: Records of all earlier states, in their order.
  """
  done = {(r['seed'], r['generation'], r['place']) for r in known}
  count = len(known)
  used: set[frozenset[int]] = set()
  for state, other_state in zip(searched.generations, other.generations, strict=True):
    if state.done:
      break
    key = random_key(seed, state.num_evaluations, Purpose.MUTATION)
    children = crossovers(jax.random.fold_in(key, 1), state, used)
    used |= {frozenset(p.evaluation for p in child.parents) for child in children}
    for place, child in enumerate(children):
      if (seed, state.generation, place) in done:
        continue
      first, second = (parent.evaluation for parent in child.parents)
      record = {
        'seed': seed,
        'generation': state.generation,
        'place': place,
        'parents': [first, second],
        'fitness': [parent.fitness for parent in child.parents],
        'cut': child.cut,
        'distance': distance(searched.parents, first, second),
      }
      keys = [random_key(seed, state.num_evaluations, purpose) for purpose in Purpose]
      keys = [jax.random.fold_in(key, 2 + place) for key in keys]
      family = _family(keys[Purpose.MUTATION], child, state, other_state)
      completes = count % COMPLETE_EVERY == 0
      yield {**record, **_train(keys, family, searched, other, trainer, completes)}
      count += 1


def _family(
  key: jax.Array, child: Offspring, state: PopulationState, other: PopulationState
) -> dict[str, Offspring | None]:
  """Returns the child of each arm; None if there is none."""
  first = child.parents[0]
  genotype = mutation.mutate(key, first.genotype, state.space, state.history)
  mutant = Offspring(genotype, (first,))
  family: dict[str, Offspring | None] = dict.fromkeys(ARMS, child)
  family |= {'mutant': mutant, 'mutant_net2net': mutant}
  family['unrelated'] = unrelated_child(key, child, other.parents, state.space)
  return family


def _train(
  keys: Sequence[jax.Array],
  family: Mapping[str, Offspring | None],
  searched: Searched,
  other: Searched,
  trainer: Trainer,
  completes: bool,
) -> dict[str, Any]:
  """Returns the outcomes of the arms of a state, and of their completions."""
  arms: dict[str, Any] = {}
  completions: dict[str, Any] = {}
  for name, child in family.items():
    if child is None:
      arms[name] = None
      continue
    config = searched.config.copy_and_resolve_references()
    config.update_from_flattened_dict(ARMS[name])
    parents = [searched.variables[child.parents[0].evaluation]]
    if name == 'unrelated':
      number = child.parents[1].evaluation
      (genotype,) = {
        individual.genotype
        for state in other.generations
        for individual in state.parents
        if individual.evaluation == number
      }
      parents.append(renumbered_variables(genotype, other.variables[number]))
    else:
      parents += [searched.variables[p.evaluation] for p in child.parents[1:]]
    initial, r2 = initialisation.initial_variables(
      keys[Purpose.INITIALISATION], child, parents, trainer, config
    )
    key, rates = keys[Purpose.TRAINING], learning_rates(config)
    outcome, variables = train(key, child.genotype, initial, rates, trainer)
    arms[name] = {'genotype': str(child.genotype), 'r2': r2, **outcome}
    if name == 'unrelated':
      arms[name]['mate_fitness'] = child.parents[1].fitness
    if completes and name in COMPLETED:
      key, rates = keys[Purpose.COMPLETION], completion.schedule(config)
      variables = trainer.train(key, child.genotype, variables, rates)
      completions[name] = {
        split: trainer.accuracy(child.genotype, variables, split)
        for split in ('train', 'validation', 'test')
      }
  return {'arms': arms, **({'completions': completions} if completes else {})}


def train(
  key: jax.Array,
  genotype: Genotype,
  variables: Variables,
  rates: Sequence[float],
  trainer: Trainer,
) -> tuple[dict[str, list[float]], Variables]:
  """Trains as `Trainer.train` does.

  Returns:
    Validation accuracy before training and after each epoch, the training loss of each
    epoch, and the trained variables.
  """
  accuracies = [trainer.accuracy(genotype, variables, 'validation')]
  losses = []
  state = trainer.initial_state(genotype, variables)
  for epoch, rate in enumerate(rates):
    state, loss = trainer.train_epoch(key, genotype, state, epoch, rate)
    losses.append(loss)
    trained = trainer.variables(genotype, state)
    accuracies.append(trainer.accuracy(genotype, trained, 'validation'))
  return {'accuracies': accuracies, 'losses': losses}, trained


# ------------------------------------------------------------------------------
# The file
# ------------------------------------------------------------------------------


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the records of a file, or none; a torn last line is left out."""
  if not path.exists():
    return []
  *lines, _ = durable.read_bytes(path).split(b'\n')
  return [json.loads(line) for line in lines]


def make_trainer(tiny: bool = False) -> Trainer:
  """Returns the trainer of all searches and arms."""
  config = make_config(1, tiny)
  return trial.make_trainer(config, datasets.load(**config.dataset))


@jax_settings.applied()
def run(
  out: pathlib.Path, num_states: int, trainer: Trainer, tiny: bool = False
) -> None:
  """Adds records to a file until it has those of a number of states."""
  records = read(out)
  if len(records) >= num_states:
    return
  # A search gives mates to the one before it, and then its own states.
  searched = functools.lru_cache(2)(lambda seed: search(seed, trainer, tiny))
  seed = records[-1]['seed'] if records else 1
  while True:
    for record in births(seed, searched(seed), searched(seed + 1), trainer, records):
      records.append(record)
      lines = ''.join(json.dumps(record) + '\n' for record in records)
      durable.write(out, lines.encode())
      print(f'{len(records)} of {num_states} states, seed {seed}', flush=True)
      if len(records) == num_states:
        return
    seed += 1


def main() -> None:
  """Runs what is missing from the file."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
  parser.add_argument('--out', required=True, type=common.path)
  parser.add_argument('--states', type=int, default=200)
  parser.add_argument('--tiny', action='store_true', help='A rehearsal.')
  args = parser.parse_args()
  process.configure(make_config(1, args.tiny))
  args.out.parent.mkdir(parents=True, exist_ok=True)
  run(args.out, args.states, make_trainer(args.tiny), args.tiny)


if __name__ == '__main__':
  main()
