"""Judges tool calls by their names and inputs, as in ToolAlpaca."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from distil_jax.config.environments import ToolCallsConfig
from distil_jax.envs import rows, tool_call_text, tool_call_values
from distil_jax.envs.tool_call_text import Call
from distil_jax.types import Problem, Status, Verdict


@dataclasses.dataclass(frozen=True)
class ToolCalls:
  """Judges by the calls alone: their names, their inputs, their order.

  Attributes:
    config: What counts, and how much the feedback says.
  """

  config: ToolCallsConfig = dataclasses.field(default_factory=ToolCallsConfig)
  required_fields: ClassVar = ("prompt",)  # an answer may be text or a list

  def problem(self, row: Mapping[str, Any], index: int = 0) -> Problem:
    """Reads a row of a data file.

    Args:
      row: `prompt`; `answer` or `tool_calls`, a list of calls, each an object
        with `Action` and `Action_Input`, or `name` and `arguments`, or
        `function` with these two, all as JSON texts or as values, or a text
        with Qwen's tags; optionally `tools`, whose schemas have the defaults of
        arguments; `system`; and `solution`, which is otherwise the calls as a
        completion writes them. Other fields are not read.
      index: Identity of the row within its data set.

    Raises:
      ValueError: A field is missing or malformed.
    """
    messages = rows.messages(row)
    given = row.get("answer")
    given = row.get("tool_calls") if given is None else given
    expected = _expected(given, may_be_empty=self.config.accept_no_call)
    calls = [(name, value) for name, value, _ in expected]
    shown = [
      (name, value if is_text else tool_call_values.without_nulls(value))
      for name, value, is_text in expected
    ]
    details: dict[str, Any] = {"calls": calls}
    if shown != calls:
      # Files of columns fill the fields that a call lacks with nulls.
      details |= {"calls": shown, "with_nulls": calls}
    is_tagged = not _has_actions(given)
    if is_tagged:
      details["is_tagged"] = True
    if self.config.accept_defaults:
      details["defaults"] = tool_call_values.defaults(row.get("tools"))
    answer = (
      tool_call_text.written_tags(shown)
      if is_tagged
      else tool_call_text.written_actions(shown)
    )
    return Problem(
      index=index,
      messages=messages,
      answer=answer,
      solution=rows.text(row, "solution") or answer or None,
      details=details,
    )

  def judge(self, problem: Problem, completion: str) -> Verdict:
    """Compares all calls, in their order unless the settings say otherwise.

    Numbers are compared by value, so that 2 is 2.0; they differ from strings
    and from truth values. The order of an object's fields is ignored, and so is
    the text before the last `</think>` and all text that is no call.

    Returns:
      A verdict whose reward is 1 or 0; `details` has the number of calls, None
      if they cannot be read, and how many of them are as expected.
    """
    expected = problem.details["calls"]
    comparison = tool_call_values.Comparison(
      expected=expected,
      with_nulls=problem.details.get("with_nulls"),
      defaults=problem.details.get("defaults") or {},
      is_ordered=self.config.ordered,
    )
    details: dict[str, Any] = {"calls": None, "right_calls": 0}
    is_tagged = problem.details.get("is_tagged", False)
    text = tool_call_text.after_thought(completion)
    try:
      calls = _read(text, expected, is_tagged=is_tagged)
    except tool_call_text.UnreadableError as error:
      is_none = isinstance(error, tool_call_text.NoCallError)
      if is_none and not expected and text.strip():
        return Verdict(1.0, "", Status.CORRECT, {"calls": 0, "right_calls": 0})
      wanted = (
        tool_call_text.TAGS_FORMAT
        if is_tagged
        else tool_call_text.ACTIONS_FORMAT
      )
      status, feedback = Status.UNPARSABLE, f"{error} {wanted}"
      if not expected:
        feedback = "No call is needed here: write an answer in words."
    else:
      right, feedback = comparison.result(calls)
      details = {"calls": len(calls), "right_calls": right}
      if feedback is None:
        return Verdict(1.0, "", Status.CORRECT, details)
      status = Status.WRONG
    if self.config.reveal_answer:
      feedback += f"\nThe expected calls are:\n{problem.answer}"
    return Verdict(
      0.0, feedback if self.config.feedback else "", status, details
    )


def _read(
  text: str, expected: Sequence[Call], *, is_tagged: bool
) -> list[Call]:
  def takes_no_input(number: int) -> bool:
    return number < len(expected) and not expected[number][1]

  if is_tagged:
    try:
      return tool_call_text.objects(text)
    except tool_call_text.NoCallError:
      pass
  return tool_call_text.actions(text, takes_no_input)


def _has_actions(answer: Any) -> bool:
  """Returns True if the calls of a row are written as actions."""
  calls = _decoded("answer", answer) if isinstance(answer, str) else answer
  if isinstance(calls, Mapping):
    calls = [calls]
  first = calls[0] if isinstance(calls, Sequence) and calls else None
  return isinstance(first, Mapping) and first.get("Action") is not None


def _decoded(what: str, text: str) -> Any:
  if what == "answer" and "<tool_call>" in text:
    try:
      found = tool_call_text.objects(text)
    except tool_call_text.UnreadableError as error:
      raise ValueError(f"answer: {error}") from None
    return [{"name": name, "arguments": value} for name, value in found]
  if what == "answer" and not text.strip():
    return []
  try:
    return tool_call_text.decoded(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{what} is not valid JSON: {error}") from None


def _expected(
  answer: Any, *, may_be_empty: bool
) -> list[tuple[str, Any, bool]]:
  """Returns name and input of each call, and if the input was a JSON text."""
  is_text = isinstance(answer, str)
  given = _decoded("answer", answer) if is_text else answer
  if isinstance(given, Mapping):
    # A single call, or a whole message of an assistant.
    inner = given.get("tool_calls")
    given = [given] if inner is None and given.get("role") is None else inner
  if may_be_empty and (given is None or given == []):
    return []
  if not isinstance(given, Sequence) or isinstance(given, str) or not given:
    raise ValueError(
      f"answer must be a list of calls, got {given!r}; "
      "environment.accept_no_call=true takes rows that expect none"
    )
  return [
    _expected_call(call, f"call {number} of answer", is_text)
    for number, call in enumerate(given, 1)
  ]


def _expected_call(
  call: Any, where: str, is_text: bool
) -> tuple[str, Any, bool]:
  if not isinstance(call, Mapping):
    raise ValueError(f"{where} must be an object, got {call!r}")
  name, value = call.get("Action"), call.get("Action_Input")
  fields = "Action", "Action_Input"
  if name is None:
    other, given = tool_call_text.name_and_input(call)
    if other is not None:
      name, fields = other, ("name", "arguments")
      # A tool without parameters may have no input at all.
      value = {} if given is None or given == "" else given
  if not isinstance(name, str) or not name.strip():
    raise ValueError(
      f"{where} must have the name of a tool in Action, or in name"
    )
  if isinstance(value, str):
    value = _decoded(f"{fields[1]} in {where}", value)
    is_text = True
  if not isinstance(value, Mapping):
    raise ValueError(f"{fields[1]} in {where} must be an object")
  return name.strip(), value, is_text
