import copy
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distil_jax.config.environments import ToolCallsConfig
from distil_jax.envs.tool_calls import ToolCalls
from distil_jax.types import Status
from tests.paths import DATA

DATA = DATA / "tooluse/test.json"
CALLS = [
  ("search", {"query": "a b", "page": 1, "where": {"tags": ["x", "y"]}}),
  ("open", {"id": "7", "exact": True}),
]


def answer(calls):
  return json.dumps(
    [{"Action": name, "Action_Input": json.dumps(x)} for name, x in calls]
  )


def written(calls, indent=None):
  return "\n".join(
    f"Thought: so\nAction: {name}\nAction Input: {json.dumps(x, indent=indent)}"
    for name, x in calls
  )


ROW = {"prompt": "Which?", "answer": answer(CALLS), "system": None}
PROBLEM = ToolCalls().problem(ROW, 4)


def judge(completion, **changed):
  return ToolCalls(ToolCallsConfig(**changed)).judge(PROBLEM, completion)


def edited(edit):
  calls = copy.deepcopy(CALLS)
  edit(calls)
  return written(calls)


def test_a_row_becomes_a_problem():
  assert PROBLEM.index == 4
  assert PROBLEM.messages == ({"role": "user", "content": "Which?"},)
  assert PROBLEM.answer == (
    'Action: search\nAction Input: {"query": "a b", "page": 1, "where": '
    '{"tags": ["x", "y"]}}\nAction: open\nAction Input: {"id": "7", "exact": '
    "true}"
  )
  assert PROBLEM.solution == PROBLEM.answer
  given = ToolCalls().problem({**ROW, "solution": "so", "system": "s"})
  assert given.solution == "so"
  assert given.messages[0] == {"role": "system", "content": "s"}
  as_they_are = [{"Action": n, "Action_Input": x} for n, x in CALLS]
  assert ToolCalls().problem({**ROW, "answer": as_they_are}).answer == (
    PROBLEM.answer
  )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"prompt": ""}, "no prompt"),
    ({"prompt": 3}, "prompt must be a string, got int"),
    ({"answer": None}, "a list of calls, got None"),
    ({"answer": "[]"}, r"a list of calls, got \[\]"),
    ({"answer": "[1]"}, "call 1 of answer must be an object, got 1"),
    ({"answer": "[{"}, "answer is not valid JSON"),
    ({"answer": '[{"Action_Input": {}}]'}, "name of a tool in Action"),
    ({"answer": '[{"Action": " ", "Action_Input": {}}]'}, "name of a tool"),
    ({"answer": '[{"Action": "a"}]'}, "Action_Input in call 1 .* an object"),
    ({"answer": '[{"Action": "a", "Action_Input": []}]'}, "be an object"),
    ({"answer": '[{"Action": "a", "Action_Input": "{"}]'}, "not valid JSON"),
    ({"answer": '[{"Action": "a", "Action_Input": {"x": NaN}}]'}, "NaN"),
    ({"answer": '[{"Action": "a", "Action_Input": {"x":1,"x":2}}]'}, "twice"),
  ],
)
def test_a_row_that_is_no_problem(change, message):
  with pytest.raises(ValueError, match=message):
    ToolCalls().problem({**ROW, **change})


@pytest.mark.parametrize(
  "completion",
  [
    written(CALLS),
    written(CALLS, indent=2),
    PROBLEM.answer,
    f"Action: wrong\nAction Input: {{}}\n</think>\n\n{PROBLEM.answer}",
    f"Action: wrong </think> {PROBLEM.answer}",
    PROBLEM.answer.replace("Action", "  Action"),
    PROBLEM.answer.replace("Action: search", "Action:search \t"),
    PROBLEM.answer.replace('"page": 1', '"page": 1.0'),
    PROBLEM.answer.replace(
      '"query": "a b", "page": 1', '"page": 1, "query": "\\u0061 b"'
    ),
    PROBLEM.answer.replace("Input: {", "Input:\n\n{"),
    PROBLEM.answer + "\nObservation: none\nFinal Answer: Action: none",
    PROBLEM.answer.replace("\n", "\r\n"),
  ],
  ids=range(12),
)
def test_correct(completion):
  verdict = judge(completion)
  assert verdict.feedback == ""
  assert verdict.reward == 1.0
  assert verdict.status is Status.CORRECT
  assert verdict.details == {"calls": 2, "right_calls": 2}


@pytest.mark.parametrize(
  ("completion", "said", "right"),
  [
    (edited(lambda c: c.reverse()), "Call 1 (`open`): this is not the tool", 0),
    (edited(lambda c: c.pop()), "After call 1 another call is missing", 1),
    (edited(lambda c: c.append(c[0])), "Call 3 is one too many", 2),
    (
      edited(lambda c: c[0][1].update(page=2)),
      "Call 1 (`search`): the value of `page` is not right",
      1,
    ),
    (
      edited(lambda c: c[0][1].update(page="1")),
      "`page` has the wrong type, string",
      1,
    ),
    (
      edited(lambda c: c[0][1].update(page=True)),
      "`page` has the wrong type, boolean",
      1,
    ),
    (
      edited(lambda c: c[1][1].update(exact=1)),
      "Call 2 (`open`): `exact` has the wrong type, number",
      1,
    ),
    (
      edited(lambda c: c[1][1].update(exact=None)),
      "`exact` has the wrong type, null",
      1,
    ),
    (edited(lambda c: c[0][1].pop("query")), "`query` is missing", 1),
    (edited(lambda c: c[0][1].update(x=1)), "`x` does not belong there", 1),
    (
      edited(lambda c: c[0][1]["where"].update(more=1)),
      "`where.more` does not belong there",
      1,
    ),
    (
      edited(lambda c: c[0][1]["where"]["tags"].reverse()),
      "the value of `where.tags[0]` is not right",
      1,
    ),
    (
      edited(lambda c: c[0][1]["where"]["tags"].pop()),
      "the list `where.tags` has the wrong length, 1",
      1,
    ),
    (
      edited(lambda c: c[0][1].update(where=[])),
      "`where` has the wrong type, array",
      1,
    ),
    (
      edited(lambda c: c[1][1].update(id={})),
      "`id` has the wrong type, object",
      1,
    ),
  ],
)
def test_wrong(completion, said, right):
  verdict = judge(completion)
  assert said in verdict.feedback
  assert verdict.reward == 0.0
  assert verdict.status is Status.WRONG
  assert verdict.details["right_calls"] == right


@pytest.mark.parametrize(
  ("completion", "said"),
  [
    ("", "No call was found."),
    ("I would search.", "No call was found."),
    ("Use Action: search\nAction Input: {}", "before its `Action:`"),
    ("Action:\nAction Input: {}", "`Action:` of call 1 names no tool"),
    ("Action: a", "Call 1 has no `Action Input:`"),
    ("Action: a\nAction: b\nAction Input: {}", "Call 1 has no"),
    ("Action Input: {}", "stands before its `Action:`"),
    ("Action: a\nAction Input: {}\nAction Input: {}", "stands before"),
    ("Action: a\nAction Input: {'x': 1}", "call 1 is not valid JSON"),
    ("Action: a\nAction Input:", "is not valid JSON"),
    ("Action: a\nAction Input: []", "call 1 is no JSON object"),
    ("Action: a\nAction Input: {} and", "Something follows the input"),
    ('Action: a\nAction Input: {"x": NaN}', "NaN is no number"),
    ('Action: a\nAction Input: {"x": 1, "x": 2}', "stands twice"),
    ("Action: a\nAction Input: " + '{"a":' * 5000, "is not valid JSON"),
    ('Action: a\nAction Input: {"x": ' + "9" * 9999 + "}", "not valid JSON"),
    (f"{PROBLEM.answer}\n</think>\ndone", "No call was found"),
    (f"{PROBLEM.answer}</think>", "No call was found"),
  ],
  ids=range(18),
)
def test_unparsable(completion, said):
  verdict = judge(completion)
  assert said in verdict.feedback
  assert "Write each call as a line `Action:`" in verdict.feedback
  assert len(verdict.feedback) < 400
  assert verdict.reward == 0.0
  assert verdict.status is Status.UNPARSABLE
  assert verdict.details == {"calls": None, "right_calls": 0}


def test_the_calls_are_named_only_on_request():
  for completion in ("", "Action: x\nAction Input: {}", written(CALLS[:1])):
    assert "a b" not in judge(completion).feedback
    revealed = judge(completion, reveal_answer=True).feedback
    assert revealed.startswith(judge(completion).feedback)
    assert revealed.endswith(PROBLEM.answer)
    silent = judge(completion, reveal_answer=True, feedback=False)
    assert silent.feedback == ""
  assert judge(PROBLEM.answer, reveal_answer=True).feedback == ""


def test_a_field_with_a_long_name_is_quoted_in_part():
  verdict = judge(edited(lambda c: c[0][1].update({"y" * 999: 1})))
  assert f"`{'y' * 40}…` does not belong there" in verdict.feedback


@pytest.mark.parametrize(
  "completion",
  [
    "Action: a\nAction Input: {}\n" * 40_000,
    "Action:\n" * 125_000,
    "Action: a\nAction Input:" + " " * 1_000_000,
    "Action: a\nAction Input: " + "[" * 1_000_000,
    "Action: a\nAction Input: {" + '"a": 1, ' * 120_000,
    " " * 1_000_000 + "Action",
    "</think>" * 125_000,
  ],
  ids=range(7),
)
def test_a_huge_completion_is_judged_fast(completion):
  begun = time.process_time()
  assert judge(completion).reward == 0.0
  assert time.process_time() - begun < 5  # not a speed, but no square of it


json_values = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
pieces = st.lists(
  st.sampled_from(["Action: ", "Action Input: ", "\n", "search", "</think>"])
  | st.text()
  | json_values.map(json.dumps)
).map("".join)


@settings(deadline=None)
@given(pieces)
def test_whatever_it_says_there_is_a_verdict(completion):
  verdict = judge(completion, reveal_answer=True)
  assert verdict.reward == (verdict.status is Status.CORRECT)
  assert bool(verdict.feedback) == (verdict.reward == 0)


@settings(deadline=None)
@given(
  st.lists(
    st.tuples(
      st.from_regex(r"[a-zA-Z_]\w*", fullmatch=True),
      st.dictionaries(
        st.text(),
        st.recursive(
          st.none()
          | st.booleans()
          | st.integers()
          | st.floats(allow_nan=False, allow_infinity=False)
          | st.text(),
          lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ),
      ),
    ),
    min_size=1,
    max_size=3,
  )
)
def test_expected_calls_are_accepted_however_they_are_laid_out(calls):
  problem = ToolCalls().problem({**ROW, "answer": answer(calls)})
  for completion in (problem.answer, written(calls, indent=1)):
    assert ToolCalls().judge(problem, completion).reward == 1.0


def test_every_reference_is_accepted_and_every_edit_refused():
  lines = DATA.read_text(encoding="utf-8").splitlines()
  problems = [
    ToolCalls().problem(json.loads(x), i) for i, x in enumerate(lines)
  ]
  assert len(problems) == 68
  num_edits = 0
  for problem in problems:
    assert ToolCalls().judge(problem, problem.answer).reward == 1.0
    assert "Action Input" in problem.messages[-1]["content"]
    for calls in edits(list(problem.details["calls"])):
      verdict = ToolCalls().judge(problem, written(calls))
      assert verdict.reward == 0.0, calls
      num_edits += 1
  assert num_edits > 1000


def edits(calls):
  """All that differ in one name, order, value, type or field, or in a call."""
  yield calls[:-1]
  yield [*calls, calls[0]]
  for i, (name, value) in enumerate(calls):
    others = calls[:i], calls[i + 1 :]
    for changed in ((name + "s", value), *((name, v) for v in values(value))):
      yield [*others[0], changed, *others[1]]
    if i and calls[i] != calls[i - 1]:
      yield [*calls[: i - 1], calls[i], calls[i - 1], *calls[i + 1 :]]


def values(value):
  """What differs in one place."""
  if isinstance(value, dict):
    yield {**value, "another": 1}
    for field, inner in value.items():
      yield {k: v for k, v in value.items() if k != field}
      yield from ({**value, field: changed} for changed in values(inner))
  elif isinstance(value, list):
    yield [*value, 1]
    for i, inner in enumerate(value):
      yield value[:i] + value[i + 1 :]
      for changed in values(inner):
        yield [*value[:i], changed, *value[i + 1 :]]
  else:
    yield [value]
    yield None if value is not None else 0
    yield str(value) + "x"
    if not isinstance(value, str):
      yield str(value)
      yield value + 1
