"""Reads the fields of data rows that environments have in common."""

import decimal
import math
from collections.abc import Mapping
from typing import Any

from distil_jax.envs import conversations
from distil_jax.types import Message


def text(row: Mapping[str, Any], name: str) -> str | None:
  """Returns a text field unchanged, or None if it is missing or null.

  Raises:
    ValueError: The field is no string.
  """
  value = row.get(name)
  if value is not None and not isinstance(value, str):
    raise ValueError(f"{name} must be a string, got {type(value).__name__}")
  return value


def answer(row: Mapping[str, Any]) -> str | None:
  """Returns the field `answer` as a text, or None if it is missing or null.

  Numbers and truth values are written out; a list of these or of texts becomes
  one text with commas, which stands for all of them.

  Raises:
    ValueError: The field is something else.
  """
  value = row.get("answer")
  if value is None:
    return None
  values = value if isinstance(value, list) and value else [value]
  return ", ".join(map(_scalar, values))


def _scalar(value: Any) -> str:
  if isinstance(value, str):
    return value
  if isinstance(value, float) and not math.isfinite(value):
    # Tables write a missing number so, and no completion could equal it.
    raise ValueError(f"answer is {value}, which stands for a missing number")
  if isinstance(value, (bool, int, float, decimal.Decimal)):
    return str(value)
  raise ValueError(
    "answer must be a text, a number, true or false, or a list of these, got "
    f"{type(value).__name__}"
  )


def messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
  """Returns `prompt` as a user's message, after `system` if there is one.

  A prompt may be a list of messages, see `conversations.as_texts`.

  Raises:
    ValueError: There is no prompt, or one of the two is no string.
  """
  row = conversations.as_texts(row)
  prompt, system = text(row, "prompt"), text(row, "system")
  if not prompt:
    raise ValueError("the row has no prompt")
  question = {"role": "user", "content": prompt}
  found = (*conversations.earlier(row), question)
  if system:
    found = ({"role": "system", "content": system}, *found)
  return found
