"""Compares the calls of a completion with those of a row, field by field."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax.envs import completion_text as envs_text
from distil_jax.envs.tool_call_text import Call

# Levels of a value that are compared; a deeper value counts as different.
_MAX_DEPTH = 100
# Calls that are compared in any order; more are compared as they stand.
_MAX_UNORDERED = 100


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Compares calls with expected ones.

  Attributes:
    expected: The expected calls.
    with_nulls: The same with fields that are null in the file, which a call may
      have as well; None if there are none.
    defaults: Values of arguments, by tool, that may be written or left out.
    is_ordered: True if the order of calls counts.
  """

  expected: Sequence[Call]
  with_nulls: Sequence[Call] | None
  defaults: Mapping[str, Mapping[str, Any]]
  is_ordered: bool

  def result(self, calls: Sequence[Call]) -> tuple[int, str | None]:
    """Returns how many calls are right, and the first mistake or None."""
    order = self._order(calls)
    differences = [
      None if place is None else self._difference(call, place)
      for call, place in zip(calls, order, strict=True)
    ]
    right = sum(
      place is not None and found is None
      for place, found in zip(order, differences, strict=True)
    )
    for number, found in enumerate(differences, 1):
      if found is not None:
        name = _quoted(calls[number - 1][0])
        return right, f"Call {number} ({name}): {found}."
    if len(calls) < len(self.expected):
      return right, f"After call {len(calls)} another call is missing."
    if len(calls) > len(self.expected):
      number = order.index(None) + 1
      return right, f"Call {number} is one too many."
    return right, None

  def _order(self, calls: Sequence[Call]) -> list[int | None]:
    """Returns the expected call that each call is compared with."""
    count = len(self.expected)
    places = [i if i < count else None for i in range(len(calls))]
    if self.is_ordered or max(len(calls), count) > _MAX_UNORDERED:
      return places
    free = dict.fromkeys(range(count))
    found: list[int | None] = [None] * len(calls)
    # First those that are right, then those of the same tool, then the rest.
    for is_match in (
      lambda call, i: self._difference(call, i) is None,
      lambda call, i: call[0] == self.expected[i][0],
      lambda call, i: True,
    ):
      for number, call in enumerate(calls):
        if found[number] is None:
          place = next((i for i in free if is_match(call, i)), None)
          if place is not None:
            found[number] = place
            del free[place]
    return found

  def _difference(self, call: Call, place: int) -> str | None:
    """Returns how a call differs from an expected one, without naming it."""
    name, expected = self.expected[place]
    if call[0] != name:
      return "this is not the tool to call here"
    nulls = self.with_nulls[place][1] if self.with_nulls else expected
    value = _without(call[1], expected, nulls, 0)
    for field, default in self.defaults.get(name, {}).items():
      if isinstance(value, dict):
        value = _with_default(value, expected, field, default)
    return _value_difference(value, expected, "", 0)


def without_nulls(value: Any, depth: int = 0) -> Any:
  """Returns a value without the fields that are null, at any depth."""
  if depth > _MAX_DEPTH:
    return value
  if isinstance(value, Mapping):
    return {
      field: without_nulls(inner, depth + 1)
      for field, inner in value.items()
      if inner is not None
    }
  if isinstance(value, list):
    return [without_nulls(inner, depth + 1) for inner in value]
  return value


def defaults(tools: Any) -> dict[str, dict[str, Any]]:
  """Returns the defaults of arguments by tool, from JSON schemas of a row.

  Args:
    tools: A list of schemas as OpenAI has them, or its JSON text; what is no
      such schema has no defaults.
  """
  if isinstance(tools, str):
    try:
      tools = json.loads(tools)
    except (ValueError, RecursionError):
      raise ValueError("tools is not valid JSON") from None
  found = {}
  for tool in tools if isinstance(tools, list) else []:
    schema = tool.get("function") or tool if isinstance(tool, Mapping) else {}
    parameters = schema.get("parameters")
    fields = parameters if isinstance(parameters, Mapping) else {}
    inner = fields.get("properties")
    fields = inner if isinstance(inner, Mapping) else fields
    found[str(schema.get("name"))] = {
      name: field["default"]
      for name, field in fields.items()
      if isinstance(field, Mapping) and field.get("default") is not None
    }
  return found


def _with_default(value, expected, field: str, default: Any) -> Any:
  """Returns an input with a default written out as the expected one is."""
  if field in value and field not in expected:
    is_same = _value_difference(value[field], default, field, 0) is None
    return {k: v for k, v in value.items() if k != field or not is_same}
  if field in expected and field not in value:
    return {**value, field: default}
  return value


def _without(value: Any, expected: Any, nulls: Any, depth: int) -> Any:
  """Removes nulls that the file has in the same places."""
  if expected is nulls or depth > _MAX_DEPTH:
    return value
  if isinstance(value, dict) and isinstance(nulls, Mapping):
    return {
      field: _without(inner, expected.get(field), nulls.get(field), depth + 1)
      for field, inner in value.items()
      if not (inner is None and field not in expected and field in nulls)
    }
  is_list = isinstance(value, list) and isinstance(nulls, list)
  if is_list and len(value) == len(nulls):
    triples = zip(value, expected, nulls, strict=True)
    return [_without(*x, depth + 1) for x in triples]
  return value


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
