"""Writes and reads the steps of the calculator's problems."""

import itertools
import random
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_TOTAL = 99
MAX_OPERAND = 9
# One expression in ten belongs to the evaluation split, whatever the seed.
HELD_OUT_ONE_IN = 10
# Errors that a careless step makes, the smallest first.
SLIPS = (1, -1, 2, -2, 10, -10)
OPEN, CLOSE = "<answer>", "</answer>"
PROMPT = re.compile(r"Compute ([1-9]?[0-9])((?: [-+] [1-9][0-9]?)+)\.")
# At most nine digits: a longer number cannot be right, and `int` refuses to
# read thousands of digits.
STEP = re.compile(r"[0-9]{1,9} [-+] [0-9]{1,9} = -?[0-9]{1,9}")
INTEGER = re.compile(r"-?[0-9]{1,9}")
# An attempt is cut only between these pieces: a tokenizer that encodes each
# digit as a token has a boundary on both sides of it, whatever else it merges.
PIECE = re.compile(r"[0-9]|[^0-9]+")


def text_of(row: Mapping[str, Any], field: str) -> str:
  value = row.get(field)
  if not isinstance(value, str):
    raise ValueError(f"field {field!r} must be a string, got {value!r}")
  return value


def parse(prompt: str) -> tuple[int, list[int]]:
  """Returns the first number and the signed operands of a prompt."""
  match = PROMPT.fullmatch(prompt.strip())
  if not match:
    raise ValueError(
      f"prompt {prompt!r} must be of the form 'Compute 47 + 8 - 3.' with a "
      "first number in 0..99 and operands in 1..99"
    )
  terms = match[2].split()
  pairs = zip(terms[::2], terms[1::2], strict=True)
  return int(match[1]), [int(sign + number) for sign, number in pairs]


def draw_expression(rng: random.Random, num_steps: int) -> tuple[str, int]:
  """Draws an expression with totals in range; returns its last total too."""
  total = rng.randint(0, MAX_TOTAL)
  expression = str(total)
  for _ in range(num_steps):
    operand = rng.choice(
      [
        operand
        for operand in range(-MAX_OPERAND, MAX_OPERAND + 1)
        if operand and 0 <= total + operand <= MAX_TOTAL
      ]
    )
    expression += f" {signed(operand)}"
    total += operand
  return expression, total


def is_held_out(expression: str) -> bool:
  return zlib.crc32(expression.encode()) % HELD_OUT_ONE_IN == 0


def signed(operand: int) -> str:
  return f"{'-' if operand < 0 else '+'} {abs(operand)}"


def find_operands(totals: Sequence[int]) -> list[int]:
  return [after - before for before, after in itertools.pairwise(totals)]


def find_steps(totals: Sequence[int]) -> list[str]:
  return [
    f"{before} {signed(after - before)} = {after}"
    for before, after in itertools.pairwise(totals)
  ]


def answer_line(answer: int | str) -> str:
  return f"{OPEN}{answer}{CLOSE}"


def solve(totals: Sequence[int]) -> str:
  return "\n".join([*find_steps(totals), answer_line(totals[-1])])


def first_fault(
  written: Sequence[str], steps: Sequence[str], answer: str
) -> tuple[int, str]:
  """Returns the number of right steps before the first fault, and the fault."""
  pairs = itertools.zip_longest(written, steps)
  for num_right, (line, step) in enumerate(pairs):
    name = f"Step {num_right + 1}"
    if line is None:
      return num_right, f"{name} is missing: it should be {step}."
    if step is None:
      right = answer_line(answer)
      return num_right, f"{name} is extra: it should be {right}."
    if not STEP.fullmatch(line):
      return num_right, f"{name} cannot be read: it should be {step}."
    if line != step:
      return (
        num_right,
        f"{name} is wrong: you wrote {line}, it should be {step}.",
      )
  return len(steps), ""


def answer_fault(content: str | None, parsed: int | None, answer: str) -> str:
  right = answer_line(answer)
  if content is None:
    return f"The answer is missing: it should be {right}."
  if parsed is None:
    return f"The answer cannot be read: it should be {right}."
  wrote = answer_line(parsed)
  return f"The answer is wrong: you wrote {wrote}, it should be {right}."


def first_difference(text: str, other: str) -> int:
  pairs = enumerate(zip(text, other, strict=False))
  return next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))


def cut_steps(rng: random.Random, attempt: str, at_least: int) -> str:
  """Returns a proper beginning of the attempt of `at_least` characters.

  An attempt that breaks off anyway may be returned whole.
  """
  ends = [
    piece.end()
    for piece in PIECE.finditer(attempt)
    # Without the closing tag the attempt is never finished.
    if piece.group() != CLOSE and piece.end() >= at_least
  ]
  return attempt[: rng.choice(ends)]


def continue_steps(
  rng: random.Random,
  totals: Sequence[int],
  prefix: str,
  slip_rates: Sequence[float],
) -> str:
  """Writes what follows the prefix, up to and including the answer.

  Args:
    rng: Draws the slips.
    totals: The problem's running totals, the start first.
    prefix: Beginning of a completion of this problem; its totals may be wrong.
    slip_rates: Probability of a slip in each step, including finished ones.
  """
  operands = find_operands(totals)
  *finished, begun = prefix.split("\n")
  total = int(finished[-1].rpartition(" ")[2]) if finished else totals[0]
  text = "".join(f"{line}\n" for line in finished)
  for step in range(len(finished), len(operands)):
    left = f"{total} {signed(operands[step])} = "
    total = result(
      rng,
      total + operands[step],
      later=operands[step + 1 :],
      digits=begun.removeprefix(left) if begun.startswith(left) else "",
      slip_rate=slip_rates[step],
    )
    text += f"{left}{total}\n"
    begun = ""
  return (text + answer_line(total)).removeprefix(prefix)


def result(
  rng: random.Random,
  right: int,
  *,
  later: Iterable[int],
  digits: str,
  slip_rate: float,
) -> int:
  """Draws the result of one step, given the digits that are written already.

  Args:
    rng: Draws the slip.
    right: The right result.
    later: Operands of the steps to come; no slip takes them out of range.
    digits: Those written already.
    slip_rate: Probability of a slip before any digit was written.

  Returns:
    A draw from the distribution of results, conditional on the digits. If the
    slip rate is 0 but the digits are wrong, the smallest slip that begins with
    them.
  """
  later = list(later)
  slips = [right + slip for slip in SLIPS if stays_in(right + slip, later)]
  weights = {right: 1 - slip_rate}
  weights |= dict.fromkeys(slips, slip_rate / len(slips))
  left = {
    result: weight
    for result, weight in weights.items()
    if str(result).startswith(digits)
  }
  if slip_rate == 0:
    # The right result comes first, and then slips in the order of their size.
    return next(iter(left))
  return rng.choices(list(left), list(left.values()))[0]


def stays_in(total: int, operands: Iterable[int]) -> bool:
  totals = itertools.accumulate(operands, initial=total)
  return all(0 <= value <= MAX_TOTAL for value in totals)
