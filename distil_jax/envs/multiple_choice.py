"""Multiple choice: the letter in the last answer tag, as in SciKnowEval."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from distil_jax.envs import completion_text, rows
from distil_jax.types import Problem, Status, Verdict

_OPEN, _CLOSE = "<answer>", "</answer>"
_LETTER = re.compile(r"(?:([A-Za-z])|\(([A-Za-z])\))\.?")


@dataclasses.dataclass(frozen=True)
class MultipleChoice:
  """Judges by the letter alone.

  Attributes:
    feedback: whether a verdict says what was wrong.
    reveal_answer: whether that feedback names the correct option.
  """

  feedback: bool = True
  reveal_answer: bool = False
  required_fields: ClassVar = ("prompt", "answer")

  def problem(self, row: Mapping[str, Any], index: int = 0) -> Problem:
    """Reads a row of a data file.

    Args:
      row: `prompt`, and `answer`, one capital letter; optionally `system` and
        `solution`, where null and empty are the same as none. The texts are
        kept as they are; other fields are not read.
      index: identity of the row within its data set.

    Raises:
      ValueError: prompt or answer is missing, a field is no string, or the
        answer is not one letter A to Z.
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

    Around the letter, spaces and line feeds, one pair of brackets and a full
    stop after it do not count, nor does its case: `(b).` is B. Anything else,
    such as the text of the option, cannot be read as an answer. Of nested tags
    the innermost counts, and a tag that is never closed does not.

    Returns:
      The reward is 1 or 0; `details` has the letter, or None, as `parsed`.
    """
    content = completion_text.last_tagged(completion, "answer")
    match = None if content is None else _LETTER.fullmatch(content.strip())
    parsed = (match[1] or match[2]).upper() if match else None
    if parsed == problem.answer:
      return Verdict(1.0, "", Status.CORRECT, {"parsed": parsed})
    if parsed is None:
      status, feedback = Status.UNPARSABLE, _format_feedback(content)
    else:
      status = Status.WRONG
      feedback = f"Option {parsed} is not the correct answer."
    if self.reveal_answer:
      feedback += f" The correct answer is option {problem.answer}."
    if not self.feedback:
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
