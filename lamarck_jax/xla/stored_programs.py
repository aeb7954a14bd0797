"""Compiled programs on disk, found without tracing.

JAX's persistent cache finds a program by its HLO, for which each process traces the
block again; that takes Python longer than it takes XLA to load the program. Here a
block's programs are found by what they are made from: the block, what it gets, this
package's sources, and whatever else JAX's own key depends on.
"""

from collections.abc import Callable, Sequence
import contextlib
import functools
import hashlib
import importlib.metadata
import pathlib
import pickle
import re
from typing import Any, Protocol
import zlib

import flax
import jax
from jax import stages
from jax.experimental import serialize_executable

import lamarck_jax
from lamarck_jax.xla import compiler, sharding

# In the names of JAX's options that change no program; some change within a run.
_OTHER_OPTIONS = re.compile('async_dispatch|cache|log|traceback')


class Storage(Protocol):
  """Where the programs are kept; they are executed, so whoever writes it is trusted."""

  def get(self, key: str) -> bytes | None:
    """Returns what was put under a key; None if there is nothing as it was put."""

  def put(self, key: str, value: bytes) -> None:
    """Adds an entry, or replaces it."""

  def is_loaded(self) -> None:
    """Notes that the program that this thread got last is loaded."""

  def hidden(self) -> contextlib.AbstractContextManager[None]:
    """Hides all programs from JAX in this thread."""

  def requested_key(self, function: Callable[[], Any]) -> str | None:
    """Returns the last key that JAX asks for while a function runs; None if none."""


class StoredPrograms:
  """Programs of blocks and heads in a storage."""

  def __init__(self, storage: Storage):
    """Takes the storage."""
    self._storage = storage

  def load(self, *made_from: Any, inputs: Any) -> list[stages.Compiled] | None:
    """Returns the programs of a block or a head, or None if they are not stored.

    Args:
      *made_from: What identifies them beside `inputs`, by its `repr`.
      inputs: Shapes, dtypes and shardings of what the block gets.
    """
    if (key := self._key(made_from, inputs)) is None:
      return None
    if (content := self._storage.get(key)) is None:
      return None
    try:
      # Pickles are code, and so are programs: only from a folder of the user's own.
      programs = [
        _unpacked(packed, inputs) for packed in pickle.loads(zlib.decompress(content))
      ]
    except Exception:
      # Whatever is wrong with it, it is compiled, and replaced.
      return None
    self._storage.is_loaded()
    return programs

  def save(
    self,
    *made_from: Any,
    inputs: Any,
    programs: Sequence[stages.Compiled],
  ) -> None:
    """Stores programs, if this platform's can be; arguments as in `load`."""
    if (key := self._key(made_from, inputs)) is None:
      return
    try:
      content = pickle.dumps([_packed(program, inputs) for program in programs])
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError):
      return  # The platform cannot serialise it; the next process compiles it again.
    self._storage.put(key, zlib.compress(content, 1))

  def compile(
    self, program: stages.Lowered, options: compiler.Options | None
  ) -> stages.Compiled:
    """Returns a compiled program that can be saved.

    On a CPU, XLA serialises a program that it has loaded without its functions, so that
    it fails when it is executed (jaxlib 0.10). Hence none of these may come from JAX's
    cache; nor need it keep them a second time.
    """
    with self._storage.hidden():
      return program.compile(options)

  def _key(self, made_from: tuple[Any, ...], inputs: Any) -> str | None:
    if self._environment is None:
      return None
    devices = [
      (device.id, device.device_kind)
      for device in sharding.mesh_of(inputs).devices.flat
    ]
    parts = repr((self._environment, made_from, inputs, devices))
    return f'lamarck_jax-{hashlib.sha256(parts.encode()).hexdigest()}'

  @functools.cached_property
  def _environment(self) -> str | None:
    """What all programs depend on; None where JAX has no cache."""
    # JAX's key of a program has the versions of XLA and of the platform, its flags and
    # the devices. This program is traced and compiled anew for every call.
    key = self._storage.requested_key(lambda: jax.jit(lambda: 0).lower().compile())
    if key is None:
      return None
    versions = jax.__version__, flax.__version__, importlib.metadata.version('optax')
    options = {
      name: value
      for name, value in jax.config.values.items()
      if not _OTHER_OPTIONS.search(name)
    }
    return repr((key, versions, sorted(options.items()), _digest_of_sources()))


@functools.cache
def _digest_of_sources() -> str:
  """Returns a digest of this package's sources, any of which may change a program."""
  digest = hashlib.sha256()
  for path in sorted(pathlib.Path(lamarck_jax.__file__).parent.rglob('*.py')):
    digest.update(b'%b\0' % path.name.encode() + path.read_bytes())
  return digest.hexdigest()


# At import, since later the files may be newer than the code that was imported.
_digest_of_sources()


def _packed(program: stages.Compiled, inputs: Any) -> tuple[bytes, Any, Any]:
  """Returns a program with the trees of its arguments and outputs, to be pickled.

  A class of `inputs` that is known to JAX alone cannot be pickled in a tree, so a mark
  stands for it.
  """
  serialized, _, outputs = serialize_executable.serialize(program)

  def is_inputs(node: Any) -> bool:
    return isinstance(node, type(inputs))

  arguments = jax.tree.map(is_inputs, program.args_info, is_leaf=is_inputs)
  return serialized, arguments, jax.tree.unflatten(outputs, [0] * outputs.num_leaves)


def _unpacked(packed: tuple[bytes, Any, Any], inputs: Any) -> stages.Compiled:
  """Returns the program that `_packed` got; raises what its loading raises."""
  serialized, arguments, outputs = packed
  arguments = jax.tree.map(lambda mark: inputs if mark else 0, arguments)
  devices = list(sharding.mesh_of(inputs).devices.flat)
  return serialize_executable.deserialize_and_load(
    serialized,
    jax.tree.structure(arguments),
    jax.tree.structure(outputs),
    backend=devices[0].client,
    execution_devices=devices,
  )
