"""Fields of rows as their types come."""

import decimal

import pytest

from distil_jax.config.environments import MathConfig
from distil_jax.envs import rows
from distil_jax.envs.math import Math


@pytest.mark.parametrize(
  ("value", "text"),
  [
    ("18", "18"),
    (18, "18"),
    (-0.5, "-0.5"),
    (1e-7, "1e-07"),
    (True, "True"),
    (decimal.Decimal("5.50"), "5.50"),
    ([18], "18"),
    (["x", 2, 0.5], "x, 2, 0.5"),
    (None, None),
  ],
)
def test_an_answer_is_a_text_whatever_its_type(value, text):
  assert rows.answer({"answer": value}) == text
  assert rows.answer({}) is None


@pytest.mark.parametrize("value", [[], {}, {"a": 1}, [[1]], [None]])
def test_other_answers_are_refused(value):
  with pytest.raises(ValueError, match="answer must be a text, a number"):
    rows.answer({"answer": value})


@pytest.mark.parametrize(
  ("answer", "right", "wrong"),
  [
    (18, "18", "1.8"),
    (0.5, "1/2", "5"),
    (1e-7, "0.0000001", "0.0"),
    ([2, 5], "5, 2", "2"),
  ],
)
def test_numbers_and_lists_are_judged_by_value(answer, right, wrong):
  made = Math(MathConfig(symbolic=False))
  problem = made.problem({"prompt": "q", "answer": answer})
  assert made.judge(problem, f"\\boxed{{{right}}}").reward == 1
  assert made.judge(problem, f"\\boxed{{{wrong}}}").reward == 0


@pytest.mark.parametrize(
  "value", [float("nan"), float("inf"), [1.0, float("nan")]]
)
def test_a_missing_number_is_no_answer(value):
  with pytest.raises(ValueError, match="a missing number"):
    rows.answer({"answer": value})


@pytest.mark.parametrize(
  "prompt",
  [
    '[{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]',
    [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}],
    [
      {"from": "system", "value": "s"},
      {"from": "human", "value": "q"},
      {"from": "gpt", "value": "a"},
    ],
  ],
)
def test_conversations_of_tables_and_of_sharegpt(prompt):
  found = rows.messages({"prompt": prompt})
  assert [(x["role"], x["content"]) for x in found] == [
    ("system", "s"),
    ("user", "q"),
  ]


@pytest.mark.parametrize(
  "prompt", ['[{"a": 1}]', "[{", "[1, 2]", '[{"role": null}]', "[]"]
)
def test_other_texts_of_json_are_questions(prompt):
  assert rows.messages({"prompt": prompt})[-1]["content"] == prompt
