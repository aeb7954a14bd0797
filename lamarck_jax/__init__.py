"""Lamarckian evolution of convolutional networks in JAX and Flax.

The public names, each in the module that defines it; they are imported when they
are first used, so that the parts that need no network load none.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from lamarck_jax.classifier import Classifier, fit
  from lamarck_jax.errors import DatasetError, UserError
  from lamarck_jax.evolution import EvolutionState, ask, init, tell
  from lamarck_jax.export import Network, load
  from lamarck_jax.genotype import Block, Genotype, SearchSpace, random_genotype
  from lamarck_jax.inheritance import inherit
  from lamarck_jax.model import ConvBlock, ConvNet, init_variables
  from lamarck_jax.mutation import NotApplicable, mutate
  from lamarck_jax.search import run
  from lamarck_jax.training import Trainer

__version__ = '0.1.0'

_MODULES = {
  'Block': 'genotype',
  'Classifier': 'classifier',
  'ConvBlock': 'model',
  'ConvNet': 'model',
  'DatasetError': 'errors',
  'EvolutionState': 'evolution',
  'Genotype': 'genotype',
  'Network': 'export',
  'NotApplicable': 'mutation',
  'SearchSpace': 'genotype',
  'Trainer': 'training',
  'UserError': 'errors',
  'ask': 'evolution',
  'fit': 'classifier',
  'inherit': 'inheritance',
  'init': 'evolution',
  'init_variables': 'model',
  'load': 'export',
  'mutate': 'mutation',
  'random_genotype': 'genotype',
  'run': 'search',
  'tell': 'evolution',
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
  if name in _MODULES:
    return getattr(importlib.import_module(f'lamarck_jax.{_MODULES[name]}'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return [*globals(), *__all__]
