"""What a compiled program does: operations, bytes, messages between chips.

XLA's own analysis counts the body of a loop once. Here it counts as often as
it runs. A loop that data end (sampling) runs as often as the caller says.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from distil_jax.planning import hlo, hlo_collectives, hlo_flops, hlo_loops

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)

# How groups of partitions are written: see `group_of`.
_RANGE = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_MESH = re.compile(
  r"mesh\[([^\]]*)\](?:, device_ids=\(" + _RANGE + r"\))? ?\{([^}]*)\}"
)


@dataclasses.dataclass(frozen=True)
class Route:
  """Messages of one kind among the same chips.

  Attributes:
    kind: one of `KINDS`.
    group: numbers of the partitions of one group; a permutation's first pair.
  """

  kind: str
  group: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Messages:
  """How many, and the bytes of all of them on each chip: of the whole array
  where a part is gathered or scattered."""

  count: float = 0.0
  num_bytes: float = 0.0

  def __add__(self, other: "Messages") -> "Messages":
    return Messages(self.count + other.count, self.num_bytes + other.num_bytes)


@dataclasses.dataclass(frozen=True)
class Costs:
  """Of one chip.

  Attributes:
    flops: of products.
    num_bytes: read from and written to the chip's memory.
    messages: by their route.
    open_loops: names of the loops that data end.
    unknown_kernels: names of those whose operations are not counted.
  """

  flops: float = 0.0
  num_bytes: float = 0.0
  messages: Mapping[Route, Messages] = dataclasses.field(default_factory=dict)
  open_loops: frozenset[str] = frozenset()
  unknown_kernels: frozenset[str] = frozenset()

  def __add__(self, other: "Costs") -> "Costs":
    messages = dict(self.messages)
    for route, found in other.messages.items():
      messages[route] = messages.get(route, Messages()) + found
    return Costs(
      self.flops + other.flops,
      self.num_bytes + other.num_bytes,
      messages,
      self.open_loops | other.open_loops,
      self.unknown_kernels | other.unknown_kernels,
    )

  def times(self, count: float) -> "Costs":
    """So often."""
    return dataclasses.replace(
      self,
      flops=self.flops * count,
      num_bytes=self.num_bytes * count,
      messages={
        route: Messages(m.count * count, m.num_bytes * count)
        for route, m in self.messages.items()
      },
    )

  def by_kind(self) -> dict[str, Messages]:
    """Messages of each kind that there is."""
    found: dict[str, Messages] = {}
    for route, messages in self.messages.items():
      found[route.kind] = found.get(route.kind, Messages()) + messages
    return found


def of_text(text: str, *, open_trips: int = 1) -> Costs:
  """What running a program once costs a chip.

  Args:
    text: of the compiled program, from `compiled.as_text()`.
    open_trips: how often a loop runs that data end. Inside another such loop
      it runs once.
  """
  return _Counter(hlo.parse(text), open_trips).whole()


class _Counter:
  """Costs of computations, each found once."""

  def __init__(self, module: hlo.Module, open_trips: int):
    self._module = module
    self._computations = module.computations
    self._open_trips = open_trips
    self._found: dict[tuple[str, bool], Costs] = {}

  def whole(self) -> Costs:
    return self._of(self._module.entry, False)

  def _of(self, name: str, is_in_open_loop: bool) -> Costs:
    key = (name, is_in_open_loop)
    if key not in self._found:
      computation = self._computations[name]
      parts = (
        self._of_instruction(computation, x, is_in_open_loop)
        for x in computation.instructions.values()
      )
      self._found[key] = sum(parts, Costs())
    return self._found[key]

  def _of_instruction(self, computation, instruction, is_in_open_loop) -> Costs:
    opcode = instruction.opcode
    called = [n for n in instruction.called if n in self._computations]
    if opcode == "while":
      return self._loop(computation, instruction, called, is_in_open_loop)
    if opcode == "conditional":
      branches = [self._of(name, is_in_open_loop) for name in called]
      return max(branches, key=lambda c: (c.flops, c.num_bytes))
    if opcode in ("call", "async-start"):
      return sum((self._of(n, is_in_open_loop) for n in called), Costs())
    own = Costs(num_bytes=self._bytes(computation, instruction))
    if opcode == "fusion":
      # What is fused reads and writes no memory in between.
      inside = (self._of(name, is_in_open_loop) for name in called)
      return sum((dataclasses.replace(c, num_bytes=0.0) for c in inside), own)
    return own + _computing(computation, instruction)

  def _loop(self, computation, instruction, called, is_in_open_loop) -> Costs:
    trips = hlo_loops.trip_count(self._module, computation, instruction)
    is_open = trips is None
    if is_open:
      trips = 1 if is_in_open_loop else self._open_trips
    once = sum(
      (self._of(name, is_in_open_loop or is_open) for name in called), Costs()
    )
    names = frozenset([instruction.name] if is_open else ())
    return once.times(trips) + Costs(open_loops=names)

  def _bytes(self, computation, instruction) -> float:
    fused = next(
      (
        self._computations[name]
        for name in instruction.called
        if instruction.opcode == "fusion" and name in self._computations
      ),
      None,
    )
    return hlo_collectives.num_bytes(computation, instruction, fused)


def _computing(computation, instruction) -> Costs:
  """Operations and messages of an instruction that calls nothing."""
  opcode = instruction.opcode
  kind = opcode.removesuffix("-start")
  if kind in KINDS:
    return _messages(kind, computation, instruction)
  found = hlo_flops.flops(computation, instruction)
  if found is None:
    return Costs(unknown_kernels=frozenset([instruction.name]))
  return Costs(flops=found)


def _messages(kind: str, computation, instruction) -> Costs:
  """A collective; `-start` has what it reads in what it makes as well."""
  read = sum(
    x.num_bytes for xs in computation.arrays_of(instruction) for x in xs
  )
  made = sum(x.num_bytes for x in instruction.arrays)
  if instruction.opcode.endswith("-start") and made > read:
    made -= read
  whole = made if kind == "all-gather" else read
  if kind == "all-reduce" and _is_scattered(computation, instruction):
    kind = "reduce-scatter"
  route = Route(kind, group_of(instruction))
  return Costs(messages={route: Messages(1.0, float(whole))})


def _is_scattered(computation, instruction) -> bool:
  """Whether each chip keeps a part alone: how TPUs write a reduce-scatter."""
  users = computation.users.get(instruction.name, [])
  return "all-reduce-scatter" in computation.name or (
    len(users) == 1 and "reduce-scatter" in users[0].name
  )


def group_of(instruction: hlo.Instruction) -> tuple[int, ...]:
  """One group of partitions that exchange messages; (): all of them.

  XLA writes all groups, `{{0,1},{2,3}}`, or how to make them from a range,
  `[2,2]<=[2,2]T(1,0)`, or axes of a mesh, `mesh['a'=2,'b'=2] {'b'}`.
  """
  pairs = instruction.attribute("source_target_pairs")
  if pairs:
    return tuple(map(int, re.findall(r"\d+", pairs)[:2]))
  value = instruction.text.partition("replica_groups=")[2]
  if iota := re.match(r"\[([\d,]+)\]<=" + _RANGE, value):
    shape = tuple(map(int, iota[1].split(",")))
    return tuple(map(int, _range(iota[2], iota[3]).reshape(shape)[0]))
  if axes := _MESH.match(value):
    return _along(*axes.groups())
  first = re.match(r"\{+([\d, ]+)\}", value)
  return tuple(map(int, first[1].split(","))) if first else ()


def _range(sizes: str, order: str | None) -> np.ndarray:
  """Numbers from 0, in an array whose axes are then put in another order."""
  shape = tuple(map(int, sizes.split(",")))
  axes = [int(axis) for axis in order.split(",")] if order else None
  return np.transpose(np.arange(math.prod(shape)).reshape(shape), axes)


def _along(
  mesh: str, sizes: str | None, order: str | None, axes: str
) -> tuple[int, ...]:
  """Partitions along some axes of a mesh, or along parts of axes.

  Args:
    mesh: `'a'=2,'b'=4`.
    sizes, order: of the range that the partitions are in; None: as they come.
    axes: `'a','b':(2)2`, which is the second half of b.
  """
  shape = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", mesh)}
  chosen = {
    name: (int(before or 1), int(size or shape[name]))
    for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)
  }
  split, index = [], []
  for name, whole in shape.items():
    before, size = chosen.get(name, (whole, 1))
    split += [before, size, whole // (before * size)]
    index += [0, slice(None), 0]
  flat = np.arange(math.prod(split)) if sizes is None else _range(sizes, order)
  return tuple(map(int, flat.reshape(split)[tuple(index)].ravel()))
