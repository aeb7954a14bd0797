"""What can happen to a file, to be tried on every file that a program reads.

Each function takes the file, and another one of its kind.
"""

from collections.abc import Callable
import contextlib
import copy
import json
import os
import pathlib
import shutil
from typing import Any

from hypothesis import strategies as st

from lamarck_jax.run_directory import digests

Damage = Callable[[pathlib.Path, pathlib.Path], object]


def empty(path: pathlib.Path, other: pathlib.Path) -> None:
  path.write_bytes(b'')


def truncate(path: pathlib.Path, other: pathlib.Path) -> None:
  os.truncate(path, path.stat().st_size // 2)


def flip(path: pathlib.Path, other: pathlib.Path) -> None:
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(content)


def exchange(path: pathlib.Path, other: pathlib.Path) -> None:
  shutil.copyfile(other, path)


def wrong_form(path: pathlib.Path, other: pathlib.Path) -> None:
  path.write_text('{}')


def array(path: pathlib.Path, other: pathlib.Path) -> None:
  path.write_text('[]')


def null(path: pathlib.Path, other: pathlib.Path) -> None:
  path.write_text('null\n')


def nesting(path: pathlib.Path, other: pathlib.Path) -> None:
  path.write_text('[' * 100_000)


def text_for_number(path: pathlib.Path, other: pathlib.Path) -> None:
  """Replaces the last number of the first JSON object; it may have no other damage."""
  _edit(path, lambda value: _with_text(value)[0])


def unknown_field(path: pathlib.Path, other: pathlib.Path) -> None:
  """Adds a field to the first JSON object, and to those right inside it."""
  more = {'unknown': {'field': 1}}
  _edit(
    path,
    lambda value: {
      **{k: {**v, **more} if isinstance(v, dict) else v for k, v in value.items()},
      **more,
    },
  )


def pipe(path: pathlib.Path, other: pathlib.Path) -> None:
  path.unlink()
  os.mkfifo(path)


def directory(path: pathlib.Path, other: pathlib.Path) -> None:
  path.unlink()
  path.mkdir()


def dangling_link(path: pathlib.Path, other: pathlib.Path) -> None:
  path.unlink()
  path.symlink_to('nowhere')


def link_to_itself(path: pathlib.Path, other: pathlib.Path) -> None:
  path.unlink()
  path.symlink_to(path.name)


def link_to_zeros(path: pathlib.Path, other: pathlib.Path) -> None:
  path.unlink()
  path.symlink_to('/dev/zero')


ALL: tuple[Damage, ...] = (
  empty,
  truncate,
  flip,
  exchange,
  wrong_form,
  array,
  null,
  nesting,
  text_for_number,
  unknown_field,
  pipe,
  directory,
  dangling_link,
  link_to_itself,
  link_to_zeros,
)


def resealed(content: dict[str, Any]) -> dict[str, Any]:
  """Returns a JSON object with the digest that it should have, if it has one."""
  if digests.OWN not in content:
    return content
  return digests.sealed({k: v for k, v in content.items() if k != digests.OWN}, {})


def _edit(path: pathlib.Path, change: Callable[[dict[str, Any]], Any]) -> None:
  """Changes the first JSON object of a file; one of another kind becomes one."""
  text, value, end = '', None, 0
  with contextlib.suppress(UnicodeDecodeError, ValueError):
    text = path.read_text()
    value, end = json.JSONDecoder().raw_decode(text)
  if not isinstance(value, dict):
    value, end = {'number': 1}, len(text)
  path.write_text(json.dumps(change(value)) + text[end:])


def _with_text(value: Any) -> tuple[Any, bool]:
  """Returns a value whose last number has become a text, and whether it had one."""
  if isinstance(value, dict | list):
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in reversed(keys):
      value[key], found = _with_text(value[key])
      if found:
        return value, True
    return value, False
  is_number = type(value) in (int, float)
  return ('seven' if is_number else value), is_number


# ------------------------------------------------------------------------------
# Anything at all
# ------------------------------------------------------------------------------

JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.sampled_from([-1, 0, 1, 2**70, 10**400, 0.5, float('nan'), float('inf')])
  | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=6,
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
  """Returns the paths of all values inside a JSON value."""
  found = [path]
  if isinstance(value, dict | list):
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
      found += places(value[key], (*path, key))
  return found


@st.composite
def mutated(draw: st.DrawFn, original: dict[str, Any]) -> dict[str, Any]:
  """A JSON object of which a few values are others, or gone."""
  content = copy.deepcopy(original)
  for _ in range(draw(st.integers(1, 2))):
    places_inside = places(content)[1:]
    if not places_inside:
      break
    place = draw(st.sampled_from(places_inside))
    inside: Any = content
    for key in place[:-1]:
      inside = inside[key]
    if draw(st.booleans()):
      inside[place[-1]] = draw(JSON)
    else:
      del inside[place[-1]]
  return content
