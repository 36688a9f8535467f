"""The text of a compiled program, read into instructions.

XLA prints a program as computations, one instruction a line:

  %dot.3 = f32[8,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, ...

Only what costs are counted from is kept.
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
  """Type and shape of an array.

  Attributes:
    dtype: as XLA writes it.
    shape: sizes of its axes.
    space: 0 is the memory of the chip; others are small and on it.
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
    if bits is None:  # eight-bit floats have many names; tokens have no size
      bits = 8 if self.dtype.startswith("f8") else 0
    return -(-self.size * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One operation.

  Attributes:
    name: unique in its computation.
    opcode: what it does.
    arrays: what it makes; several for a tuple.
    operands: names of what it reads.
    text: attributes, after the operands.
    is_root: whether it is what the computation returns.
    number: of a parameter: which one it is; of a whole constant: its value.
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
    """Names of the computations that it runs."""
    found = _CALLED.findall(self.text)
    for names in _BRANCHES.findall(self.text):
      found += [name.strip().lstrip("%") for name in names.split(",")]
    return tuple(found)

  @property
  def trip_count(self) -> int | None:
    """Of a loop: how often it runs; None where data decide."""
    match = _TRIPS.search(self.text)
    return int(match[1]) if match else None

  @property
  def tuple_index(self) -> int:
    """Of an element of a tuple: which one it is."""
    return int(self.attribute("index") or 0)

  def attribute_name(self, name: str) -> str:
    """The computation that `name=%computation` calls."""
    return (self.attribute(name) or "").lstrip("%")

  def attribute(self, name: str) -> str | None:
    """The value of `name=value`, braces and all; None: it has none."""
    match = re.search(rf"\b{name}=", self.text)
    if not match:
      return None
    rest = self.text[match.end() :]
    if rest.startswith("{"):
      return rest[: _end_of_braces(rest)]
    return re.split(r",\s|$", rest, maxsplit=1)[0]

  def sizes(self, name: str) -> tuple[int, ...]:
    """The value of `name={0,1}`; () where it has none."""
    value = self.attribute(name) or ""
    return tuple(map(int, re.findall(r"\d+", value)))


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions in their order, by name."""

  name: str
  instructions: Mapping[str, Instruction]

  def arrays_of(self, instruction: Instruction) -> list[tuple[Array, ...]]:
    """What each operand is; tuples of several arrays for tuples."""
    return [
      self.instructions[name].arrays
      for name in instruction.operands
      if name in self.instructions
    ]

  @functools.cached_property
  def users(self) -> Mapping[str, list[Instruction]]:
    """Who reads what."""
    found: dict[str, list[Instruction]] = {}
    for instruction in self.instructions.values():
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
  """A program.

  Attributes:
    computations: by name.
    entry: the name of the one that is run.
  """

  computations: Mapping[str, Computation]
  entry: str


def parse(text: str) -> Module:
  """Reads what `compiled.as_text()` prints.

  Raises:
    ValueError: there is no computation to begin with.
  """
  computations: dict[str, Computation] = {}
  entry = ""
  name, instructions = "", {}
  for line in text.splitlines():
    if not line.startswith((" ", "\t")):
      head = _HEAD.match(line)
      if head and not line.startswith("HloModule"):
        name, instructions = head[2], {}
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
  """The arrays of a type, flat."""
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
    operands=tuple(_NAME.findall(inside)),
    text=line[close + 1 :],
    is_root=bool(head[1]),
    number=_number(opcode[1], inside),
  )


def _number(opcode: str, inside: str) -> int | None:
  is_whole = re.fullmatch(r"-?\d+", inside)
  return int(inside) if is_whole and opcode in _NUMBERED else None


def _end_of_type(line: str, start: int) -> int:
  if line[start] == "(":
    return _end_of_parens(line, start) + 1
  # A layout has no space, and neither has an array's type.
  return line.find(" ", start)


def _end_of_parens(line: str, start: int) -> int:
  """Where the parenthesis that opens at `start` closes."""
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
