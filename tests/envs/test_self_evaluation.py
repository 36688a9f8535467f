import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distil_jax import envs
from distil_jax.config.environments import MathConfig, SelfEvaluationConfig
from distil_jax.envs import base, calculator, contract, self_evaluation
from distil_jax.envs import math as maths
from distil_jax.types import Status, Verdict

MATH = maths.Math(MathConfig(symbolic=False))


def around_math(**settings):
  config = SelfEvaluationConfig(of=MATH.config, **settings)
  return self_evaluation.SelfEvaluation(config, MATH)


OF_MATH = around_math()
ALONE = self_evaluation.SelfEvaluation()
ROW = {"prompt": "How much is 6 * 7?", "answer": "6 * 7 = 42\n#### 42"}
PROBLEM = OF_MATH.problem(ROW)
VERDICT = OF_MATH.judge(PROBLEM, "\\boxed{41}")
RIGHT = OF_MATH.judge(PROBLEM, "\\boxed{42}")


def asked(environment, completion="\\boxed{41}", verdict=VERDICT):
  (message,) = environment.critique_prompt(PROBLEM, completion, verdict)
  assert message["role"] == "user"
  return message["content"]


def test_problem_and_verdict_are_those_of_the_environment_inside():
  assert MATH.problem(ROW) == PROBLEM
  assert MATH.judge(PROBLEM, "\\boxed{41}") == VERDICT
  assert OF_MATH.required_fields == MATH.required_fields
  assert not OF_MATH.is_rewarded_by_critique
  assert not isinstance(OF_MATH, base.Generator)
  made = self_evaluation.SelfEvaluation(of=calculator.Calculator())
  assert isinstance(made, base.Generator)
  assert made.generate(3, "train") == calculator.Calculator().generate(
    3, "train"
  )
  assert pickle.loads(pickle.dumps(made)) == made


def test_the_critic_sees_problem_attempt_and_what_was_said_but_no_answer():
  page = asked(OF_MATH)
  for text in (
    PROBLEM.messages[0]["content"],
    "\\boxed{41}",
    "The attempt was judged to be wrong. 41 is not the correct answer.",
  ):
    assert text in page
  assert "42" not in page
  with_answer = around_math(rubric="{problem} {completion} {{{answer}}}")
  assert asked(with_answer).endswith("\\boxed{41} {42}")
  assert "judged" not in asked(with_answer)


@pytest.mark.parametrize("status", Status)
def test_every_status_can_be_told(status):
  if status not in (Status.CORRECT, Status.CRASHED):
    page = asked(OF_MATH, verdict=Verdict(0.0, "", status))
    assert "The attempt" in page
    assert ". \n" not in page


def test_a_conversation_is_shown_with_who_says_what():
  problem = OF_MATH.problem({**ROW, "system": "Be brief."})
  (message,) = OF_MATH.critique_prompt(problem, "", VERDICT)
  assert "system: Be brief.\n\nuser: How much is" in message["content"]


def test_nothing_is_asked_about_what_is_correct_or_not_judged():
  assert OF_MATH.critique_prompt(PROBLEM, "\\boxed{42}", RIGHT) is None
  every = around_math(only_failures=False)
  assert "was judged to be right." in asked(every, "\\boxed{42}", RIGHT)
  lost = Verdict(0.0, "", Status.CRASHED)
  assert every.critique_prompt(PROBLEM, "", lost) is None
  # Alone, everything is asked about: there is no other judge.
  assert asked(ALONE, verdict=ALONE.judge(PROBLEM, ""))


def test_a_critique_becomes_the_feedback_without_its_thoughts():
  found = OF_MATH.with_critique(VERDICT, "<think>hm</think>\nAdd, not 6 * 7.")
  assert found.feedback == "Add, not 6 * 7."
  assert (found.reward, found.status) == (VERDICT.reward, VERDICT.status)
  assert found.details == {"parsed": "41", "has_critique": True}
  kept = around_math(keep_feedback=True)
  assert kept.with_critique(VERDICT, "Why?").feedback == (
    "41 is not the correct answer.\n\nWhy?"
  )


@pytest.mark.parametrize("nothing", ["", " \n", "<think>and it goes on"])
def test_where_there_is_no_critique_the_feedback_stays(nothing):
  for keep in (True, False):
    made = around_math(keep_feedback=keep)
    found = made.with_critique(VERDICT, nothing)
    assert found.feedback == VERDICT.feedback
    assert found.details["has_critique"] is False


def test_a_long_critique_is_cut_with_a_sign():
  short = around_math(max_feedback_length=5)
  assert short.with_critique(VERDICT, "123456").feedback == "12345…"
  assert short.with_critique(VERDICT, "12345").feedback == "12345"


@pytest.mark.parametrize(
  ("critique", "status", "feedback"),
  [
    ("Fine. <verdict>correct</verdict>", Status.CORRECT, ""),
    ("6 * 7 it is.\n<verdict> Wrong\n</verdict>", Status.WRONG, "6 * 7 it is."),
    ("<verdict>wrong</verdict>", Status.WRONG, ""),
    (
      "<verdict>correct</verdict> no: <verdict>wrong</verdict>",
      Status.WRONG,
      "<verdict>correct</verdict> no:",
    ),
    ("It is wrong.", Status.UNPARSABLE, ""),
    ("<verdict>perhaps</verdict>", Status.UNPARSABLE, ""),
    ("<verdict>correct", Status.UNPARSABLE, ""),
    ("<think><verdict>correct</verdict>", Status.UNPARSABLE, ""),
  ],
)
def test_alone_the_critique_is_the_verdict(critique, status, feedback):
  first = ALONE.judge(PROBLEM, "41")
  assert (first.reward, first.status) == (0.0, Status.CRASHED)
  found = ALONE.with_critique(first, critique)
  assert found.status is status
  assert found.reward == (status is Status.CORRECT)
  assert found.feedback == feedback
  assert found.details["has_critique"] == (status is not Status.UNPARSABLE)


def test_alone_a_row_needs_only_a_prompt():
  assert ALONE.is_rewarded_by_critique
  problem = ALONE.problem({"prompt": "Write a rhyme.", "solution": "ay, bay"})
  assert (problem.answer, problem.solution) == ("", "ay, bay")
  assert "<verdict>wrong</verdict>" in asked(ALONE)
  with pytest.raises(ValueError, match="no prompt"):
    ALONE.problem({"answer": "x"})


@pytest.mark.parametrize(
  ("rubric", "message"),
  [
    ("{problem}", "no placeholder {completion}"),
    ("{completion}", "no placeholder {problem}"),
    (
      "{problem} {completion} {solution}",
      "there is no placeholder {solution}; kno",
    ),
    ("{problem} {completion} {}", "there is no placeholder {}"),
    ("{problem.index} {completion}", "there is no placeholder {problem.index}"),
    ("{problem!r} {completion}", "there is no placeholder {problem}"),
    ("{problem} {completion:9}", "there is no placeholder {completion}"),
    ("{problem} {completion} {", "a brace that stands for itself twice"),
    (
      "{problem} {completion} \\boxed{x}",
      "no placeholder {x}; known: {problem}, ",
    ),
  ],
)
def test_a_rubric_with_wrong_places_is_refused(rubric, message):
  with pytest.raises(ValueError, match=r"^rubric: ") as error:
    around_math(rubric=rubric)
  assert message in str(error.value)


def test_a_rubric_must_suit_who_gives_the_reward():
  with pytest.raises(ValueError, match="needs an environment that gives some"):
    envs.make_environment("self_evaluation", rubric=self_evaluation.RUBRIC)
  with pytest.raises(ValueError, match="it must ask for <verdict>correct"):
    envs.make_environment("self_evaluation", rubric="{problem} {completion}")
  with pytest.raises(ValueError, match="should be greater than 0"):
    around_math(max_feedback_length=0)


def test_it_is_made_around_what_a_mapping_describes():
  settings = {"kind": "math", "symbolic": False}
  made = envs.make_environment("self_evaluation", of=settings)
  assert made == OF_MATH
  with pytest.raises(ValueError, match="environment math has no setting 'x'"):
    envs.make_environment("self_evaluation", of={"kind": "math", "x": 1})


def test_it_keeps_the_contract():
  critiques = ["<verdict>wrong</verdict>", "\\boxed{42}", "{problem}"]
  contract.check(OF_MATH, [ROW], critiques)
  contract.check(ALONE, [ROW], critiques)


@given(st.text(), st.text(), st.text())
def test_whatever_is_said_stands_on_the_page_as_it_is(
  question, completion, feedback
):
  problem = ALONE.problem({"prompt": question + "?"})
  verdict = Verdict(0.0, feedback, Status.WRONG)
  (message,) = OF_MATH.critique_prompt(problem, completion, verdict)
  before, rest = self_evaluation.RUBRIC.split("{problem}")
  between, rest = rest.split("{completion}")
  behind, end = rest.split("{feedback}")
  said = f"The attempt was judged to be wrong. {feedback}".strip()
  assert message["content"] == (
    f"{before}{question}?{between}{completion}{behind}{said}{end}"
  )


@given(
  st.lists(
    st.sampled_from(
      ["<think>", "</think>", "<verdict>", "</verdict>", "wrong", "correct"]
    )
    | st.text()
  ).map("".join)
)
def test_whatever_the_critic_says_there_is_a_verdict(critique):
  for environment in (OF_MATH, ALONE):
    found = environment.with_critique(VERDICT, critique)
    assert 0 <= found.reward <= 1
    assert len(found.feedback) <= environment.config.max_feedback_length + 1
    assert "<think>" not in found.feedback
    json.dumps(dict(found.details))
