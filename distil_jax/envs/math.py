"""Judges mathematics by the value of the answer in the last box."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from distil_jax.config.environments import MathConfig
from distil_jax.envs import completion_text as envs_text
from distil_jax.envs import process_pool, rows
from distil_jax.envs.math_answers import boxes as math_boxes
from distil_jax.envs.math_answers import compare as math_answers
from distil_jax.envs.math_answers import worker as math_worker
from distil_jax.types import Problem, Status, Verdict

_BOX = "\\boxed{"
# GSM8K marks calculator results, and the beginning of the answer.
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_MARKER = "####"
_MAX_LENGTH = 1000
# A reference in words is shorter than a sentence of a solution.
_MAX_WORDS = 15
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_SENTENCE = re.compile(
  r"\b(?:is|are|so|therefore|thus|hence|answer|we|she|he|they)\b",
  re.IGNORECASE,
)


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
      row: `prompt`, and `answer`: the answer alone, as a text, a number or a
        list whose entries are all part of it; or a worked solution with
        the answer after `####`, as in GSM8K, or in a last `\\boxed{…}`.
        Optionally `system`, and `solution` in place of the worked one.
      index: Identity of the row within its data set.

    Raises:
      ValueError: A field is missing or malformed, or there is no answer.
    """
    messages = list(rows.messages(row))
    text, solution = rows.answer(row), rows.text(row, "solution")
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

    Numbers are compared by value, without currency signs and thousands
    separators, and with their units if both have one, also those in words;
    numbers in a base by digits and base; anything else by algebra, in a process
    that is killed at the deadline. If a list is expected, its
    values may stand in several boxes. A thought that is never closed is not
    read.

    Returns:
      A verdict whose reward is 1 or 0; `details` has the content of the box, or
      None, as `parsed`.
    """
    text = envs_text.without_open_thought(completion)
    found = math_boxes.last_boxed(text)
    details = {"parsed": found and found[:_MAX_LENGTH]}
    if found is None or not found.strip():
      status, feedback = Status.UNPARSABLE, _format_feedback(text, found)
    elif len(found) > _MAX_LENGTH:
      status = Status.UNPARSABLE
      feedback = (
        f"What is in {_BOX}…}} has {len(found)} characters; write the final "
        "answer, and nothing else."
      )
    else:
      status, feedback = self._compared(found.strip(), problem.answer)
      several = _several(text, problem.answer)
      if status is not Status.CORRECT and several is not None:
        status, feedback = self._compared(several, problem.answer)
        details = {"parsed": several}
      is_list = len(math_answers.items(problem.answer)) > 1
      if (
        status is Status.WRONG
        and not is_list
        and math_answers.has_decimal_comma(found)
      ):
        feedback += (
          " A comma separates two values; write a decimal number with a point."
        )
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
    # Most answers are as in the data, or numbers, and need no algebra.
    if found == expected:
      return Status.CORRECT, ""
    is_equal = math_answers.compare(expected, found, math_answers.no_algebra)
    if is_equal is not None:
      return (Status.CORRECT, "") if is_equal else wrong
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


def _several(text: str, expected: str) -> str | None:
  """Returns the last boxes as one list, if a list is expected."""
  num_values = len(math_answers.items(expected))
  run = math_boxes.last_run(text, num_values) if num_values > 1 else []
  joined = ", ".join(run)
  return joined if len(run) > 1 and len(joined) <= _MAX_LENGTH else None


def _reference(text: str) -> tuple[str, str | None]:
  """Returns the answer of a row, and its worked solution or None."""
  if _MARKER in text:
    # The last marker counts, because a solution may use the sign itself.
    worked, _, answer = text.rpartition(_MARKER)
    worked = _CALCULATOR.sub("", worked).strip()
    if math_boxes.has_box(answer):
      answer = _boxed_reference(answer)
  elif math_boxes.has_box(text):
    answer, worked = _boxed_reference(text), text.strip()
  else:
    answer, worked = text, ""
    _check_is_answer(answer)
  answer = answer.strip()
  if not answer:
    raise ValueError("the row has no answer")
  if len(answer) > _MAX_LENGTH:
    raise ValueError(f"an answer of {len(answer)} characters is none")
  if answer.count("{") != answer.count("}"):
    raise ValueError(f"the braces of answer {answer!r} do not match")
  # The teacher is shown the solution, which should end as a completion must.
  if worked and math_boxes.last_boxed(worked) is None:
    worked += f"\n{_BOX}{answer}}}"
  return answer, worked or None


def _boxed_reference(text: str) -> str:
  run = math_boxes.last_run(text)
  if not run:
    raise ValueError(
      f"answer has a box that cannot be read: …{text[-60:]!r}; close it, or "
      "give the answer alone"
    )
  return ", ".join(run)


def _check_is_answer(answer: str) -> None:
  """Raises ValueError for a whole solution, which no completion can equal."""
  words = _WORD.findall(answer)
  if len(words) > _MAX_WORDS or (len(words) > 2 and _SENTENCE.search(answer)):
    raise ValueError(
      f"answer is a text of {len(words)} words, "
      f"{envs_text.shortened(answer)!r}; put the final answer into a last "
      f"{_BOX}…}}, or after {_MARKER}, or give it alone"
    )


def _format_feedback(completion: str, found: str | None) -> str:
  if found is not None:
    fault = f"{_BOX}}} is empty"
  elif math_boxes.has_box(completion):
    fault = f"{_BOX} is never closed"
  else:
    fault = f"no answer was found in {_BOX}…}}"
  return (
    f"The format is wrong: {fault}. Put the final answer, and nothing else, in "
    f"{_BOX}…}}, before the text is cut off."
  )
