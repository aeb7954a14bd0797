"""Tests of `process`: the settings that a search applies before JAX initialises."""

import threading

import pytest

from lamarck_jax.errors import UserError
from lamarck_jax.runtime import allocator, compilation_cache, devices, process


@pytest.fixture
def calls(monkeypatch):
  """The settings that would be applied, in order; none is."""
  made = []
  for module, name in (
    (allocator, 'keep_freed_memory'),
    (devices, 'configure_cpu_devices'),
    (compilation_cache, 'enable'),
    (devices, 'check_platform'),
  ):
    monkeypatch.setattr(
      module, name, lambda *arguments, name=name: made.append((name, *arguments))
    )
  return made


def test_memory_and_devices_depend_on_the_size_of_the_images(calls, tiny_config):
  tiny_config.dataset.name = 'npz:images.npz'  # Its size is not known yet.
  process.configure(tiny_config, 'cache')
  tiny_config.dataset.image_size = 16
  process.configure(tiny_config, 'cache')
  tiny_config.dataset.image_size = None
  tiny_config.dataset.name = 'digits'  # 8x8 pixels.
  process.configure(tiny_config, 'cache')
  assert calls == [
    ('keep_freed_memory', None),
    ('configure_cpu_devices', 32, None, None),
    ('enable', 'cache'),
    ('check_platform',),
    ('keep_freed_memory', 32 * 16 * 16 * 8 * 4),
    ('configure_cpu_devices', 32, 16, None),
    ('enable', 'cache'),
    ('check_platform',),
    ('keep_freed_memory', 32 * 8 * 8 * 8 * 4),
    ('configure_cpu_devices', 32, 8, None),
    ('enable', 'cache'),
    ('check_platform',),
  ]


def test_jax_starts_on_a_gpu_while_the_data_are_read(calls, tiny_config, monkeypatch):
  started = threading.Event()
  main = threading.get_ident()

  def start() -> None:
    if threading.get_ident() != main:
      started.set()

  monkeypatch.setattr(devices, 'check_platform', start)
  process.configure(tiny_config)
  assert not started.is_set()
  monkeypatch.setattr(devices, 'available_gpus', lambda: ['0'])
  process.configure(tiny_config)
  assert started.wait(10)


def test_an_invalid_configuration_is_refused_before_anything_is_set(calls, tiny_config):
  tiny_config.search_space.filters = ()
  with pytest.raises(UserError, match='filters'):
    process.configure(tiny_config)
  assert calls == []
