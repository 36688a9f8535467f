"""Makes running arithmetic whose feedback is an execution trace.

A problem is a running total, worked off from left to right:

  Compute 47 + 8 - 3 + 6.

and a completion is one step a line, then the answer:

  47 + 8 = 55
  55 - 3 = 52
  52 + 6 = 58
  <answer>58</answer>

Totals stay within 0..99, so that a tiny model can learn every step, and each
step is determined by the problem, so that the first wrong one can be named.
Generated problems depend on the seed, the index and the split alone.
"""

import dataclasses
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from distil_jax.config.environments import CalculatorConfig
from distil_jax.envs import completion_text
from distil_jax.envs.calculator_steps import (
  INTEGER,
  MAX_TOTAL,
  OPEN,
  answer_fault,
  continue_steps,
  cut_steps,
  draw_expression,
  find_steps,
  first_difference,
  first_fault,
  is_held_out,
  parse,
  solve,
  text_of,
)
from distil_jax.types import (
  Demonstration,
  Message,
  Problem,
  Reply,
  Status,
  Verdict,
)

# Shares of the demonstrations, by the blocks in their prompts.
BLOCK_SHARES = {
  (): 0.4,
  ("solution",): 0.25,
  ("feedback",): 0.35,
}
# Shares of the demonstrations without and with a block that begin in the middle
# of an attempt.
PREFIX_SHARES = {False: 0.25, True: 0.5}
# Share of the failed attempts that also break off.
CUT_SHARE = 0.125


@dataclasses.dataclass(frozen=True)
class Calculator:
  """Makes arithmetic problems, judges completions, demonstrates solutions.

  Attributes:
    config: Length of the problems, seed, and how often demonstrations slip.
  """

  config: CalculatorConfig = dataclasses.field(default_factory=CalculatorConfig)
  required_fields: ClassVar = ("prompt", "answer")

  def problem(self, row: Mapping[str, Any], index: int = 0) -> Problem:
    """Reads a row of a data file.

    Args:
      row: `prompt` and `answer`, both strings; optionally `system` and
        `solution`. Without a solution the problem is worked here.
      index: Identity of the row within its data set.

    Raises:
      ValueError: A field is missing or no string, the prompt is not of the form
        "Compute 47 + 8 - 3." with operands in 1..99, its running total leaves
        0..99, or the answer is not its last total.
    """
    prompt, answer = text_of(row, "prompt"), text_of(row, "answer")
    start, operands = parse(prompt)
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
      messages.insert(0, {"role": "system", "content": text_of(row, "system")})
    has_solution = bool(row.get("solution"))
    return Problem(
      index=index,
      messages=tuple(messages),
      answer=str(totals[-1]),
      solution=text_of(row, "solution") if has_solution else solve(totals),
      details={"totals": tuple(totals)},
    )

  def generate(
    self, index: int, split: Literal["train", "evaluation"]
  ) -> Problem:
    """Makes a problem; no expression is in both splits.

    Raises:
      ValueError: There is no such split.
    """
    if split not in ("train", "evaluation"):
      raise ValueError(f"split={split!r} must be 'train' or 'evaluation'")
    return self._draw(self._random(split, index), index, split)

  def judge(self, problem: Problem, completion: str) -> Verdict:
    """Compares the answer, and traces the steps line by line.

    The reward is 1 if and only if the integer in the last answer tag is the
    problem's answer. The trace reads the lines before the first answer tag;
    blank lines and space around a line are ignored. Unless the answer is
    correct, the feedback names the first fault in one of these forms:

      Step 2 is wrong: you wrote 55 - 3 = 51, it should be 55 - 3 = 52.
      Step 2 cannot be read: it should be 55 - 3 = 52.
      Step 3 is missing: it should be 52 + 6 = 58.
      Step 4 is extra: it should be <answer>58</answer>.
      The answer is wrong: you wrote <answer>57</answer>, it should be ...
      The answer cannot be read: it should be <answer>58</answer>.
      The answer is missing: it should be <answer>58</answer>.

    Args:
      problem: A problem of this environment.
      completion: Any text.

    Returns:
      A verdict that is UNPARSABLE if the last answer tag does not hold an
      integer of at most nine digits. Details: `parsed`, that integer or None;
      `first_wrong_step`, counted from 1, or None; `num_right_steps`, the steps
      before the first wrong one.
    """
    steps = find_steps(problem.details["totals"])
    lines = (line.strip() for line in completion.split(OPEN)[0].split("\n"))
    written = list(itertools.islice(filter(None, lines), len(steps) + 1))
    num_right, fault = first_fault(written, steps, problem.answer)

    content = completion_text.last_answer(completion)
    content = content and content.strip()
    parsed = int(content) if content and INTEGER.fullmatch(content) else None
    is_correct = parsed == int(problem.answer)
    if is_correct:
      status, feedback = Status.CORRECT, ""
    else:
      status = Status.UNPARSABLE if parsed is None else Status.WRONG
      feedback = fault or answer_fault(content, parsed, problem.answer)
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
    """Makes one example for a base model that errs but follows feedback.

    The blocks in the prompt (`BLOCK_SHARES`) decide how many slips there are:

      nothing    each step slips with probability `slip_rate`, and the steps
                 after it continue from the slipped total
      solution   the reference solution is given: no slips
      feedback   the verdict on a failed attempt is given: no slips up to the
                 step that it names; as without feedback after it

    A share of them (`PREFIX_SHARES`) begins with a piece of a failed attempt,
    with blocks the attempt that the feedback is about: half of these are cut
    anywhere, half in front of the first slip's first wrong token or later.

    The continuation never corrects its prefix. A finished line is taken as it
    is, even if it is wrong: the next step starts from the total as written, and
    only its own arithmetic is right. A jump back to the right total would show
    the student a step that nothing in its own prompt leads to, because only the
    feedback knows that total; slips, in contrast, it can learn to avoid. If the
    prefix ends inside a number that the right result does not begin with, the
    smallest slip that begins with these digits is completed.

    Args:
      index: Identity of the demonstration, independent of problem indices.
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
      first_fault = first_difference(attempt, solve(totals))
      prefix = cut_steps(rng, attempt, rng.choice((0, first_fault)))
    # Steps that the prompt gives away are worked without slips.
    num_given = num_steps if "solution" in blocks else 0
    if blocks == ("feedback",):
      num_given = verdict.details["first_wrong_step"] or num_steps
    slip_rates = [0.0] * num_given
    slip_rates += [self.config.slip_rate] * (num_steps - num_given)
    return Demonstration(
      index=index,
      messages=tuple(
        teacher_prompt(
          problem,
          solution=problem.solution if "solution" in blocks else None,
          feedback=verdict.feedback if "feedback" in blocks else None,
        )
      ),
      solution=continue_steps(rng, totals, prefix, slip_rates[:num_steps]),
      prefix=prefix,
    )

  @property
  def max_turns(self) -> int:
    """Most answers that the student may give."""
    return self.config.max_attempts

  def reply(
    self, problem: Problem, turns: Sequence[str], replies: Sequence[Reply]
  ) -> Reply:
    """Judges the newest answer, and shows the feedback if it is wrong."""
    del replies
    verdict = self.judge(problem, turns[-1])
    is_over = verdict.status == Status.CORRECT
    return Reply(None if is_over else verdict.feedback, verdict)

  def _random(self, stream: str, index: int) -> random.Random:
    # The seed is a string because a tuple would go through the salted `hash`.
    return random.Random(f"calculator/{self.config.seed}/{stream}/{index}")

  def _draw(
    self,
    rng: random.Random,
    index: int,
    split: Literal["train", "evaluation"],
  ) -> Problem:
    while True:
      expression, total = draw_expression(
        rng, rng.randint(*self.config.num_steps)
      )
      if is_held_out(expression) == (split == "evaluation"):
        row = {"prompt": f"Compute {expression}.", "answer": str(total)}
        return self.problem(row, index)

  def _failed_attempt(
    self, rng: random.Random, problem: Problem
  ) -> tuple[str, Verdict]:
    """Returns an attempt with a slip that fails, and its verdict."""
    totals = problem.details["totals"]
    while True:
      slip_rates = [self.config.slip_rate] * (len(totals) - 1)
      slip_rates[rng.randrange(len(slip_rates))] = 1.0
      attempt = continue_steps(rng, totals, "", slip_rates)
      if rng.random() < CUT_SHARE:
        attempt = cut_steps(rng, attempt, 0)
      verdict = self.judge(problem, attempt)
      # Slips can cancel each other out; such an attempt has no feedback.
      if verdict.status != Status.CORRECT:
        return attempt, verdict
