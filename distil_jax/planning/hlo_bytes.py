"""Counts the bytes that an instruction moves to and from a chip's memory."""

from collections.abc import Iterable

from distil_jax.planning.hlo import Array, Computation, Instruction

# These only name a value, wait for one, or are counted by what they call.
_FREE = frozenset(
  (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "add-dependency",
    "domain",
    "while",
    "conditional",
    "call",
    "async-start",
  )
)
_SLICES = frozenset(("dynamic-slice", "slice", "gather"))
_VIEWS = frozenset(("bitcast", "get-tuple-element", "reshape", "copy"))


def num_bytes(
  computation: Computation, instruction: Instruction, fused: Computation | None
) -> float:
  """Returns the bytes that one instruction reads and writes.

  Args:
    computation: The computation of the instruction.
    instruction: The instruction.
    fused: The computation inside a fusion; None for other instructions.
  """
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith(("-done", "-update")):
    return 0.0
  operands = computation.arrays_of(instruction)
  made = _total(instruction.arrays)
  # Of the array that is sliced only the slice is read, and the same is written.
  if opcode in _SLICES:
    return 2 * made
  # Updated in place: the update is read and written, the rest stays as it is.
  if opcode == "dynamic-update-slice":
    return 2 * _total(operands[1])
  # The updates are read, and so are the places where they are added.
  if opcode == "scatter":
    return 3 * _total(operands[-1])
  if opcode.endswith("-start"):
    return made  # the result holds the operand as well
  if fused is not None:
    return _fusion(instruction, operands, fused)
  return made + sum(map(_total, operands))


def _fusion(instruction, operands, fused: Computation) -> float:
  """Returns the bytes of a fusion.

  If a fusion only slices a parameter, it reads just the slices.
  """
  parameters = {
    inner.number: inner
    for inner in fused.instructions.values()
    if inner.number is not None
  }
  total = 0.0
  for index, arrays in enumerate(operands):
    whole = _total(arrays)
    inner = parameters.get(index)
    # Slices may overlap, but no fusion reads more than the whole.
    total += whole if inner is None else min(whole, _read(fused, inner, whole))
  return total + _written(fused, fused.root, _total(instruction.arrays))


def _read(fused: Computation, value: Instruction, whole: float) -> float:
  """Returns the bytes that are read of a value inside a fusion."""
  total = 0.0
  for user in fused.users.get(value.name, []):
    if user.opcode in _SLICES and user.operands[0] == value.name:
      total += _bytes_anywhere(user.arrays)
    elif (
      user.opcode == "dynamic-update-slice" and user.operands[0] == value.name
    ):
      continue  # updated in place, so not read
    elif user.opcode in _VIEWS and not user.is_root:
      total += _read(fused, user, whole)
    else:
      return whole
  return total


def _written(fused: Computation, root: Instruction, whole: float) -> float:
  """Returns the bytes that a fusion writes.

  Of an array that is updated in place only the updated part is written.
  """
  if root.opcode == "dynamic-update-slice":
    return _bytes_anywhere(fused.instructions[root.operands[1]].arrays)
  if root.opcode == "bitcast":
    return _written(fused, fused.instructions[root.operands[0]], whole)
  if root.opcode == "tuple":
    parts = (fused.instructions[name] for name in root.operands)
    return min(
      whole,
      sum(_written(fused, x, _bytes_anywhere(x.arrays)) for x in parts),
    )
  return whole


def _total(arrays: Iterable[Array]) -> float:
  """Returns bytes in the chip's main memory; nearer memory costs nothing."""
  return float(sum(x.num_bytes for x in arrays if x.space == 0))


def _bytes_anywhere(arrays: Iterable[Array]) -> float:
  return float(sum(x.num_bytes for x in arrays))
