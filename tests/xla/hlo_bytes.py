"""Counts the bytes that an optimised XLA program moves."""

from collections.abc import Iterator
import math
import re
from typing import NamedTuple

_BYTES = {'pred': 1, 'u8': 1, 's8': 1, 'bf16': 2, 'f16': 2}
_BYTES |= {'s32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8}
# No kernels.
_FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'}
_PARTIAL = {'slice', 'dynamic-slice', 'gather'}


class _Instruction(NamedTuple):
  name: str
  type: str
  operation: str
  arguments: str
  attributes: str

  @property
  def operands(self) -> list[str]:
    return re.findall(r'%([\w.\-]+)', self.arguments)


def bytes_moved(hlo: str) -> int:
  """Returns the bytes that a program's kernels read and write.

  An operand of which a kernel reads slices alone counts as these.

  Args:
    hlo: The program's text after optimisation.
  """
  total = 0
  entry = list(_instructions(hlo, 'ENTRY'))
  types = {instruction.name: instruction.type for instruction in entry}
  for instruction in entry:
    if instruction.operation in _FREE:
      continue
    read = [_size(types[name]) for name in instruction.operands]
    if match := re.search(r'calls=%([\w.\-]+)', instruction.attributes):
      for index, size in _sliced(list(_instructions(hlo, f'%{match[1]} '))):
        read[index] = size
    total += _size(instruction.type) + sum(read)
  return total


def _sliced(kernel: list[_Instruction]) -> Iterator[tuple[int, int]]:
  """Yields index and bytes of the operands of which a kernel reads slices alone."""
  for parameter in kernel:
    if parameter.operation == 'parameter':
      users = [user for user in kernel if parameter.name in user.operands]
      if users and all(user.operation in _PARTIAL for user in users):
        yield int(parameter.arguments), sum(_size(user.type) for user in users)


def _instructions(hlo: str, start: str) -> Iterator[_Instruction]:
  """Yields the instructions of the computation whose first line starts like that."""
  lines = iter(hlo.splitlines())
  for line in lines:
    if line.startswith(start):
      break
  for line in lines:
    if line.startswith('}'):
      return
    pattern = r'\s*(?:ROOT )?%(\S+) = (.*?) ([a-z\-]+)\((.*?)\)(.*)$'
    if match := re.match(pattern, line):
      yield _Instruction(*match.groups())


def _size(hlo_type: str) -> int:
  """Returns the bytes of an array, or of all arrays of a tuple."""
  return sum(
    _BYTES[dtype] * math.prod(map(int, filter(None, shape.split(','))))
    for dtype, shape in re.findall(r'\b([a-z]+\d*)\[([\d,]*)\]', hlo_type)
  )
