import json
import re

import pytest

from distil_jax import envs
from distil_jax.config.environments import MultipleChoiceConfig
from distil_jax.envs.calculator import Calculator
from distil_jax.envs.multiple_choice import MultipleChoice
from distil_jax.types import Status
from tests import cpu_time
from tests.paths import DATA

SCIENCE = DATA / "sciknoweval"
ROW = {
  "idx": 7,
  "prompt": "Which one?\n\nA: this\nB: that\n",
  "answer": "B",
  "system": "\nGiven a question, answer.\n",
}
PROBLEM = MultipleChoice().problem(ROW, 5)


def judge(completion, **settings):
  return MultipleChoice(MultipleChoiceConfig(**settings)).judge(
    PROBLEM, completion
  )


def test_a_row_becomes_a_problem_with_its_texts_as_they_are():
  assert PROBLEM.index == 5
  assert PROBLEM.messages == (
    {"role": "system", "content": ROW["system"]},
    {"role": "user", "content": ROW["prompt"]},
  )
  assert PROBLEM.answer == "B"
  assert PROBLEM.solution is None


@pytest.mark.parametrize("system", [None, ""])
def test_system_and_solution_are_optional(system):
  row = {"prompt": "p", "answer": "A", "system": system, "solution": "s"}
  problem = MultipleChoice().problem(row)
  assert problem.messages == ({"role": "user", "content": "p"},)
  assert problem.solution == "s"
  del row["system"], row["solution"]
  assert MultipleChoice().problem(row).solution is None


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"answer": "AB"}, "one letter A to Z, got 'AB'"),
    ({"answer": ""}, "one letter A to Z, got ''"),
    ({"answer": None}, "one letter A to Z, got None"),
    ({"answer": "1"}, "one letter A to Z, got '1'; an index must be a number"),
    ({"answer": "E", "options": ["x", "y"]}, "the options are A to B"),
    ({"answer": "red", "options": ["red", "red"]}, "A to Z, got 'red'"),
    ({"answer": 2}, "index 2, and there are 2 options"),
    ({"answer": -1}, "index -1"),
    ({"answer": True}, "answer must be a string, got bool"),
    ({"answer": 3, "choices": ["x", "y", "z"]}, "there are 3 options"),
    ({"prompt": None}, "no prompt"),
    ({"prompt": ["x"]}, "each entry must be a message"),
    ({"system": 1}, "system must be a string"),
    ({"solution": {}}, "solution must be a string"),
  ],
)
def test_a_row_that_is_no_problem(change, message):
  with pytest.raises(ValueError, match=message):
    MultipleChoice().problem({**ROW, **change})


@pytest.mark.parametrize(
  "completion",
  [
    "<answer>B</answer>",
    "<reasoning>\n...\n</reasoning>\n<answer>\nB\n</answer>\n",
    "<answer> b. </answer>",
    "<answer>(B)</answer>",
    "<answer>(b).</answer>",
    "<answer>A</answer> no: <answer>B</answer>",
    "<answer>B</answer> and <answer>A",
    "<answer>B</answer> stray </answer>",
    "<answer>A <answer>B</answer></answer>",
    "</answer><answer>B</answer>",
  ],
)
def test_correct(completion):
  verdict = judge(completion)
  assert verdict.reward == 1.0
  assert verdict.status is Status.CORRECT
  assert verdict.feedback == ""
  assert verdict.details == {"parsed": "B"}


LABELS = """\
B) | (B) | [B] | B. | B: | B). | (B). | **B** | **B)** | **(B)** | **B**. | *B*
__B__ | `B` | "B" | $B$ | \\text{B} | \\textbf{B} | \\mathrm{B} | \\boxed{B}
$\\boxed{B}$ | \\boxed{\\text{B}} | $\\boxed{\\textbf{(B)}}$
\\(B\\) | Option B | b) | **b** | \\text{(B)}
option B. | Choice B | Answer: B | The correct answer is B
**Option B** | The answer is (B)."""
NO_LABELS = """\
**C** | \\text{C} | C) | Option C | B or A | A, B | **A** **B** | not B
BA) | B) that | Option | \\text{} | **  ** | \\boxed{AB}
B) A) | (B | Bo | \\text{that}"""


@pytest.mark.parametrize(
  ("table", "parsed"), [(LABELS, "B"), (NO_LABELS, None)]
)
def test_a_letter_with_its_label_is_that_letter_if_it_is_an_option(
  table, parsed
):
  for text in table.replace("\n", " | ").split(" | "):
    verdict = judge(f"So <answer>{text}</answer>")
    assert verdict.details == {"parsed": parsed}, text
    assert verdict.reward == (parsed == "B")


def test_without_known_options_any_letter_is_one():
  problem = MultipleChoice().problem({"prompt": "p", "answer": "E"})
  found = MultipleChoice().judge(problem, "<answer>**E**</answer>")
  assert found.reward == 1.0


def test_an_answer_may_be_an_index():
  for row, answer in (
    ({"answer": 1}, "B"),
    ({"answer": 0}, "A"),
    ({"prompt": "p", "answer": 25}, "Z"),
    ({"prompt": "p", "answer": 3, "options": list("wxyz")}, "D"),
  ):
    assert MultipleChoice().problem({**ROW, **row}).answer == answer


def test_an_answer_in_a_thought_that_never_ends_is_none():
  assert judge("<think><answer>B</answer>").status is Status.UNPARSABLE
  assert judge("<answer>B</answer><think><answer>A</answer>").reward == 1.0
  assert judge("<think>x</think><answer>B</answer>").reward == 1.0


def test_wrong():
  verdict = judge("<answer>B</answer> no: <answer>c</answer>")
  assert verdict.reward == 0.0
  assert verdict.status is Status.WRONG
  assert verdict.feedback == "Option C is not the correct answer."
  assert verdict.details == {"parsed": "C"}


@pytest.mark.parametrize(
  ("completion", "named"),
  [
    ("", "no answer was found"),
    ("The answer is B.", "no answer was found"),
    ("<answer>B", "no answer was found"),
    ("B</answer>", "no answer was found"),
    ("</answer>B<answer>", "no answer was found"),
    ("<answer></answer>", "'' between"),
    ("<answer>B: that</answer>", "'B: that' between"),
    ("<answer>A: 2270</answer>", "'A: 2270' between"),
    ("<answer>BB</answer>", "'BB' between"),
    ("<answer>(B</answer>", "'(B' between"),
    ("<answer>C)</answer>", "'C)' between"),
    ("<answer>\u212a</answer>", "'\u212a' between"),  # the kelvin sign
    ("<answer>" + "x" * 50 + "</answer>", f"'{'x' * 40}…' between"),
  ],
)
def test_unparsable(completion, named):
  verdict = judge(completion)
  assert verdict.reward == 0.0
  assert verdict.status is Status.UNPARSABLE
  assert named in verdict.feedback
  assert "Write the letter of one option" in verdict.feedback
  assert verdict.details == {"parsed": None}


def test_the_answer_is_named_only_on_request():
  for completion in ("<answer>A</answer>", ""):
    assert not re.search(r"\bB\b", judge(completion).feedback)
    revealed = judge(completion, reveal_answer=True).feedback
    assert revealed.startswith(judge(completion).feedback)
    assert "The correct answer is option B." in revealed
    assert judge(completion, feedback=False, reveal_answer=True).feedback == ""
  assert judge("<answer>B</answer>", reveal_answer=True).feedback == ""


@pytest.mark.parametrize(
  "completion",
  [
    "<answer>" * 125_000,
    "</answer>" * 111_000,
    "<answer>" * 62_500 + "</answer>" * 55_500,
    "<answer>" + " " * 1_000_000,
    "<answer>" + " " * 1_000_000 + "xx</answer>",
    "<answer>" + "(" * 1_000_000 + "</answer>",
    "B" * 1_000_000,
  ],
  ids=range(7),
)
def test_a_huge_completion_is_judged_fast(completion):
  with cpu_time.at_most(0.5):
    assert judge(completion).status is Status.UNPARSABLE


@pytest.mark.skipif(not SCIENCE.is_dir(), reason="no data in {SCIENCE}")
def test_the_example_in_the_real_system_prompt_is_understood():
  with (SCIENCE / "chemistry/test.json").open(encoding="utf-8") as file:
    row = json.loads(file.readline())
  problem = MultipleChoice().problem(row)
  assert problem.answer == row["answer"] == "A"
  verdict = MultipleChoice().judge(problem, row["system"])
  assert verdict.status is Status.CORRECT


def test_environments_are_made_by_name():
  made = envs.make_environment("multiple_choice", reveal_answer=True)
  assert made == MultipleChoice(MultipleChoiceConfig(reveal_answer=True))
  assert isinstance(envs.make_environment("calculator", seed=3), Calculator)


def test_a_wrong_name_is_an_error_with_the_nearest_right_one():
  with pytest.raises(ValueError, match="did you mean 'multiple_choice'"):
    envs.make_environment("multiple_choise")
  with pytest.raises(ValueError, match=r"known: \['multiple_choice', 'math'"):
    envs.make_environment("zzz")
  with pytest.raises(ValueError, match="'feedbak'; did you mean 'feedback'"):
    envs.make_environment("multiple_choice", feedbak=True)


LETTERED = {"A": "red", "B": "green", "C": None}
ARC = {"text": ["red", "green"], "label": ["A", "B"]}


@pytest.mark.parametrize(
  "change",
  [
    {"answer": "B"},
    {"answer": "b"},
    {"answer": "B\n"},
    {"answer": "(B)"},
    {"answer": "B."},
    {"answer": 1},
    {"answer": 1.0},
    {"answer": 1, "choices": ["red", "green"]},
    {"answer": "green", "options": ["red", "green"]},
    {"answer": "green", "options": LETTERED},
    {"answer": "B", "options": LETTERED},
    {"answer": "B", "choices": ARC},
    {"answer": "green", "choices": ARC},
    {"answer": "a", "options": ["b", "a"]},
  ],
)
def test_every_spelling_of_the_answer_in_a_row(change):
  environment = MultipleChoice()
  problem = environment.problem({"prompt": "Which colour?", **change})
  assert problem.answer == "B"
  assert environment.judge(problem, "<answer>B</answer>").reward == 1.0
  assert environment.judge(problem, "<answer>A</answer>").reward == 0.0
