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
# A letter with its label: `B)`, `[B]`, `B:`, `Option B`.
_LABEL = re.compile(
  r"(?:(?:the )?(?:final |correct )?(?:option|choice|answer)(?: is)?:? ?)?"
  r"(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])[):.]?)[.:]?",
  re.IGNORECASE | re.ASCII,
)
# Markdown and LaTeX around it.
_AROUND = (
  re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|boxed|fbox)\s*"
    r"\{(.*)\}",
    re.DOTALL,
  ),
  re.compile(r"(\*\*|__|\*|_|`|\$\$|\$|\"|')(.*)\1", re.DOTALL),
  re.compile(r"\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL),
)
_MAX_LABEL = 100
_OPTION = re.compile(r"^[ \t]*\(?([A-Z])[).:][ \t]+\S", re.MULTILINE)
_MAX_OPTIONS = 26


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
      row: `prompt`, and `answer`: a letter, as `B`, `(B)` or `b.`, the index of
        one from 0, or the text of one option; optionally `system` and
        `solution`, for which null and empty mean none, and `options` or
        `choices`: a list, an object with a text for each letter, or ARC's
        object with `text` and `label`. Other fields are not read.
      index: Identity of the row within its data set.

    Raises:
      ValueError: The prompt or the answer is missing, a field is no string, or
        the answer is no letter, index or text of an option.
    """
    messages = rows.messages(row)
    options, texts = _options(row)
    answer = _answer(row, options, texts)
    solution = rows.text(row, "solution")
    return Problem(
      index=index,
      messages=messages,
      answer=answer,
      solution=solution or None,
      details={"options": options} if options else {},
    )

  def judge(self, problem: Problem, completion: str) -> Verdict:
    """Compares the letter in the last `<answer>…</answer>`.

    White space around the letter, one pair of brackets and a full stop after
    it are ignored, and so is its case: `(b).` is B. So is what marks the letter
    of one of the options: `B)`, `**B**`, `\\text{B}`, `Option B`. Anything
    else, such as the text of the option, cannot be read as an answer. If tags
    are nested, the innermost one counts; a tag that is never closed does not.

    Returns:
      A verdict whose reward is 1 or 0; `details` has the letter, or None, as
      `parsed`.
    """
    content = completion_text.last_answer(completion)
    options = problem.details.get("options", "")
    parsed = None if content is None else _letter(content.strip(), options)
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


def _options(row: Mapping[str, Any]) -> tuple[str, list[str]]:
  """Returns the letters of the options, and their texts, if the row has them.

  Both are empty if nobody says what the options are.
  """
  for name in ("options", "choices"):
    given = row.get(name)
    if isinstance(given, Mapping):
      # ARC has texts and labels; others a text for each letter.
      given = given.get("text") or _by_letter(given)
    if isinstance(given, list) and given:
      letters = map(_letter_of, range(min(len(given), _MAX_OPTIONS)))
      return "".join(letters), [x if isinstance(x, str) else "" for x in given]
  found = "".join(
    dict.fromkeys(_OPTION.findall(rows.text(row, "prompt") or ""))
  )
  # Letters that begin lines for another reason do not come in order from A.
  expected = "".join(map(_letter_of, range(len(found))))
  return (found if len(found) > 1 and found == expected else ""), []


def _by_letter(given: Mapping[str, Any]) -> list[Any] | None:
  """Returns the texts of `{"A": …, "B": …}`, or None if it is no such."""
  # Files of columns have a null for each letter that a row lacks.
  kept = {name: text for name, text in given.items() if text is not None}
  letters = list(map(_letter_of, range(min(len(kept), _MAX_OPTIONS))))
  return [kept[x] for x in letters] if set(letters) == set(kept) else None


def _letter_of(index: int) -> str:
  return chr(ord("A") + index)


def _answer(row: Mapping[str, Any], options: str, texts: list[str]) -> str:
  """Returns the row's answer, a letter, an index or a text, as a letter."""
  answer = row.get("answer")
  if isinstance(answer, float) and answer.is_integer():
    answer = int(answer)  # Columns with a null have no integers.
  if isinstance(answer, bool) or not isinstance(answer, int):
    return _letter_answer(rows.text(row, "answer"), options, texts)
  count = len(options) or _MAX_OPTIONS
  if not 0 <= answer < count:
    raise ValueError(
      f"answer is the index {answer}, and there are {count} options, counted "
      "from 0"
    )
  return _letter_of(answer)


def _letter_answer(answer: str | None, options: str, texts: list[str]) -> str:
  text = (answer or "").strip()
  letter = _letter(text, "")
  # The text of an option may be a letter too, if no capital one.
  is_letter = letter is not None and text == letter
  if not is_letter and texts.count(text) == 1:
    letter = _letter_of(texts.index(text))
  if letter is None:
    raise ValueError(
      f"answer must be one letter A to Z, got {answer!r}; an index must be a "
      "number, and a text one of the row's options"
    )
  if options and letter not in options:
    raise ValueError(
      f"answer is {letter}, but the options are {options[0]} to {options[-1]}"
    )
  return letter


def _letter(text: str, options: str) -> str | None:
  """Returns the letter that a text names, or None."""
  match = _LETTER.fullmatch(text)
  if match:
    return (match[1] or match[2]).upper()
  if len(text) > _MAX_LABEL:
    return None
  for _ in range(4):
    before = text
    for pattern in _AROUND:
      whole = pattern.fullmatch(text.removesuffix("."))
      if whole:
        text = next(x for x in reversed(whole.groups()) if x is not None)
        text = text.strip()
    if text == before:
      break
  match = _LABEL.fullmatch(text)
  if match is None:
    return None
  found = next(x for x in match.groups() if x).upper()
  return found if not options or found in options else None


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
