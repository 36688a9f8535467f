"""Finds the tokens that end a completion."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distil_jax.types import Message

GENERATION_CONFIG = "generation_config.json"


class TokenizerError(ValueError):
  """The error of a tokenizer that cannot be used."""


def of_files(directory: pathlib.Path) -> list[int]:
  """Returns the end tokens that a model's configuration files name."""
  return [
    token
    for name in (GENERATION_CONFIG, "config.json")
    for token in _of_file(directory / name)
  ]


def of_template(
  render: Callable[[Sequence[Message], bool], str | None],
  special_ids: Mapping[str, int],
) -> int | None:
  """Returns the special token with which a template ends an assistant's turn.

  The tokenizer of a base model often names another end token than its chat
  template writes.

  Args:
    render: `(messages, is_open) -> text`; None if the template refuses them.
    special_ids: the special tokens by their texts.

  Returns:
    The token; None if the template writes none right after the turn.
  """
  answer = "content-of-answer-"
  messages = [
    {"role": "user", "content": "content-of-question-"},
    {"role": "assistant", "content": answer},
  ]
  after = (render(messages, False) or "").partition(answer)[2].lstrip()
  found = [text for text in special_ids if text and after.startswith(text)]
  # One special token may begin with the text of another.
  return special_ids[max(found, key=len)] if found else None


def _of_file(path: pathlib.Path) -> list[int]:
  """Returns the end tokens of a configuration file, if it exists."""
  if not path.is_file():
    return []
  value = read_json(path).get("eos_token_id")
  ids = [] if value is None else value if isinstance(value, list) else [value]
  for token in ids:
    if type(token) is not int or token < 0:
      raise TokenizerError(
        f"{path}: eos_token_id must be a token id or a list of them, got "
        f"{value!r}"
      )
  return ids


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    TokenizerError: the file cannot be read, or holds something else.
  """
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError) as error:
    raise TokenizerError(f"{path} cannot be read: {error}") from error
  if not isinstance(content, dict):
    raise TokenizerError(f"{path} must hold a JSON object")
  return content


def check_longest(directory: pathlib.Path, longest: Any) -> None:
  """Refuses a tokenizer whose longest length is no number.

  Raises:
    TokenizerError: names the file and the value.
  """
  if not isinstance(longest, int | float) or isinstance(longest, bool):
    raise TokenizerError(
      f"{directory}/tokenizer_config.json: model_max_length must be a number, "
      f"got {longest!r:.200}"
    )
