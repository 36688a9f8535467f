"""Tables of rows and completions in every form that calls are written in."""

import json

import pytest

from distil_jax.config.environments import ToolCallsConfig
from distil_jax.envs.tool_calls import ToolCalls
from distil_jax.types import Status

WEATHER = {"name": "weather", "arguments": {"city": "Bern", "days": 2}}
TIME = {"name": "time", "arguments": {}}
OPENAI = {
  "id": "x",
  "type": "function",
  "function": {
    "name": "weather",
    "arguments": '{"city": "Bern", "days": 2}',
  },
}
TAGGED = f"<tool_call>\n{json.dumps(WEATHER)}\n</tool_call>"
TAGGED_TIME = f"<tool_call>{json.dumps(TIME)}</tool_call>"
ACTIONS = 'Action: weather\nAction Input: {"city": "Bern", "days": 2}'


def judged(answer, completion, row=None, **settings):
  environment = ToolCalls(ToolCallsConfig(**settings))
  problem = environment.problem(
    {"prompt": "q", "answer": answer, **(row or {})}
  )
  return environment.judge(problem, completion)


ROWS = [
  [WEATHER],
  WEATHER,
  json.dumps([WEATHER]),
  json.dumps(WEATHER),
  TAGGED,
  f"I look it up.\n{TAGGED}",
  [{**WEATHER, "arguments": json.dumps(WEATHER["arguments"])}],
  [{"name": "weather", "parameters": WEATHER["arguments"]}],
  [OPENAI],
  json.dumps([OPENAI]),
  {"role": "assistant", "content": None, "tool_calls": [OPENAI]},
  [{**WEATHER, "Action": None, "Action_Input": None}],
]
RIGHT = [
  TAGGED,
  f"I look.\n{TAGGED}\n",
  f"<think>\n<tool_call>x</tool_call>\n</think>\n{TAGGED}",
  f"<tool_call>x</tool_call>\n</think>{TAGGED}",
  f"{TAGGED}\n<think>Or {TAGGED_TIME}",
  TAGGED.replace("\n", ""),
  TAGGED.replace(": 2", ": 2.0"),
  f"So:\n```json\n{json.dumps(WEATHER)}\n```\nThat is all.",
  f"```json\n[{json.dumps(WEATHER)}]\n```",
  f"```\n{json.dumps(WEATHER, indent=2)}\n```",
  json.dumps(WEATHER),
  json.dumps([WEATHER]),
  json.dumps(OPENAI),
  json.dumps({"tool_calls": [OPENAI]}),
  f"```json\n{json.dumps({'tool_calls': [OPENAI]})}\n```",
  '```json\n{"a": 1}\n```\n' + f"```json\n{json.dumps(WEATHER)}\n```",
  ACTIONS,
]
WRONG = [
  ("", Status.UNPARSABLE, "No call was found"),
  ("It rains.", Status.UNPARSABLE, "No call was found"),
  (f"<think>{TAGGED}", Status.UNPARSABLE, "No call was found"),
  (f"<think>\n{TAGGED}\n", Status.UNPARSABLE, "No call was found"),
  (TAGGED + TAGGED, Status.WRONG, "Call 2 is one too many"),
  (TAGGED_TIME, Status.WRONG, "not the tool to call"),
  (TAGGED.replace("Bern", "Basel"), Status.WRONG, "value of `city`"),
  (TAGGED.replace(": 2", ': "2"'), Status.WRONG, "wrong type, string"),
  (TAGGED.replace('"days": 2', '"x": 2'), Status.WRONG, "`x` does not belong"),
  (TAGGED.replace(', "days": 2', ""), Status.WRONG, "`days` is missing"),
  (TAGGED[:-12], Status.UNPARSABLE, "has no </tool_call>"),
  ("<tool_call>{</tool_call>", Status.UNPARSABLE, "not valid JSON"),
  ("<tool_call>[1]</tool_call>", Status.UNPARSABLE, "no JSON object"),
  ("<tool_call>{}</tool_call>", Status.UNPARSABLE, "names no tool"),
  ("```json\n{\n```", Status.UNPARSABLE, "not valid JSON"),
  (
    '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
    Status.UNPARSABLE,
    "arguments of call 1 are no JSON object",
  ),
]


def test_every_form_of_a_row_takes_every_form_of_a_completion():
  for answer in ROWS:
    for completion in RIGHT:
      verdict = judged(answer, completion)
      assert verdict.reward == 1.0, (answer, completion, verdict)
    for completion, status, said in WRONG:
      verdict = judged(answer, completion)
      assert verdict.status is status, (answer, completion, verdict)
      assert said in verdict.feedback
      if status is Status.UNPARSABLE:
        assert "Write each call as <tool_call>" in verdict.feedback


def test_calls_in_their_own_field_and_form():
  environment = ToolCalls()
  problem = environment.problem({"prompt": "q", "tool_calls": [OPENAI, TIME]})
  assert (
    problem.solution
    == f"{TAGGED}\n<tool_call>\n{json.dumps(TIME)}\n</tool_call>"
  )
  assert environment.judge(problem, problem.solution).reward == 1.0
  actions = environment.problem(
    {"prompt": "q", "answer": [{"Action": "a", "Action_Input": "{}"}]}
  )
  assert actions.answer == "Action: a\nAction Input: {}"


@pytest.mark.parametrize(
  ("answer", "completion"),
  [
    (TIME, "<tool_call>" + json.dumps({"name": "time"}) + "</tool_call>"),
    (TIME, '<tool_call>{"name": "time", "arguments": ""}</tool_call>'),
    (TIME, '<tool_call>{"name": "time", "arguments": null}</tool_call>'),
    ({"name": "time"}, TAGGED_TIME),
    ({"name": "time", "arguments": ""}, TAGGED_TIME),
    ({"name": "time", "arguments": None}, TAGGED_TIME),
    ([{"Action": "time", "Action_Input": "{}"}], "Action: time\nAction Input:"),
    (
      [{"Action": "time", "Action_Input": "{}"}],
      "Action: time\nAction Input: \n",
    ),
    ([{"Action": "time", "Action_Input": "{}"}], "Action: time"),
    (
      [{"Action": "time", "Action_Input": "{}"}],
      "Action: time\nAction Input:\n```json\n{}\n```",
    ),
  ],
)
def test_a_tool_without_parameters_may_have_no_input(answer, completion):
  assert judged(answer, completion).reward == 1.0


def test_a_tool_with_parameters_may_not():
  assert (
    judged(WEATHER, '<tool_call>{"name": "weather"}</tool_call>').reward == 0
  )
  answer = [{"Action": "a", "Action_Input": '{"x": 1}'}]
  assert judged(answer, "Action: a\nAction Input:").status is Status.UNPARSABLE
  assert judged(answer, "Action: a").status is Status.UNPARSABLE


def test_an_input_may_stand_in_a_fence():
  answer = [{"Action": "a", "Action_Input": '{"x": 1}'}]
  for completion in (
    'Action: a\nAction Input: ```json\n{"x": 1}\n```',
    'Action: a\nAction Input:\n```\n{"x": 1}\n```\nDone.',
  ):
    assert judged(answer, completion).reward == 1.0


def test_an_action_in_a_thought_that_never_ends_is_none():
  answer = [{"Action": "a", "Action_Input": "{}"}]
  text = "Action: a\nAction Input: {}"
  assert judged(answer, f"<think>\n{text}").status is Status.UNPARSABLE
  assert judged(answer, f"{text}\n<think>\n{text}").reward == 1.0
  quoted = [{"Action": "a", "Action_Input": {"x": "<think>"}}]
  assert judged(quoted, 'Action: a\nAction Input: {"x": "<think>"}').reward == 1


def test_the_order_of_calls_counts_unless_it_need_not():
  both = [WEATHER, TIME]
  swapped = f"{TAGGED_TIME}\n{TAGGED}"
  assert judged(both, f"{TAGGED}\n{TAGGED_TIME}").reward == 1.0
  assert judged(both, swapped).reward == 0.0
  assert judged(both, swapped, ordered=False).reward == 1.0
  for completion, said in (
    (
      f"{TAGGED_TIME}\n{TAGGED.replace('Bern', 'x')}",
      "Call 2 (`weather`): the",
    ),
    (TAGGED_TIME, "another call is missing"),
    (f"{swapped}{TAGGED}", "Call 3 is one too many"),
    (f"{TAGGED}{TAGGED}", "Call 2 (`weather`): this is not the tool"),
  ):
    verdict = judged(both, completion, ordered=False)
    assert verdict.status is Status.WRONG
    assert said in verdict.feedback, verdict


TOOLS = [
  {
    "type": "function",
    "function": {
      "name": "weather",
      "parameters": {
        "type": "object",
        "properties": {
          "city": {"type": "string"},
          "days": {"type": "integer", "default": 2},
          "unit": {"type": "string", "default": "C"},
        },
      },
    },
  }
]


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
def test_defaults_may_be_written_out_or_left_out(tools):
  def judge(completion, **settings):
    return judged(WEATHER, completion, {"tools": tools}, **settings).reward

  written = TAGGED.replace(": 2", ': 2, "unit": "C"')
  left_out = TAGGED.replace(', "days": 2', "")
  for completion in (written, left_out):
    assert judge(completion) == 0.0
    assert judge(completion, accept_defaults=True) == 1.0
  for completion in (
    TAGGED.replace(": 2", ': 2, "unit": "F"'),
    TAGGED.replace(": 2", ': 2, "x": "C"'),
    TAGGED.replace('"city": "Bern", ', ""),
    TAGGED.replace(": 2", ": 3"),
  ):
    assert judge(completion, accept_defaults=True) == 0.0


@pytest.mark.parametrize("answer", [[], "[]", None, ""])
def test_a_row_that_expects_no_call(answer):
  with pytest.raises(ValueError, match="accept_no_call=true"):
    judged(answer, "Hello.")
  for completion, reward in (
    ("Hello.", 1),
    ("<think>Should I?</think>No.", 1),
    ('See:\n```json\n{"a": 1}\n```', 1),
    ("", 0),
    ("<think>No", 0),
    (TAGGED, 0),
    (ACTIONS, 0),
    (f"```json\n{json.dumps(WEATHER)}\n```", 0),
    ("<tool_call>{", 0),
  ):
    verdict = judged(answer, completion, accept_no_call=True)
    assert verdict.reward == reward, (completion, verdict)
    assert bool(verdict.feedback) == (not reward)


def test_nulls_of_a_file_of_columns_are_no_fields():
  columns = [
    {
      "name": "weather",
      "arguments": {
        "city": "Bern",
        "days": 2,
        "zone": None,
        "at": {"x": 1, "y": None},
        "all": [{"p": None, "q": 1}],
      },
    }
  ]
  problem = ToolCalls().problem({"prompt": "q", "answer": columns})
  assert "null" not in problem.answer
  call = {"city": "Bern", "days": 2, "at": {"x": 1}, "all": [{"q": 1}]}
  for changes, reward in (
    ({}, 1),
    ({"zone": None}, 1),
    ({"at": {"x": 1, "y": None}}, 1),
    ({"all": [{"p": None, "q": 1}]}, 1),
    ({"zone": "x"}, 0),
    ({"other": None}, 0),
    ({"at": {"x": None}}, 0),
    ({"at": {"x": 1, "z": None}}, 0),
    ({"city": None}, 0),
  ):
    text = json.dumps({"name": "weather", "arguments": {**call, **changes}})
    verdict = ToolCalls().judge(problem, f"<tool_call>{text}</tool_call>")
    assert verdict.reward == reward, (changes, verdict)


def test_a_null_in_a_text_of_json_is_a_value():
  answer = json.dumps([{"name": "a", "arguments": {"x": None}}])
  right = '<tool_call>{"name": "a", "arguments": {"x": null}}</tool_call>'
  assert judged(answer, right).reward == 1.0
  assert judged(answer, '<tool_call>{"name": "a"}</tool_call>').reward == 0.0


def test_nothing_may_follow_an_input_that_is_a_text():
  arguments = OPENAI["function"]["arguments"]
  for rest, reward in (("", 1.0), (" \n", 1.0), (" {}", 0.0), ("x", 0.0)):
    call = {"name": "weather", "arguments": arguments + rest}
    verdict = judged([OPENAI], f"<tool_call>{json.dumps(call)}</tool_call>")
    assert verdict.reward == reward, rest
