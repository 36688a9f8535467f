"""Judges tool calls by their names and inputs, as in ToolAlpaca."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from distil_jax.config.environments import ToolCallsConfig
from distil_jax.envs import completion_text as envs_text
from distil_jax.envs import rows
from distil_jax.types import Problem, Status, Verdict

Call = tuple[str, Any]  # the tool's name, and its input as JSON has it

_ACTION, _INPUT = "Action:", "Action Input:"
_MARKER = re.compile(r"^[ \t]*(Action|Action Input):[ \t]*", re.MULTILINE)
# The tag must end its line or stand before an action. A tag inside a JSON
# string does not end a line, because JSON escapes line feeds.
_THOUGHT_END = re.compile(r"</think>[ \t]*(?=\r?\n|\Z|Action)")
_FORMAT = (
  f"Write each call as a line `{_ACTION}` with the name of the tool, and below "
  f"it `{_INPUT}` with its input, one JSON object."
)
# Levels of a value that are compared; a deeper value counts as different.
_MAX_DEPTH = 100


class _UnreadableError(ValueError):
  """Means that a completion's calls cannot be read; says which one."""


@dataclasses.dataclass(frozen=True)
class ToolCalls:
  """Judges by the calls alone: their names, their inputs, their order.

  Attributes:
    config: How much the feedback says.
  """

  config: ToolCallsConfig = dataclasses.field(default_factory=ToolCallsConfig)
  required_fields: ClassVar = ("prompt",)  # an answer may be text or a list

  def problem(self, row: Mapping[str, Any], index: int = 0) -> Problem:
    """Reads a row of a data file.

    Args:
      row: `prompt`; `answer`, a list of one or more calls, each an object with
        `Action` and `Action_Input`, both as JSON texts or as values;
        optionally `system`, and `solution`, which is otherwise the calls as a
        completion writes them. Other fields are not read.
      index: Identity of the row within its data set.

    Raises:
      ValueError: A field is missing or malformed.
    """
    messages = rows.messages(row)
    calls = _expected(row.get("answer"))
    answer = _written(calls)
    return Problem(
      index=index,
      messages=messages,
      answer=answer,
      solution=rows.text(row, "solution") or answer,
      details={"calls": calls},
    )

  def judge(self, problem: Problem, completion: str) -> Verdict:
    """Compares all calls, in their order.

    Numbers are compared by value, so that 2 is 2.0; they differ from strings
    and from truth values. The order of an object's fields is ignored, and so is
    the text before the last `</think>` and all text that is no call.

    Returns:
      A verdict whose reward is 1 or 0; `details` has the number of calls, None
      if they cannot be read, and how many of them are as expected.
    """
    expected = problem.details["calls"]
    details: dict[str, Any] = {"calls": None, "right_calls": 0}
    try:
      calls = _calls(completion)
    except _UnreadableError as error:
      status, feedback = Status.UNPARSABLE, f"{error} {_FORMAT}"
    else:
      pairs = zip(calls, expected, strict=False)
      right = sum(_difference(*pair) is None for pair in pairs)
      details = {"calls": len(calls), "right_calls": right}
      feedback = _mismatch(calls, expected)
      if feedback is None:
        return Verdict(1.0, "", Status.CORRECT, details)
      status = Status.WRONG
    if self.config.reveal_answer:
      feedback += f"\nThe expected calls are:\n{problem.answer}"
    return Verdict(
      0.0, feedback if self.config.feedback else "", status, details
    )


def _expected(answer: Any) -> list[Call]:
  """Returns the calls of a data row."""
  if isinstance(answer, str):
    answer = _json_of_row("answer", answer)
  if not isinstance(answer, Sequence) or isinstance(answer, str) or not answer:
    raise ValueError(f"answer must be a list of calls, got {answer!r}")
  calls = []
  for number, call in enumerate(answer, 1):
    where = f"call {number} of answer"
    if not isinstance(call, Mapping):
      raise ValueError(f"{where} must be an object, got {call!r}")
    name, value = call.get("Action"), call.get("Action_Input")
    if not isinstance(name, str) or not name.strip():
      raise ValueError(f"{where} must have the name of a tool in Action")
    if isinstance(value, str):
      value = _json_of_row(f"Action_Input in {where}", value)
    if not isinstance(value, Mapping):
      raise ValueError(f"Action_Input in {where} must be an object")
    calls.append((name.strip(), value))
  return calls


def _json_of_row(what: str, text: str) -> Any:
  try:
    return _DECODER.decode(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{what} is not valid JSON: {error}") from None


def _written(calls: Sequence[Call]) -> str:
  """Returns calls as a completion writes them."""
  return "\n".join(
    f"{_ACTION} {name}\n{_INPUT} {json.dumps(value, ensure_ascii=False)}"
    for name, value in calls
  )


def _calls(completion: str) -> list[Call]:
  """Returns the calls of a completion, in time linear in its length.

  Raises:
    _UnreadableError: There is no call, or one is malformed.
  """
  ends = [match.end() for match in _THOUGHT_END.finditer(completion)]
  text = completion[ends[-1] if ends else 0 :]
  calls: list[Call] = []
  name: str | None = None
  for marker, start in _markers(text):
    number = len(calls) + 1
    if marker == "Action":
      if name is not None:
        raise _UnreadableError(f"Call {number} has no `{_INPUT}`.")
      name = text[start : _line_end(text, start)].strip()
      if not name:
        raise _UnreadableError(f"`{_ACTION}` of call {number} names no tool.")
    elif name is None:
      raise _UnreadableError(f"An `{_INPUT}` stands before its `{_ACTION}`.")
    else:
      calls.append((name, _input(text, start, number)))
      name = None
  if name is not None:
    raise _UnreadableError(f"Call {len(calls) + 1} has no `{_INPUT}`.")
  if not calls:
    raise _UnreadableError("No call was found.")
  return calls


def _markers(text: str) -> Iterator[tuple[str, int]]:
  """Yields each marker at a line's beginning and the index after it."""
  for match in _MARKER.finditer(text):
    yield match[1], match.end()


def _line_end(text: str, start: int) -> int:
  end = text.find("\n", start)
  return len(text) if end < 0 else end


def _input(text: str, start: int, number: int) -> Any:
  """Reads one JSON object; the rest of its last line must be empty."""
  # `raw_decode` does not skip white space.
  while start < len(text) and text[start].isspace():
    start += 1
  try:
    value, end = _DECODER.raw_decode(text, start)
  except (ValueError, RecursionError) as error:
    # What follows the colon is a place in the completion, not in the input.
    said = str(error).partition(":")[0] or "it is too deep"
    raise _UnreadableError(
      f"The input of call {number} is not valid JSON ({said})."
    ) from None
  if not isinstance(value, dict):
    raise _UnreadableError(f"The input of call {number} is no JSON object.")
  if text[end : _line_end(text, end)].strip():
    raise _UnreadableError(f"Something follows the input of call {number}.")
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


def _mismatch(calls: Sequence[Call], expected: Sequence[Call]) -> str | None:
  """Returns the first mistake in words, or None."""
  pairs = zip(calls, expected, strict=False)
  for number, pair in enumerate(pairs, 1):
    difference = _difference(*pair)
    if difference is not None:
      return f"Call {number} ({_quoted(pair[0][0])}): {difference}."
  if len(calls) < len(expected):
    return f"After call {len(calls)} another call is missing."
  if len(calls) > len(expected):
    return f"Call {len(expected) + 1} is one too many."
  return None


def _difference(call: Call, expected: Call) -> str | None:
  """Returns how a call differs from the expected one, without naming it."""
  if call[0] != expected[0]:
    return "this is not the tool to call here"
  return _value_difference(call[1], expected[1], "", 0)


def _value_difference(value, expected, path: str, depth: int) -> str | None:
  if depth > _MAX_DEPTH:
    return f"the value of {_quoted(path)} is too deep"
  if isinstance(value, dict) and isinstance(expected, Mapping):
    return _object_difference(value, expected, path, depth)
  if isinstance(value, list) and isinstance(expected, list):
    if len(value) != len(expected):
      return f"the list {_quoted(path)} has the wrong length, {len(value)}"
    for i, pair in enumerate(zip(value, expected, strict=True)):
      found = _value_difference(*pair, f"{path}[{i}]", depth + 1)
      if found is not None:
        return found
    return None
  if _kind(value) != _kind(expected):
    return f"{_quoted(path)} has the wrong type, {_kind(value)}"
  if value != expected:
    return f"the value of {_quoted(path)} is not right"
  return None


def _object_difference(value, expected, path: str, depth: int) -> str | None:
  def named(field):
    return _quoted(f"{path}.{field}" if path else field)

  for field in value:
    if field not in expected:
      return f"{named(field)} does not belong there"
  for field in expected:
    if field not in value:
      return f"{named(field)} is missing"
  for field, inner in value.items():
    place = f"{path}.{field}" if path else field
    found = _value_difference(inner, expected[field], place, depth + 1)
    if found is not None:
      return found
  return None


def _kind(value: Any) -> str:
  """Returns JSON's name for the type of a value."""
  # Python counts truth values among the integers, so they come first.
  if value is None or isinstance(value, bool):
    return "null" if value is None else "boolean"
  if isinstance(value, int | float):
    return "number"
  if isinstance(value, str):
    return "string"
  return "object" if isinstance(value, Mapping) else "array"


def _quoted(name: str) -> str:
  return f"`{envs_text.shortened(name)}`"
