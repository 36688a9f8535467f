"""Student and teacher on each token of one completion."""

import html
import re
import sys

import numpy as np
import pytest

import distil_jax as dj
from distil_jax import config
from distil_jax.analysis import token_view
from distil_jax.analysis.teacher_check import report

PROMPT = "Compute 47 + 8 - 3."
WRONG = "47 + 8 = 54\n54 - 3 = 51\n<answer>51</answer>"
FEEDBACK = "Step 1 is wrong: you wrote 47 + 8 = 54, it should be 47 + 8 = 55."


@pytest.fixture(scope="module")
def policy():
  return dj.load_policy("embedded:calculator")


@pytest.fixture(scope="module")
def view(policy):
  return dj.inspect(policy, PROMPT, WRONG, feedback=FEEDBACK)


def test_the_teacher_reads_the_feedback_and_the_student_does_not(view):
  assert FEEDBACK in view.sample.teacher_prompt
  assert FEEDBACK not in view.sample.student_prompt
  assert PROMPT in view.sample.student_prompt


def test_the_table_has_a_row_for_each_token_and_the_end(view, policy):
  table = view.to_dict()
  ids = policy.tokenizer.encode(WRONG)
  assert table["token_id"] == [*ids, policy.tokenizer.end_id]
  assert {len(column) for column in table.values()} == {len(ids) + 1}
  for name in ("student_top", "teacher_top"):
    probs = np.array([[prob for _, prob in row] for row in table[name]])
    assert (np.diff(probs, axis=1) <= 0).all()


def test_costs_of_the_objective_are_those_of_a_plain_pass(view):
  table = view.to_dict()
  np.testing.assert_allclose(
    table["cost"], table["cross_entropy"], rtol=0, atol=1e-4
  )


def test_future_costs_are_means_of_what_comes(view):
  table = view.to_dict()
  costs = np.array(table["cost"])
  means = [costs[t + 1 :].mean() for t in range(len(costs) - 1)]
  np.testing.assert_allclose(table["future_cost"][:-1], means, atol=1e-5)
  assert table["future_cost"][-1] == 0


def test_an_objective_of_a_run_is_taken_without_what_compares_a_group(policy):
  objective = config.DistilConfig()  # its baseline and rewards need a group
  settings = token_view._config(
    policy,
    dj.Problem(0, ({"role": "user", "content": PROMPT},), ""),
    9,
    "",
    objective,
  )
  changed = {
    name
    for name, value in settings.objective
    if value != getattr(objective, name)
  }
  assert changed == {"baseline", "reward_weight", "failure_weighted"}


def test_the_teacher_finds_the_wrong_digit(view):
  table = view.to_dict()
  place = table["token"].index("4", 1)  # of 54; the first is that of 47
  assert table["teacher_top"][place][0][0] == "5"
  assert table["teacher_log_prob"][place] < table["log_prob"][place]


def test_a_notebook_shows_every_token_coloured(view):
  shown = view._repr_html_()
  stream = re.search(r'<p class="stream">(.*?)</p>', shown, re.DOTALL)[1]
  texts = re.findall(r"<span [^>]*>(.*?)</span>", stream)
  assert [html.unescape(x) for x in texts] == view.to_dict()["token"]
  assert stream.count("background: rgba(") == len(view.token_ids)
  # Nothing of it reaches the rest of a page.
  assert re.search(r"<style>\s*\.distil-jax {", shown)


def test_a_terminal_shows_colours_and_a_file_none(view, monkeypatch):
  assert "\x1b[" not in str(view)
  monkeypatch.setattr(report, "has_colours", lambda *_: True)
  assert "\x1b[32m" in str(view)
  assert "it should be 47 + 8 = 55" in repr(view)


def test_the_table_is_a_data_frame_if_pandas_is_there(view, monkeypatch):
  assert list(view.to_pandas().columns) == list(view.to_dict())
  monkeypatch.setitem(sys.modules, "pandas", None)
  with pytest.raises(ImportError, match="to_dict"):
    view.to_pandas()


@pytest.mark.parametrize(
  ("completion", "settings", "message"),
  [
    (WRONG, {}, "give feedback= or solution="),
    ([], {"feedback": FEEDBACK}, "no token"),
    (
      WRONG,
      {"feedback": FEEDBACK, "objective": config.GRPOConfig()},
      "asks no teacher",
    ),
  ],
)
def test_what_cannot_be_shown_is_refused(policy, completion, settings, message):
  with pytest.raises(ValueError, match=message):
    dj.inspect(policy, PROMPT, completion, **settings)
