"""Running arithmetic whose feedback is an execution trace.

A problem is a running total, worked off from left to right:

  Compute 47 + 8 - 3 + 6.

and a completion is one step a line, then the answer:

  47 + 8 = 55
  55 - 3 = 52
  52 + 6 = 58
  <answer>58</answer>

Totals stay within 0..99, so that every step can be learnt by a tiny model, and
each step is determined by the problem, so that the first wrong one can be
named. What the environment generates depends on the seed, the index and the
split alone.
"""

import dataclasses
import itertools
import random
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from distil_jax.envs import tags
from distil_jax.types import Demonstration, Message, Problem, Status, Verdict

MAX_TOTAL = 99
MAX_OPERAND = 9
# One expression in so many is held out, whatever the seed.
HELD_OUT_ONE_IN = 10
# Careless mistakes, the smallest first.
SLIPS = (1, -1, 2, -2, 10, -10)

# Of the demonstrations, by what stands in the prompt.
BLOCK_SHARES = {
  (): 0.4,
  ("solution",): 0.25,
  ("feedback",): 0.35,
}
# Of the demonstrations without and with a block, those that begin in the middle
# of an attempt.
PREFIX_SHARES = {False: 0.25, True: 0.5}
# Of the failed attempts, those that also break off.
CUT_SHARE = 0.125

_OPEN, _CLOSE = "<answer>", "</answer>"
_PROMPT = re.compile(r"Compute ([1-9]?[0-9])((?: [-+] [1-9][0-9]?)+)\.")
# At most nine digits: nothing longer can be right, and `int` refuses to read
# thousands.
_STEP = re.compile(r"[0-9]{1,9} [-+] [0-9]{1,9} = -?[0-9]{1,9}")
_INTEGER = re.compile(r"-?[0-9]{1,9}")
# Where an attempt may be cut: a tokenizer that takes digits one by one has a
# token boundary on both sides of each digit, whatever else it merges.
_PIECE = re.compile(r"[0-9]|[^0-9]+")


@dataclasses.dataclass(frozen=True)
class Calculator:
  """Makes arithmetic problems, judges completions, demonstrates solutions.

  Attributes:
    num_steps: fewest and most operations in a problem.
    seed: of everything that is generated.
    slip_rate: how often a step of a demonstration without feedback is careless.
  """

  num_steps: tuple[int, int] = (3, 4)
  seed: int = 0
  slip_rate: float = 0.25
  required_fields: ClassVar = ("prompt", "answer")

  def __post_init__(self) -> None:
    low, high = self.num_steps
    if not 1 <= low <= high:
      raise ValueError(
        f"num_steps={self.num_steps} must be (fewest, most) with "
        "1 <= fewest <= most"
      )
    if not 0 <= self.slip_rate < 1:
      raise ValueError(f"slip_rate={self.slip_rate} must be in [0, 1)")

  def problem(self, row: Mapping[str, Any], index: int = 0) -> Problem:
    """Reads a row of a data file.

    Args:
      row: `prompt` and `answer`, both strings; optionally `system` and
        `solution`. Without a solution the worked one is taken.
      index: identity of the row within its data set.

    Raises:
      ValueError: a field is missing or no string, the prompt is not of the form
        "Compute 47 + 8 - 3." with operands in 1..99, its running total leaves
        0..99, or the answer is not its last total.
    """
    prompt, answer = _text(row, "prompt"), _text(row, "answer")
    start, operands = _parse(prompt)
    totals = list(itertools.accumulate(operands, initial=start))
    for step, total in enumerate(totals):
      if not 0 <= total <= MAX_TOTAL:
        raise ValueError(
          f"prompt {prompt!r}: the running total is {total} after step {step}; "
          f"it must stay within 0..{MAX_TOTAL}"
        )
    if answer.strip() != str(totals[-1]):
      raise ValueError(
        f"answer {answer!r} to prompt {prompt!r} should be {str(totals[-1])!r}"
      )
    messages = [{"role": "user", "content": prompt}]
    if row.get("system"):
      messages.insert(0, {"role": "system", "content": _text(row, "system")})
    has_solution = bool(row.get("solution"))
    return Problem(
      index=index,
      messages=tuple(messages),
      answer=str(totals[-1]),
      solution=_text(row, "solution") if has_solution else _solve(totals),
      details={"totals": tuple(totals)},
    )

  def generate(
    self, index: int, split: Literal["train", "evaluation"]
  ) -> Problem:
    """Makes a problem; the splits have no expression in common.

    Raises:
      ValueError: there is no such split.
    """
    if split not in ("train", "evaluation"):
      raise ValueError(f"split={split!r} must be 'train' or 'evaluation'")
    return self._draw(self._random(split, index), index, split)

  def judge(self, problem: Problem, completion: str) -> Verdict:
    """Compares the answer, and traces the steps line by line.

    The reward is 1 if and only if the integer in the last answer tag is the
    problem's answer. The trace reads the lines before the first answer tag;
    blank lines and space around a line do not count. Unless the answer is
    correct, the feedback names the first fault in one of these forms:

      Step 2 is wrong: you wrote 55 - 3 = 51, it should be 55 - 3 = 52.
      Step 2 cannot be read: it should be 55 - 3 = 52.
      Step 3 is missing: it should be 52 + 6 = 58.
      Step 4 is extra: it should be <answer>58</answer>.
      The answer is wrong: you wrote <answer>57</answer>, it should be ...
      The answer cannot be read: it should be <answer>58</answer>.
      The answer is missing: it should be <answer>58</answer>.

    Args:
      problem: one of this environment.
      completion: any text.

    Returns:
      A verdict that is UNPARSABLE where no integer of at most nine digits
      stands in the last answer tag. Details: `parsed`, that integer or None;
      `first_wrong_step`, counted from 1, or None; `num_right_steps`, the steps
      before the first wrong one.
    """
    steps = _steps(problem.details["totals"])
    lines = (line.strip() for line in completion.split(_OPEN)[0].split("\n"))
    written = list(itertools.islice(filter(None, lines), len(steps) + 1))
    num_right, fault = _first_fault(written, steps, problem.answer)

    content = tags.last(completion, "answer")
    content = content and content.strip()
    parsed = int(content) if content and _INTEGER.fullmatch(content) else None
    is_correct = parsed == int(problem.answer)
    if is_correct:
      status, feedback = Status.CORRECT, ""
    else:
      status = Status.UNPARSABLE if parsed is None else Status.WRONG
      feedback = fault or _answer_fault(content, parsed, problem.answer)
    return Verdict(
      reward=float(is_correct),
      feedback=feedback,
      status=status,
      details={
        "parsed": parsed,
        "first_wrong_step": num_right + 1 if fault else None,
        "num_right_steps": num_right,
      },
    )

  def demonstration(
    self, index: int, teacher_prompt: Callable[..., Sequence[Message]]
  ) -> Demonstration:
    """One example for the base model, which must be fallible but can listen.

    What stands in the prompt (`BLOCK_SHARES`) decides how well is worked:

      nothing    each step slips with probability `slip_rate`, and the steps
                 after it go on from the slipped total
      solution   the reference solution is given: no slips
      feedback   the verdict on a failed attempt is given: no slips up to the
                 step that it is about; as without feedback after it

    A part of them (`PREFIX_SHARES`) begins with a piece of a failed attempt,
    with blocks the one that the feedback is about: half of these cut anywhere,
    half in front of the first slip's first wrong token or later.

    What follows such a prefix takes it as it stands. A finished line is
    believed, also where it is wrong: the next step starts from the total as
    written, and only its own arithmetic is answered for. To jump back to the
    right total would show the student a step that nothing on its page leads
    to, knowledge that only the feedback has; slips, on the contrary, it can
    learn to avoid. Where half a number has been written that the right result
    does not begin with, the smallest slip that begins so is finished.

    Args:
      index: identity of the demonstration; independent of the problems' ones.
      teacher_prompt: `(problem, *, solution, feedback) -> messages`, with None
        for a block that is not wanted.

    Returns:
      A demonstration on a problem of the training split.
    """
    rng = self._random("demonstration", index)
    problem = self._draw(rng, index, "train")
    totals = problem.details["totals"]
    num_steps = len(totals) - 1
    (blocks,) = rng.choices(list(BLOCK_SHARES), [*BLOCK_SHARES.values()])
    attempt, verdict = self._failed_attempt(rng, problem)
    prefix = ""
    if rng.random() < PREFIX_SHARES[bool(blocks)]:
      first_fault = _first_difference(attempt, _solve(totals))
      prefix = _cut(rng, attempt, rng.choice((0, first_fault)))
    # What the page tells is worked without slips.
    num_told = num_steps if "solution" in blocks else 0
    if blocks == ("feedback",):
      num_told = verdict.details["first_wrong_step"] or num_steps
    slip_rates = [0.0] * num_told + [self.slip_rate] * (num_steps - num_told)
    return Demonstration(
      index=index,
      messages=tuple(
        teacher_prompt(
          problem,
          solution=problem.solution if "solution" in blocks else None,
          feedback=verdict.feedback if "feedback" in blocks else None,
        )
      ),
      solution=_continue(rng, totals, prefix, slip_rates[:num_steps]),
      prefix=prefix,
    )

  def _random(self, stream: str, index: int) -> random.Random:
    # Seeded with a string: a tuple would go through the salted `hash`.
    return random.Random(f"calculator/{self.seed}/{stream}/{index}")

  def _draw(
    self,
    rng: random.Random,
    index: int,
    split: Literal["train", "evaluation"],
  ) -> Problem:
    while True:
      expression, total = _draw_expression(rng, rng.randint(*self.num_steps))
      if _is_held_out(expression) == (split == "evaluation"):
        row = {"prompt": f"Compute {expression}.", "answer": str(total)}
        return self.problem(row, index)

  def _failed_attempt(
    self, rng: random.Random, problem: Problem
  ) -> tuple[str, Verdict]:
    """An attempt that slips at least once and fails, and its verdict."""
    totals = problem.details["totals"]
    while True:
      slip_rates = [self.slip_rate] * (len(totals) - 1)
      slip_rates[rng.randrange(len(slip_rates))] = 1.0
      attempt = _continue(rng, totals, "", slip_rates)
      if rng.random() < CUT_SHARE:
        attempt = _cut(rng, attempt, 0)
      verdict = self.judge(problem, attempt)
      # Slips can cancel each other out; then there is no feedback.
      if verdict.status != Status.CORRECT:
        return attempt, verdict


def _text(row: Mapping[str, Any], field: str) -> str:
  value = row.get(field)
  if not isinstance(value, str):
    raise ValueError(f"field {field!r} must be a string, got {value!r}")
  return value


def _parse(prompt: str) -> tuple[int, list[int]]:
  """The first number and the signed operands."""
  match = _PROMPT.fullmatch(prompt.strip())
  if not match:
    raise ValueError(
      f"prompt {prompt!r} must be of the form 'Compute 47 + 8 - 3.' with a "
      "first number in 0..99 and operands in 1..99"
    )
  terms = match[2].split()
  pairs = zip(terms[::2], terms[1::2], strict=True)
  return int(match[1]), [int(sign + number) for sign, number in pairs]


def _draw_expression(rng: random.Random, num_steps: int) -> tuple[str, int]:
  """An expression whose totals stay in range, and its last total."""
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
    expression += f" {_signed(operand)}"
    total += operand
  return expression, total


def _is_held_out(expression: str) -> bool:
  return zlib.crc32(expression.encode()) % HELD_OUT_ONE_IN == 0


def _signed(operand: int) -> str:
  return f"{'-' if operand < 0 else '+'} {abs(operand)}"


def _operands(totals: Sequence[int]) -> list[int]:
  return [after - before for before, after in itertools.pairwise(totals)]


def _steps(totals: Sequence[int]) -> list[str]:
  return [
    f"{before} {_signed(after - before)} = {after}"
    for before, after in itertools.pairwise(totals)
  ]


def _answer_line(answer: int | str) -> str:
  return f"{_OPEN}{answer}{_CLOSE}"


def _solve(totals: Sequence[int]) -> str:
  return "\n".join([*_steps(totals), _answer_line(totals[-1])])


def _first_fault(
  written: Sequence[str], steps: Sequence[str], answer: str
) -> tuple[int, str]:
  """Number of right steps before the first fault, and the fault in words."""
  pairs = itertools.zip_longest(written, steps)
  for num_right, (line, step) in enumerate(pairs):
    name = f"Step {num_right + 1}"
    if line is None:
      return num_right, f"{name} is missing: it should be {step}."
    if step is None:
      right = _answer_line(answer)
      return num_right, f"{name} is extra: it should be {right}."
    if not _STEP.fullmatch(line):
      return num_right, f"{name} cannot be read: it should be {step}."
    if line != step:
      return (
        num_right,
        f"{name} is wrong: you wrote {line}, it should be {step}.",
      )
  return len(steps), ""


def _answer_fault(content: str | None, parsed: int | None, answer: str) -> str:
  right = _answer_line(answer)
  if content is None:
    return f"The answer is missing: it should be {right}."
  if parsed is None:
    return f"The answer cannot be read: it should be {right}."
  wrote = _answer_line(parsed)
  return f"The answer is wrong: you wrote {wrote}, it should be {right}."


def _first_difference(text: str, other: str) -> int:
  pairs = enumerate(zip(text, other, strict=False))
  return next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))


def _cut(rng: random.Random, attempt: str, at_least: int) -> str:
  """A beginning of the attempt, `at_least` characters long, but not all of it.

  An attempt that breaks off anyway may be returned as it is.
  """
  ends = [
    piece.end()
    for piece in _PIECE.finditer(attempt)
    if piece.group() != _CLOSE and piece.end() >= at_least
  ]
  return attempt[: rng.choice(ends)]


def _continue(
  rng: random.Random,
  totals: Sequence[int],
  prefix: str,
  slip_rates: Sequence[float],
) -> str:
  """What is written after the prefix, up to and with the answer.

  Args:
    rng: source of the slips.
    totals: the problem's, start first.
    prefix: beginning of a completion of this problem; its totals may be wrong.
    slip_rates: of each step, finished ones included.
  """
  operands = _operands(totals)
  *finished, begun = prefix.split("\n")
  total = int(finished[-1].rpartition(" ")[2]) if finished else totals[0]
  text = "".join(f"{line}\n" for line in finished)
  for step in range(len(finished), len(operands)):
    left = f"{total} {_signed(operands[step])} = "
    total = _result(
      rng,
      total + operands[step],
      later=operands[step + 1 :],
      digits=begun.removeprefix(left) if begun.startswith(left) else "",
      slip_rate=slip_rates[step],
    )
    text += f"{left}{total}\n"
    begun = ""
  return (text + _answer_line(total)).removeprefix(prefix)


def _result(
  rng: random.Random,
  right: int,
  *,
  later: Iterable[int],
  digits: str,
  slip_rate: float,
) -> int:
  """The result of one step, given the digits of it that are written already.

  Args:
    rng: source of the slip.
    right: the right result.
    later: operands of the steps to come; no slip takes them out of range.
    digits: those written already.
    slip_rate: before any digit was written.

  Returns:
    A draw from the law of slips, conditional on the digits. Where nothing slips
    but the digits are wrong: the smallest slip that begins with them.
  """
  later = list(later)
  slips = [right + slip for slip in SLIPS if _stays_in(right + slip, later)]
  weights = {right: 1 - slip_rate}
  weights |= dict.fromkeys(slips, slip_rate / len(slips))
  left = {
    result: weight
    for result, weight in weights.items()
    if str(result).startswith(digits)
  }
  if slip_rate == 0:
    return next(iter(left))
  return rng.choices(list(left), list(left.values()))[0]


def _stays_in(total: int, operands: Iterable[int]) -> bool:
  totals = itertools.accumulate(operands, initial=total)
  return all(0 <= value <= MAX_TOTAL for value in totals)
