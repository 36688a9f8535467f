"""Finds the number of trips of a loop.

Compilers for CPUs and GPUs write it down. The one for TPUs does not, so it is
derived from the loop: a counter is compared with a constant before each trip,
and another constant is added to it in the trip.
"""

from distil_jax.planning.hlo import Computation, Instruction, Module


def trip_count(
  module: Module, computation: Computation, loop: Instruction
) -> int | None:
  """Returns the number of trips of a loop; None if data decide.

  Args:
    module: The program.
    computation: The computation of the loop.
    loop: The instruction of the loop.
  """
  if loop.trip_count is not None:
    return loop.trip_count
  test = module.computations.get(loop.attribute_name("condition"))
  body = module.computations.get(loop.attribute_name("body"))
  if test is None or body is None:
    return None
  compared = _comparison(module, test)
  if compared is None:
    return None
  index, bound, direction = compared
  start = _at_start(computation, loop, index)
  last = bound if isinstance(bound, int) else None
  # The bound is carried by the loop, as in a loop whose end was an argument.
  if isinstance(bound, str):
    last = _at_start(computation, loop, int(bound))
  step = _step(module, body, index)
  if start is None or last is None or not step:
    return None
  if direction == "LE":
    last += 1
  # No other loop is known here: the caller reports it as one that data end.
  is_up = direction in ("LT", "LE") and step > 0
  return max(0, -(-(last - start) // step)) if is_up else None


def _comparison(
  module: Module, test: Computation
) -> tuple[int, int | str, str] | None:
  """Returns what the condition of a loop compares; None if it is unknown.

  Returns:
    The index of the carried element; the constant that it is compared with, or
    as text the index of another element; and the direction, such as `LT`.
  """
  root = test.root
  arguments: dict[int | None, str] = {}
  scope = test
  # The comparison may stand in a fusion, whose parameters stand for values
  # outside.
  if root.opcode == "fusion":
    (name,) = root.called
    arguments |= enumerate(root.operands)
    scope = module.computations[name]
    root = scope.root
  if root.opcode != "compare":
    return None

  def outside(name: str) -> Instruction:
    found = scope.instructions[name]
    is_argument = found.opcode == "parameter" and scope is not test
    return test.instructions[arguments[found.number]] if is_argument else found

  left, right = map(outside, root.operands)
  if left.opcode != "get-tuple-element":
    return None
  direction = root.attribute("direction") or ""
  index = left.tuple_index
  if right.opcode == "constant":
    return None if right.number is None else (index, right.number, direction)
  if right.opcode == "get-tuple-element":
    return index, str(right.tuple_index), direction
  return None


def _at_start(
  computation: Computation, loop: Instruction, index: int
) -> int | None:
  """Returns the initial value of an element; None if it is no constant."""
  carried = computation.instructions[loop.operands[0]]
  if carried.opcode != "tuple":
    return None
  return _constant(computation, carried.operands[index])


def _constant(computation: Computation, name: str) -> int | None:
  found = computation.instructions[name]
  while found.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
    found = computation.instructions[found.operands[0]]
  return found.number if found.opcode == "constant" else None


def _step(module: Module, body: Computation, index: int) -> int | None:
  """Returns what is added to an element per trip; None if it is unclear."""
  root = body.root
  if root.opcode != "tuple":
    return None
  scope, found = body, body.instructions[root.operands[index]]
  while found.opcode in ("copy", "bitcast"):
    found = body.instructions[found.operands[0]]
  if found.opcode == "fusion":
    scope = module.computations[found.called[0]]
    found = scope.root
  if found.opcode != "add":
    return None
  numbers = [_constant(scope, name) for name in found.operands]
  return next((number for number in numbers if number is not None), None)
