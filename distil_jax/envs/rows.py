"""Reads the fields of data rows that environments have in common."""

from collections.abc import Mapping
from typing import Any

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


def messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
  """Returns `prompt` as a user's message, after `system` if there is one.

  Raises:
    ValueError: There is no prompt, or one of the two is no string.
  """
  prompt, system = text(row, "prompt"), text(row, "system")
  if not prompt:
    raise ValueError("the row has no prompt")
  found = [{"role": "user", "content": prompt}]
  if system:
    found.insert(0, {"role": "system", "content": system})
  return tuple(found)
