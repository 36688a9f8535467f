"""Reads prompts that are conversations: lists of messages, as many rows have.

verl, TRL, OpenAI and verifiers write a prompt as a list of messages, each with
`role` and `content`; ShareGPT with `from` and `value`. A table has such a list
as a text of JSON.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax.types import Message

# What ShareGPT calls the roles.
_ROLES = {"human": "user", "gpt": "assistant"}
# Messages between the system's and the last question.
EARLIER = "earlier_messages"


def as_texts(row: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the row with a conversation in it taken apart.

  If `prompt` is a list of messages, the last one, the user's, becomes `prompt`;
  a first one of the system becomes `system`; the others become
  `earlier_messages`. An assistant's message at the end is the reference: it
  becomes `solution`, if the row has none. A `solution` that is a list of one
  message becomes its text. Alpaca's `instruction` with its `input` becomes
  `prompt`, and `output` the `solution`. Any other row is returned as it is.

  Raises:
    ValueError: the list is no conversation that ends with a question.
  """
  row = _without_input(row)
  if isinstance(row.get("solution"), list):
    row["solution"] = _only_text(row["solution"])
  prompt = _decoded(row.get("prompt"))
  if not isinstance(prompt, list):
    return row
  values = list(prompt)
  if values and _role(values[-1]) == "assistant":
    _add_reference(row, values.pop())
  messages = [_message(value) for value in values]
  if not messages or messages[-1]["role"] != "user":
    roles = ", ".join(m["role"] for m in messages) or "none"
    raise ValueError(
      f"prompt must end with a message of the user, but has those of: {roles}"
    )
  if messages[0]["role"] == "system":
    if row.get("system"):
      raise ValueError(
        "prompt begins with a message of the system, but the row also has a "
        "field system; keep one of them"
      )
    row["system"] = messages.pop(0)["content"]
  row["prompt"] = messages.pop()["content"]
  if messages:
    row[EARLIER] = messages
  return row


def _without_input(row: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a copy of a row; of Alpaca's, with the whole question as prompt."""
  row = dict(row)
  instruction, given = row.get("instruction"), row.get("input")
  # `data.fields` may have named the instruction as the prompt already.
  is_alpaca = isinstance(instruction, str) and (
    row.get("prompt") in (None, instruction)
  )
  if not is_alpaca:
    return row
  row["prompt"] = instruction
  if isinstance(given, str) and given.strip():
    row["prompt"] = f"{instruction}\n\n{given}"
  if row.get("solution") is None and isinstance(row.get("output"), str):
    row["solution"] = row["output"]
  return row


def _decoded(prompt: Any) -> Any:
  """Returns a prompt as a list, if it is the JSON text of messages."""
  if not isinstance(prompt, str) or not prompt.lstrip().startswith("[{"):
    return prompt
  try:
    found = json.loads(prompt)
  except (ValueError, RecursionError):
    return prompt
  is_messages = isinstance(found, list) and all(map(_role, found))
  return found if is_messages else prompt


def _add_reference(row: dict[str, Any], message: Mapping[str, Any]) -> None:
  """Keeps what the assistant said at the end as solution, and its calls."""
  calls = message.get("tool_calls")
  if calls and row.get("answer") is None:
    row["answer"] = calls
  if row.get("solution") is None and (message.get("content") or not calls):
    row["solution"] = _message(message)["content"]


def earlier(row: Mapping[str, Any]) -> Sequence[Message]:
  """Returns the messages before the last question, without the system's."""
  return row.get(EARLIER) or ()


def _only_text(value: Sequence[Any]) -> str:
  if len(value) != 1:
    raise ValueError(
      f"solution must be a text or one message, got {len(value)} of them"
    )
  only = value[0]
  return only if isinstance(only, str) else _message(only)["content"]


def _message(value: Any) -> dict[str, str]:
  if not isinstance(value, Mapping):
    raise ValueError(
      "prompt is a list, so each entry must be a message with role and "
      f"content, got {type(value).__name__}"
    )
  role, content = _role(value), value.get("content", value.get("value"))
  if not isinstance(role, str) or not role:
    raise ValueError(f"a message must have a role, got {role!r}")
  if isinstance(content, list):
    content = "".join(_part(part) for part in content)
  if not isinstance(content, str) or not content.strip():
    raise ValueError(
      f"the message of {role} must have a text as content, got {content!r}"
    )
  return {"role": role, "content": content}


def _role(value: Any) -> Any:
  if not isinstance(value, Mapping):
    return None
  role = value.get("role", value.get("from"))
  return _ROLES.get(role, role) if isinstance(role, str) else role


def _part(value: Any) -> str:
  """Returns the text of one part of a content that is a list."""
  text = value.get("text") if isinstance(value, Mapping) else value
  if not isinstance(text, str):
    kind = value.get("type") if isinstance(value, Mapping) else value
    raise ValueError(f"a message holds {kind!r}, but only text can be read")
  return text
