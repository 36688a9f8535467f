"""Parses the text of a compiled program into instructions.

XLA prints a program as computations with one instruction per line:

  %dot.3 = f32[8,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, ...

Only what is needed to count costs is kept.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping

_BITS = {
  "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16,
  "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64, "f16": 16, "bf16": 16,
  "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<= ]*)\](\{[^{}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ?([a-z][a-z0-9\-]*)\(")
_NUMBERED = ("parameter", "constant")
_PARENS = re.compile(r"[()]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
  r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)"
  r"=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Array:
  """Holds type and shape of an array.

  Attributes:
    dtype: Type as XLA writes it.
    shape: Sizes of the axes.
    space: Memory space. 0 is the chip's main memory; others are small and on
      the chip.
  """

  dtype: str
  shape: tuple[int, ...]
  space: int = 0

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def num_bytes(self) -> int:
    bits = _BITS.get(self.dtype)
    if bits is None:  # 8-bit floats have many names; a token has no size
      bits = 8 if self.dtype.startswith("f8") else 0
    # Entries of less than a byte are packed.
    return -(-self.size * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """Describes one operation.

  Attributes:
    name: Name that is unique in its computation.
    opcode: Kind of operation.
    arrays: Results; several for a tuple.
    operands: Names of the instructions that it reads.
    text: Attributes, which follow the operands.
    is_root: True if the computation returns its result.
    number: Index of a parameter, or value of an integer constant.
  """

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  text: str
  is_root: bool
  number: int | None = None

  @functools.cached_property
  def called(self) -> tuple[str, ...]:
    """Returns the names of the computations that it runs."""
    found = _CALLED.findall(self.text)
    for names in _BRANCHES.findall(self.text):
      found += [name.strip().lstrip("%") for name in names.split(",")]
    return tuple(found)

  @property
  def trip_count(self) -> int | None:
    """Returns the trips of a loop, if the compiler has written them down."""
    match = _TRIPS.search(self.text)
    return int(match[1]) if match else None

  @property
  def tuple_index(self) -> int:
    """Returns the index of an element of a tuple."""
    return int(self.attribute("index") or 0)

  def attribute_name(self, name: str) -> str:
    """Returns the computation of an attribute `name=%computation`."""
    return (self.attribute(name) or "").lstrip("%")

  def attribute(self, name: str) -> str | None:
    """Returns the value of `name=value` with its braces, or None."""
    match = re.search(rf"\b{name}=", self.text)
    if not match:
      return None
    rest = self.text[match.end() :]
    # What stands in braces may have commas; other values end at the next one.
    if rest.startswith("{"):
      return rest[: _end_of_braces(rest)]
    return re.split(r",\s|$", rest, maxsplit=1)[0]

  def sizes(self, name: str) -> tuple[int, ...]:
    """Returns the numbers of `name={0,1}`; none if it is missing."""
    value = self.attribute(name) or ""
    return tuple(map(int, re.findall(r"\d+", value)))


@dataclasses.dataclass(frozen=True)
class Computation:
  """Holds instructions in their order, by name."""

  name: str
  instructions: Mapping[str, Instruction]

  def arrays_of(self, instruction: Instruction) -> list[tuple[Array, ...]]:
    """Returns the arrays of each operand; several for a tuple."""
    return [
      self.instructions[name].arrays
      for name in instruction.operands
      if name in self.instructions
    ]

  @functools.cached_property
  def users(self) -> Mapping[str, list[Instruction]]:
    """Returns the instructions that read each instruction."""
    found: dict[str, list[Instruction]] = {}
    for instruction in self.instructions.values():
      # An instruction may read the same value twice.
      for name in set(instruction.operands):
        found.setdefault(name, []).append(instruction)
    return found

  @property
  def root(self) -> Instruction:
    return next(
      (x for x in self.instructions.values() if x.is_root),
      list(self.instructions.values())[-1],
    )


@dataclasses.dataclass(frozen=True)
class Module:
  """Holds a program.

  Attributes:
    computations: Computations by name.
    entry: Name of the computation at which the program starts.
  """

  computations: Mapping[str, Computation]
  entry: str


def parse(text: str) -> Module:
  """Parses what `compiled.as_text()` returns.

  Raises:
    ValueError: The text has no ENTRY computation.
  """
  computations: dict[str, Computation] = {}
  entry = ""
  name, instructions = "", {}
  for line in text.splitlines():
    # At the margin stand heads and ends of computations, and the module.
    if not line.startswith((" ", "\t")):
      head = _HEAD.match(line)
      if head and not line.startswith("HloModule"):
        name, instructions = head[2], {}
        # The dictionary in it is filled by the lines that follow.
        computations[name] = Computation(name, instructions)
        entry = name if head[1] else entry
      continue
    found = _instruction(line)
    if found:
      instructions[found.name] = found
  if not entry:
    raise ValueError("no ENTRY computation in the text of the program")
  return Module(computations, entry)


def arrays(text: str) -> tuple[Array, ...]:
  """Returns the arrays of a type; those of nested tuples in one row."""
  return tuple(_arrays(_ARRAY.finditer(text)))


def _arrays(matches: Iterable[re.Match[str]]) -> Iterable[Array]:
  for match in matches:
    dtype, sizes, layout = match.groups()
    shape = tuple(int(n) for n in re.findall(r"\d+", sizes))
    space = _SPACE.search(layout or "")
    yield Array(dtype, shape, int(space[1]) if space else 0)


def _instruction(line: str) -> Instruction | None:
  head = _LINE.match(line)
  if not head:
    return None
  start = head.end()
  end = _end_of_type(line, start)
  opcode = _OPCODE.match(line, end)
  if not opcode:
    return None
  close = _end_of_parens(line, opcode.end() - 1)
  inside = line[opcode.end() : close]
  return Instruction(
    name=head[2],
    opcode=opcode[1],
    arrays=arrays(line[start:end]),
    # Some versions print the types of operands too, so names are found by sign.
    operands=tuple(_NAME.findall(inside)),
    text=line[close + 1 :],
    is_root=bool(head[1]),
    number=_number(opcode[1], inside),
  )


def _number(opcode: str, inside: str) -> int | None:
  # Arrays are constants too, and stand in the same place.
  is_whole = re.fullmatch(r"-?\d+", inside)
  return int(inside) if is_whole and opcode in _NUMBERED else None


def _end_of_type(line: str, start: int) -> int:
  if line[start] == "(":
    return _end_of_parens(line, start) + 1
  # Neither the type of an array nor its layout contains a space.
  return line.find(" ", start)


def _end_of_parens(line: str, start: int) -> int:
  """Returns the position that closes the parenthesis at `start`."""
  depth = 0
  for match in _PARENS.finditer(line, start):
    depth += 1 if match[0] == "(" else -1
    if depth == 0:
      return match.start()
  return len(line)


def _end_of_braces(text: str) -> int:
  depth = 0
  for match in re.finditer(r"[{}]", text):
    depth += 1 if match[0] == "{" else -1
    if depth == 0:
      return match.end()
  return len(text)
