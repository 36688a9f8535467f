"""Reads the calls that a completion writes, in one of three forms.

actions      lines `Action: NAME` and `Action Input: {…}`
tags         `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Qwen
JSON         the same objects in a fenced block, or as the whole text
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from distil_jax.envs import code_blocks

Call = tuple[str, Any]  # the tool's name, and its input as JSON has it

ACTION, INPUT = "Action:", "Action Input:"
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MARKER = re.compile(r"^[ \t]*(Action|Action Input):[ \t]*", re.MULTILINE)
# The tag must end its line or stand before an action. A tag inside a JSON
# string does not end a line, because JSON escapes line feeds.
_THOUGHT_END = re.compile(r"</think>[ \t]*(?=\r?\n|\Z|Action|<tool_call>)")
# A tag behind a quotation mark may be part of a text in JSON.
_THOUGHT_BEGIN = re.compile(r'^[^"\n<]*<think>', re.MULTILINE)
_FENCED = re.compile(r"```[ \t]*(?:json)?[ \t]*\r?\n", re.IGNORECASE)
ACTIONS_FORMAT = (
  f"Write each call as a line `{ACTION}` with the name of the tool, and below "
  f"it `{INPUT}` with its input, one JSON object."
)
TAGS_FORMAT = (
  f'Write each call as {_OPEN}{{"name": …, "arguments": {{…}}}}{_CLOSE}.'
)


class UnreadableError(ValueError):
  """Means that a completion's calls cannot be read; says which one."""


class NoCallError(UnreadableError):
  """Means that there is no call at all."""


def written_actions(calls: Sequence[Call]) -> str:
  """Returns calls as lines of actions."""
  return "\n".join(
    f"{ACTION} {name}\n{INPUT} {json.dumps(value, ensure_ascii=False)}"
    for name, value in calls
  )


def written_tags(calls: Sequence[Call]) -> str:
  """Returns calls in Qwen's tags."""
  return "\n".join(
    f"{_OPEN}\n"
    + json.dumps({"name": name, "arguments": value}, ensure_ascii=False)
    + f"\n{_CLOSE}"
    for name, value in calls
  )


def after_thought(completion: str) -> str:
  """Returns the text after the last thought, up to one that never ends."""
  ends = [match.end() for match in _THOUGHT_END.finditer(completion)]
  text = completion[ends[-1] if ends else 0 :]
  begin = _THOUGHT_BEGIN.search(text)
  if begin is not None and (end := text.rfind("</think>")) >= begin.end():
    text = text[end + len("</think>") :]
    begin = _THOUGHT_BEGIN.search(text)
  return text if begin is None else text[: begin.end() - len("<think>")]


def actions(text: str, takes_no_input: Callable[[int], bool]) -> list[Call]:
  """Returns the calls in lines of actions, in time linear in the length.

  Args:
    text: What follows the thought.
    takes_no_input: Says if an empty input is that of the call of a number,
      counted from 0.

  Raises:
    UnreadableError: There is no call, or one is malformed.
  """
  calls: list[Call] = []
  name: str | None = None
  for marker, start in _markers(text):
    number = len(calls) + 1
    if marker == "Action":
      if name is not None:
        raise UnreadableError(f"Call {number} has no `{INPUT}`.")
      name = text[start : _line_end(text, start)].strip()
      if not name:
        raise UnreadableError(f"`{ACTION}` of call {number} names no tool.")
    elif name is None:
      raise UnreadableError(f"An `{INPUT}` stands before its `{ACTION}`.")
    elif takes_no_input(number - 1) and _is_empty(text, start):
      calls.append((name, {}))
      name = None
    else:
      calls.append((name, _input(text, start, number)))
      name = None
  if name is not None and not takes_no_input(len(calls)):
    raise UnreadableError(f"Call {len(calls) + 1} has no `{INPUT}`.")
  if name is not None:
    calls.append((name, {}))
  if not calls:
    raise NoCallError("No call was found.")
  return calls


def objects(text: str) -> list[Call]:
  """Returns the calls in tags, in fenced JSON, or as the whole text.

  Raises:
    UnreadableError: There is no call, or one is malformed.
  """
  if _OPEN in text:
    return [_call(value, i) for i, value in enumerate(_tagged(text), 1)]
  found: list[Any] = []
  for block in code_blocks.blocks(text)[0]:
    found += _fenced(block, len(found) + 1)
  if not found and text.strip()[:1] in ("{", "["):
    value, end = _decoded(text, 0, 1)
    if text[end:].strip():
      raise UnreadableError("Something follows the calls.")
    found = _list(value)
  if not found:
    raise NoCallError("No call was found.")
  return [_call(value, i) for i, value in enumerate(found, 1)]


def _fenced(block: code_blocks.Block, number: int) -> list[Any]:
  """Returns the calls of a block, which may hold any other text as well."""
  if block.language.lower() not in ("", "json", "tool_call", "tool_calls"):
    return []
  try:
    value, end = _decoded(block.source, 0, number)
  except UnreadableError:
    if block.language:
      raise
    return []
  is_call = not block.source[end:].strip() and all(
    isinstance(x, dict) and name_and_input(x)[0] is not None
    for x in _list(value)
  )
  return _list(value) if is_call else []


def _list(value: Any) -> list[Any]:
  """Returns the calls of a list, of OpenAI's message, or of a single object."""
  if isinstance(value, dict):
    value = value.get("tool_calls", value)
  return value if isinstance(value, list) else [value]


def name_and_input(call: Mapping[str, Any]) -> tuple[Any, Any]:
  """Returns what an object has as name and input, in any of the usual keys.

  These are `name` with `arguments` or `parameters`, also inside `function` as
  OpenAI has it; a missing input is None.
  """
  inner = call.get("function")
  if isinstance(inner, Mapping):
    call = inner
  value = call.get("arguments")
  return call.get("name"), call.get("parameters") if value is None else value


def decoded(text: str) -> Any:
  """Decodes a JSON text.

  Raises:
    ValueError: It is none, or a field stands twice.
    RecursionError: It is too deep.
  """
  return _DECODER.decode(text)


def _tagged(text: str) -> Iterator[Any]:
  start = text.find(_OPEN)
  number = 1
  while start >= 0:
    value, end = _decoded(text, start + len(_OPEN), number)
    close = text.find(_CLOSE, end)
    if close < 0 or text[end:close].strip():
      raise UnreadableError(f"Call {number} has no {_CLOSE} behind its JSON.")
    yield value
    number += 1
    start = text.find(_OPEN, close)


def _decoded(text: str, start: int, number: int) -> tuple[Any, int]:
  while start < len(text) and text[start].isspace():
    start += 1
  try:
    return _DECODER.raw_decode(text, start)
  except (ValueError, RecursionError) as error:
    # What follows the colon is a place in the completion, not in the input.
    said = str(error).partition(":")[0] or "it is too deep"
    raise UnreadableError(
      f"Call {number} is not valid JSON ({said})."
    ) from None


def _call(value: Any, number: int) -> Call:
  if not isinstance(value, dict):
    raise UnreadableError(f"Call {number} is no JSON object.")
  name, given = name_and_input(value)
  if not isinstance(name, str) or not name.strip():
    raise UnreadableError(f"Call {number} names no tool in `name`.")
  # OpenAI has the input as a text of JSON.
  if isinstance(given, str) and given.strip():
    text = given
    given, end = _decoded(text, 0, number)
    if text[end:].strip():
      raise UnreadableError(f"Something follows the input of call {number}.")
  if given is None or given == "":
    given = {}
  if not isinstance(given, dict):
    raise UnreadableError(f"The arguments of call {number} are no JSON object.")
  return name.strip(), given


def _markers(text: str) -> Iterator[tuple[str, int]]:
  """Yields each marker at a line's beginning and the index after it."""
  for match in _MARKER.finditer(text):
    yield match[1], match.end()


def _line_end(text: str, start: int) -> int:
  end = text.find("\n", start)
  return len(text) if end < 0 else end


def _is_empty(text: str, start: int) -> bool:
  """Returns True if the next thing is another action, or nothing."""
  following = _MARKER.search(text, start)
  end = following.start() if following else len(text)
  return not text[start:end].strip()


def _input(text: str, start: int, number: int) -> Any:
  """Reads one JSON object; the rest of its last line must be empty."""
  # `raw_decode` does not skip white space.
  while start < len(text) and text[start].isspace():
    start += 1
  fence = _FENCED.match(text, start)
  start = fence.end() if fence else start
  while start < len(text) and text[start].isspace():
    start += 1
  try:
    value, end = _DECODER.raw_decode(text, start)
  except (ValueError, RecursionError) as error:
    # What follows the colon is a place in the completion, not in the input.
    said = str(error).partition(":")[0] or "it is too deep"
    raise UnreadableError(
      f"The input of call {number} is not valid JSON ({said})."
    ) from None
  if not isinstance(value, dict):
    raise UnreadableError(f"The input of call {number} is no JSON object.")
  if fence:
    return value
  if text[end : _line_end(text, end)].strip():
    raise UnreadableError(f"Something follows the input of call {number}.")
  return value


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError("a field stands twice in an object")
  return found


def _no_number(name: str) -> Any:
  raise ValueError(f"{name} is no number")


# Python reads NaN and Infinity, which JSON does not have, and keeps the last of
# two equal fields.
_DECODER = json.JSONDecoder(
  object_pairs_hook=_fields, parse_constant=_no_number
)
