"""Tests of `process`: what a search sets before JAX looks at the machine."""

import pytest

from lamarck_jax.errors import UserError
from lamarck_jax.runtime import allocator, compilation_cache, devices, process


@pytest.fixture
def calls(monkeypatch):
  """What is set, in order, with nothing being set."""
  made = []
  for module, name in (
    (allocator, 'keep_freed_memory'),
    (devices, 'use_cores'),
    (compilation_cache, 'enable'),
  ):
    monkeypatch.setattr(
      module, name, lambda *arguments, name=name: made.append((name, *arguments))
    )
  return made


def test_the_size_of_images_decides_on_memory_and_cores(calls, tiny_config):
  tiny_config.dataset.name = 'npz:images.npz'  # Of a size that is not known yet.
  process.prepare(tiny_config, 'cache')
  tiny_config.dataset.image_size = 16
  process.prepare(tiny_config, 'cache')
  tiny_config.dataset.image_size = None
  tiny_config.dataset.name = 'digits'  # Of 8x8 pixels.
  process.prepare(tiny_config, 'cache')
  assert calls == [
    ('keep_freed_memory', None),
    ('use_cores', 32, None),
    ('enable', 'cache'),
    ('keep_freed_memory', 32 * 16 * 16 * 8 * 4),
    ('use_cores', 32, 16),
    ('enable', 'cache'),
    ('keep_freed_memory', 32 * 8 * 8 * 8 * 4),
    ('use_cores', 32, 8),
    ('enable', 'cache'),
  ]


def test_an_impossible_configuration_is_refused_before_anything_is_set(
  calls, tiny_config
):
  tiny_config.search_space.filters = ()
  with pytest.raises(UserError, match='filters'):
    process.prepare(tiny_config, None)
  assert calls == []
