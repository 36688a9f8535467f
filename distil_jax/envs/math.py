"""Judges mathematics by the value of the answer in the last box."""

import dataclasses
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, ClassVar

from distil_jax.config.environments import MathConfig
from distil_jax.envs import completion_text as envs_text
from distil_jax.envs import math_worker, process_pool, rows
from distil_jax.types import Problem, Status, Verdict

_BOX = "\\boxed{"
_NUMBER = re.compile(r"([-+]?)(\d{1,40}|\d{1,3}(?:,\d{3}){1,12})?(\.\d{1,40})?")
# LaTeX that may surround a number without being part of it.
_ORNAMENT = re.compile(r"\\[,!;: ]|\\?\$|\\(?:left|right)|\s")
# GSM8K marks calculator results, and the beginning of the answer.
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_MARKER = "####"
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_MAX_LENGTH = 1000
# Braces that are read in all boxes together, so that a completion of nothing
# but boxes takes linear time.
_MAX_BRACES = 10_000


@dataclasses.dataclass(frozen=True)
class Math:
  """Judges by the last `\\boxed{…}`.

  Attributes:
    config: Feedback, instruction, and how answers are compared.
  """

  config: MathConfig = dataclasses.field(default_factory=MathConfig)
  required_fields: ClassVar = ("prompt", "answer")
  _workers: process_pool.ProcessPool = dataclasses.field(
    default_factory=lambda: process_pool.ProcessPool(math_worker.__name__),
    init=False,
    repr=False,
    compare=False,
  )

  def __post_init__(self) -> None:
    if self.config.symbolic and not math_worker.is_installed():
      raise ValueError(
        "environment math compares by algebra with math-verify, which is not "
        f"installed: {math_worker.INSTALL}, or set environment.symbolic=false "
        "to compare numbers and texts alone"
      )

  def problem(self, row: Mapping[str, Any], index: int = 0) -> Problem:
    """Reads a row of a data file.

    Args:
      row: `prompt`, and `answer`: the answer alone; or a worked solution with
        the answer after `####`, as in GSM8K, or in a last `\\boxed{…}`.
        Optionally `system`, and `solution` in place of the worked one.
      index: Identity of the row within its data set.

    Raises:
      ValueError: A field is missing or malformed, or there is no answer.
    """
    messages = list(rows.messages(row))
    text, solution = rows.text(row, "answer"), rows.text(row, "solution")
    answer, worked = _reference(text or "")
    if self.config.instruction:
      question = f"{messages[-1]['content']}\n\n{self.config.instruction}"
      messages[-1] = {**messages[-1], "content": question}
    return Problem(
      index=index,
      messages=tuple(messages),
      answer=answer,
      solution=solution or worked,
    )

  def judge(self, problem: Problem, completion: str) -> Verdict:
    """Compares the content of the last closed box with the answer.

    Numbers are compared by value, without currency signs, spaces and thousands
    separators; anything else by algebra, in a process that is killed at the
    deadline.

    Returns:
      A verdict whose reward is 1 or 0; `details` has the content of the box, or
      None, as `parsed`.
    """
    found = last_boxed(completion)
    details = {"parsed": found and found[:_MAX_LENGTH]}
    if found is None or not found.strip():
      status, feedback = Status.UNPARSABLE, _format_feedback(completion, found)
    elif len(found) > _MAX_LENGTH:
      status = Status.UNPARSABLE
      feedback = (
        f"What is in {_BOX}…}} has {len(found)} characters; write the final "
        "answer, and nothing else."
      )
    else:
      status, feedback = self._compared(found.strip(), problem.answer)
    if status is Status.CORRECT:
      return Verdict(1.0, "", status, details)
    if self.config.reveal_answer:
      feedback += f" The correct answer is {problem.answer}."
    return Verdict(
      0.0, feedback if self.config.feedback else "", status, details
    )

  def _compared(self, found: str, expected: str) -> tuple[Status, str]:
    shown = envs_text.shortened(found)
    wrong = Status.WRONG, f"{shown} is not the correct answer."
    # Most correct answers are written as in the data and need no algebra.
    if found == expected:
      return Status.CORRECT, ""
    # Fractions compare exactly, where floats would call close numbers equal.
    numbers = _number(found), _number(expected)
    if None not in numbers:
      return (Status.CORRECT, "") if numbers[0] == numbers[1] else wrong
    if not self.config.symbolic:
      return wrong
    try:
      answer = self._workers.ask([expected, found], self.config.seconds)
    except process_pool.WorkerTimeoutError:
      return Status.TIMEOUT, (
        f"{shown} could not be compared with the correct answer within "
        f"{self.config.seconds:g} s; write it out, as simply as it can be."
      )
    except process_pool.WorkerCrashError:
      answer = {"error": "crash"}
    if "error" in answer:
      return Status.ERROR, (
        f"{shown} could not be compared with the correct answer; write it as "
        "simply as it can be."
      )
    return (Status.CORRECT, "") if answer["is_equal"] else wrong


def last_boxed(text: str) -> str | None:
  """Returns the content of the last closed `\\boxed{…}`, or None.

  Takes time linear in the length of the text.
  """
  start = text.rfind(_BOX)
  num_braces = 0
  while start >= 0 and num_braces < _MAX_BRACES:
    content = start + len(_BOX)
    depth = 1
    for match in _BRACE.finditer(text, content):
      num_braces += 1
      depth += {"{": 1, "}": -1}.get(match[0], 0)
      if depth == 0:
        return text[content : match.start()]
      if num_braces >= _MAX_BRACES:
        break
    start = text.rfind(_BOX, 0, start)
  return None


def _reference(text: str) -> tuple[str, str | None]:
  """Returns the answer of a row, and its worked solution or None."""
  if _MARKER in text:
    # The last marker counts, because a solution may use the sign itself.
    worked, _, answer = text.rpartition(_MARKER)
    worked = _CALCULATOR.sub("", worked).strip()
  else:
    answer, worked = last_boxed(text), text.strip()
    if answer is None:
      answer, worked = text, ""
  answer = answer.strip()
  if not answer:
    raise ValueError("the row has no answer")
  if len(answer) > _MAX_LENGTH:
    raise ValueError(f"an answer of {len(answer)} characters is none")
  # The teacher is shown the solution, which should end as a completion must.
  if worked and last_boxed(worked) is None:
    worked += f"\n{_BOX}{answer}}}"
  return answer, worked or None


def _number(text: str) -> Fraction | None:
  """Returns the value of a plain number, or None for anything else."""
  plain = _ORNAMENT.sub("", text)
  match = _NUMBER.fullmatch(plain)
  if match is None or (match[2] is None and match[3] is None):
    return None
  return Fraction(plain.replace(",", ""))


def _format_feedback(completion: str, found: str | None) -> str:
  if found is not None:
    fault = f"{_BOX}}} is empty"
  elif _BOX in completion:
    fault = f"{_BOX} is never closed"
  else:
    fault = f"no answer was found in {_BOX}…}}"
  return (
    f"The format is wrong: {fault}. Put the final answer, and nothing else, in "
    f"{_BOX}…}}, before the text is cut off."
  )
