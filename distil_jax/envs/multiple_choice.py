"""Judges multiple choice by the last answer tag, as in SciKnowEval."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from distil_jax.config.environments import MultipleChoiceConfig
from distil_jax.envs import completion_text, rows
from distil_jax.types import Problem, Status, Verdict

_OPEN, _CLOSE = "<answer>", "</answer>"
_LETTER = re.compile(r"(?:([A-Za-z])|\(([A-Za-z])\))\.?")


@dataclasses.dataclass(frozen=True)
class MultipleChoice:
  """Judges by the letter alone.

  Attributes:
    config: How much the feedback says.
  """

  config: MultipleChoiceConfig = dataclasses.field(
    default_factory=MultipleChoiceConfig
  )
  required_fields: ClassVar = ("prompt", "answer")

  def problem(self, row: Mapping[str, Any], index: int = 0) -> Problem:
    """Reads a row of a data file.

    Args:
      row: `prompt`, and `answer`, one capital letter; optionally `system` and
        `solution`, for which null and empty mean none. The texts are kept
        unchanged; other fields are not read.
      index: Identity of the row within its data set.

    Raises:
      ValueError: The prompt or the answer is missing, a field is no string, or
        the answer is not one letter A to Z.
    """
    messages, answer = rows.messages(row), rows.text(row, "answer")
    solution = rows.text(row, "solution")
    if answer is None or not re.fullmatch("[A-Z]", answer):
      raise ValueError(f"answer must be one letter A to Z, got {answer!r}")
    return Problem(
      index=index,
      messages=messages,
      answer=answer,
      solution=solution or None,
    )

  def judge(self, problem: Problem, completion: str) -> Verdict:
    """Compares the letter in the last `<answer>…</answer>`.

    White space around the letter, one pair of brackets and a full stop after
    it are ignored, and so is its case: `(b).` is B. Anything else, such as the
    text of the option, cannot be read as an answer. If tags are nested, the
    innermost one counts; a tag that is never closed does not.

    Returns:
      A verdict whose reward is 1 or 0; `details` has the letter, or None, as
      `parsed`.
    """
    content = completion_text.last_answer(completion)
    match = None if content is None else _LETTER.fullmatch(content.strip())
    parsed = (match[1] or match[2]).upper() if match else None
    if parsed == problem.answer:
      return Verdict(1.0, "", Status.CORRECT, {"parsed": parsed})
    if parsed is None:
      status, feedback = Status.UNPARSABLE, _format_feedback(content)
    else:
      status = Status.WRONG
      feedback = f"Option {parsed} is not the correct answer."
    if self.config.reveal_answer:
      feedback += f" The correct answer is option {problem.answer}."
    if not self.config.feedback:
      feedback = ""
    return Verdict(0.0, feedback, status, {"parsed": parsed})


def _format_feedback(content: str | None) -> str:
  if content is None:
    fault = f"no answer was found between {_OPEN} and {_CLOSE}"
  else:
    quoted = completion_text.shortened(content.strip())
    fault = f"{quoted!r} between {_OPEN} and {_CLOSE} is not a letter"
  return (
    f"The format is wrong: {fault}. Write the letter of one option, and "
    f"nothing else, between {_OPEN} and {_CLOSE}."
  )
