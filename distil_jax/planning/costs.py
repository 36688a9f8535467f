"""Counts the operations, bytes and messages of a compiled program.

XLA's own analysis counts the body of a loop once. Here it is counted as often
as it runs. For a loop whose end depends on data (sampling), the caller gives
the number of its trips.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from distil_jax.planning import hlo, hlo_bytes, hlo_flops, hlo_loops

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)

# Notations of groups of partitions, see `group_of`.
_RANGE = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_MESH = re.compile(
  r"mesh\[([^\]]*)\](?:, device_ids=\(" + _RANGE + r"\))? ?\{([^}]*)\}"
)


@dataclasses.dataclass(frozen=True)
class Route:
  """Identifies messages of one kind between the same chips.

  Attributes:
    kind: One of `KINDS`.
    group: Partitions of one group; for a permutation its first pair.
  """

  kind: str
  group: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Messages:
  """Holds number and total bytes of messages on each chip.

  For a gather or scatter, the bytes are those of the whole array.
  """

  count: float = 0.0
  num_bytes: float = 0.0

  def __add__(self, other: "Messages") -> "Messages":
    return Messages(self.count + other.count, self.num_bytes + other.num_bytes)


@dataclasses.dataclass(frozen=True)
class Costs:
  """Holds the costs of a program on one chip.

  Attributes:
    flops: Operations of matrix products.
    num_bytes: Bytes read from and written to the chip's memory.
    messages: Messages by their route.
    open_loops: Names of loops whose end depends on data.
    unknown_kernels: Names of kernels whose operations are not counted.
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
    """Returns the costs of running the program several times."""
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
    """Returns the messages of each kind."""
    found: dict[str, Messages] = {}
    for route, messages in self.messages.items():
      found[route.kind] = found.get(route.kind, Messages()) + messages
    return found


def count_costs(text: str, *, open_trips: int = 1) -> Costs:
  """Returns what one run of a program costs a chip.

  Args:
    text: The compiled program, from `compiled.as_text()`.
    open_trips: Number of trips of a loop whose end depends on data. Such a loop
      inside another one is counted once.
  """
  return _Counter(hlo.parse(text), open_trips).count()


class _Counter:
  """Counts the costs of computations, each of them once."""

  def __init__(self, module: hlo.Module, open_trips: int):
    self._module = module
    self._computations = module.computations
    self._open_trips = open_trips
    self._costs: dict[tuple[str, bool], Costs] = {}

  def count(self) -> Costs:
    return self._computation(self._module.entry, False)

  def _computation(self, name: str, is_in_open_loop: bool) -> Costs:
    # Within an open loop the same computation costs less, because open loops in
    # it are counted once.
    key = (name, is_in_open_loop)
    if key not in self._costs:
      computation = self._computations[name]
      parts = (
        self._instruction(computation, x, is_in_open_loop)
        for x in computation.instructions.values()
      )
      self._costs[key] = sum(parts, Costs())
    return self._costs[key]

  def _instruction(self, computation, instruction, is_in_open_loop) -> Costs:
    opcode = instruction.opcode
    called = [n for n in instruction.called if n in self._computations]
    if opcode == "while":
      return self._loop(computation, instruction, called, is_in_open_loop)
    if opcode == "conditional":
      branches = [self._computation(name, is_in_open_loop) for name in called]
      # Data decide which branch runs, so the dearest is counted.
      return max(branches, key=lambda c: (c.flops, c.num_bytes))
    if opcode in ("call", "async-start"):
      return sum(
        (self._computation(n, is_in_open_loop) for n in called), Costs()
      )
    own = Costs(num_bytes=self._bytes(computation, instruction))
    if opcode == "fusion":
      # Inside a fusion nothing is read from or written to memory.
      inside = (self._computation(name, is_in_open_loop) for name in called)
      return sum((dataclasses.replace(c, num_bytes=0.0) for c in inside), own)
    return own + _own_costs(computation, instruction)

  def _loop(self, computation, instruction, called, is_in_open_loop) -> Costs:
    trips = hlo_loops.trip_count(self._module, computation, instruction)
    is_open = trips is None
    if is_open:
      trips = 1 if is_in_open_loop else self._open_trips
    once = sum(
      (self._computation(name, is_in_open_loop or is_open) for name in called),
      Costs(),
    )
    # The caller learns which loops rest on its number of trips.
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
    return hlo_bytes.num_bytes(computation, instruction, fused)


def _own_costs(computation, instruction) -> Costs:
  """Returns operations or messages of an instruction that calls nothing."""
  opcode = instruction.opcode
  kind = opcode.removesuffix("-start")
  if kind in KINDS:
    return _messages(kind, computation, instruction)
  found = hlo_flops.flops(computation, instruction)
  if found is None:
    return Costs(unknown_kernels=frozenset([instruction.name]))
  return Costs(flops=found)


def _messages(kind: str, computation, instruction) -> Costs:
  """Returns the messages of a collective."""
  read = sum(
    x.num_bytes for xs in computation.arrays_of(instruction) for x in xs
  )
  made = sum(x.num_bytes for x in instruction.arrays)
  # The result of an asynchronous start holds the operand as well.
  if instruction.opcode.endswith("-start") and made > read:
    made -= read
  # The whole array is the result of a gather, and the operand of the others.
  whole = made if kind == "all-gather" else read
  if kind == "all-reduce" and _is_scattered(computation, instruction):
    kind = "reduce-scatter"
  route = Route(kind, group_of(instruction))
  return Costs(messages={route: Messages(1.0, float(whole))})


def _is_scattered(computation, instruction) -> bool:
  """Returns True if each chip keeps only a part of an all-reduce.

  The compiler for TPUs writes a reduce-scatter in this way.
  """
  users = computation.users.get(instruction.name, [])
  return "all-reduce-scatter" in computation.name or (
    len(users) == 1 and "reduce-scatter" in users[0].name
  )


def group_of(instruction: hlo.Instruction) -> tuple[int, ...]:
  """Returns one group of partitions that exchange messages.

  XLA writes all groups, `{{0,1},{2,3}}`, or a reshaped and transposed range,
  `[2,2]<=[2,2]T(1,0)`, or axes of a mesh, `mesh['a'=2,'b'=2] {'b'}`.

  Returns:
    Numbers of the partitions; empty for all partitions.
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
  """Returns a range from 0, reshaped and then transposed."""
  shape = tuple(map(int, sizes.split(",")))
  axes = [int(axis) for axis in order.split(",")] if order else None
  return np.transpose(np.arange(math.prod(shape)).reshape(shape), axes)


def _along(
  mesh: str, sizes: str | None, order: str | None, axes: str
) -> tuple[int, ...]:
  """Returns the partitions along some axes of a mesh, or parts of axes.

  Args:
    mesh: Sizes of all axes, such as `'a'=2,'b'=4`.
    sizes, order: Shape and transposition of the range that numbers the
      partitions. None means in their order.
    axes: Axes of the group, such as `'a','b':(2)2`. The latter is an axis of
      size 2 that is the inner factor of b.
  """
  shape = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", mesh)}
  chosen = {
    name: (int(before or 1), int(size or shape[name]))
    for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)
  }
  # Each axis is split into factors before, inside and after the group's part.
  # Only the one inside is kept; index 0 of the others gives the first group.
  split, index = [], []
  for name, whole in shape.items():
    before, size = chosen.get(name, (whole, 1))
    split += [before, size, whole // (before * size)]
    index += [0, slice(None), 0]
  flat = np.arange(math.prod(split)) if sizes is None else _range(sizes, order)
  return tuple(map(int, flat.reshape(split)[tuple(index)].ravel()))
