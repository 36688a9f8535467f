"""Finds rows that ask for a function which changes its argument."""

import re
from typing import Any

_NOTHING = re.compile(r"def (?!__)\w+\([^()]*\)\s*->\s*None\s*:", re.ASCII)
_IN_PLACE = re.compile(
  r"\bin[- ]place\b|\b(?:do not|don't) return anything\b", re.IGNORECASE
)


def is_asked(starter_code: str, prompt: Any) -> bool:
  """Returns True if a row asks for a function that returns nothing.

  On LeetCode the result is then its first argument. Without being asked for, a
  program that forgets to return its result must fail.

  Args:
    starter_code: The beginning of the program, which decides; empty if the row
      has none.
    prompt: The question, if it is a text.
  """
  if starter_code.strip():
    return _NOTHING.search(starter_code) is not None
  return isinstance(prompt, str) and _IN_PLACE.search(prompt) is not None
