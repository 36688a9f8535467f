"""Fields of rows as their types come."""

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
