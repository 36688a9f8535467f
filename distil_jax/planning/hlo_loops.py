"""How often a loop runs.

Compilers for CPUs and GPUs write it down; that for TPUs does not. There it is
read off the loop: a counter, compared with a constant before each turn, and
raised by another in it.
"""

from distil_jax.planning.hlo import Computation, Instruction, Module


def trip_count(
  module: Module, computation: Computation, loop: Instruction
) -> int | None:
  """Of one loop; None where data decide.

  Args:
    module: the program.
    computation: where the loop stands.
    loop: its instruction.
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
  if isinstance(bound, str):
    last = _at_start(computation, loop, int(bound))
  step = _step(module, body, index)
  if start is None or last is None or not step:
    return None
  if direction == "LE":
    last += 1
  is_up = direction in ("LT", "LE") and step > 0
  return max(0, -(-(last - start) // step)) if is_up else None


def _comparison(
  module: Module, test: Computation
) -> tuple[int, int | str, str] | None:
  """Which element of what the loop carries is compared, and with what.

  With a constant, or with another element, whose index is text.
  """
  root = test.root
  arguments: dict[int | None, str] = {}
  where = test
  if root.opcode == "fusion":
    (name,) = root.called
    arguments |= enumerate(root.operands)
    where = module.computations[name]
    root = where.root
  if root.opcode != "compare":
    return None

  def outside(name: str) -> Instruction:
    found = where.instructions[name]
    is_argument = found.opcode == "parameter" and where is not test
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
  """A number that the loop begins with; None: it is not a constant."""
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
  """What is added to a number in each turn; None: something else is done."""
  root = body.root
  if root.opcode != "tuple":
    return None
  where, found = body, body.instructions[root.operands[index]]
  while found.opcode in ("copy", "bitcast"):
    found = body.instructions[found.operands[0]]
  if found.opcode == "fusion":
    where = module.computations[found.called[0]]
    found = where.root
  if found.opcode != "add":
    return None
  numbers = [_constant(where, name) for name in found.operands]
  return next((number for number in numbers if number is not None), None)
