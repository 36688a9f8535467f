import dataclasses

import numpy as np
import pytest

from distil_jax.data import padding, teacher_prompts
from distil_jax.data import tokenizer as tokenizer_lib
from distil_jax.types import Problem

SYSTEM = {"role": "system", "content": "Be brief."}
PROBLEM = Problem(
  index=3,
  messages=(SYSTEM, {"role": "user", "content": "How much is 2 + 2?"}),
  answer="4",
)
HEADING = "Correct solution:"
INSTRUCTION = "\n\nCorrectly solve the original question."
TAIL = INSTRUCTION + "<|im_end|>\n<|im_start|>assistant\n"


def content(**blocks):
  messages = teacher_prompts.teacher_prompt(PROBLEM, **blocks)
  assert messages[0] == SYSTEM
  assert [message["role"] for message in messages] == ["system", "user"]
  return messages[1]["content"]


def test_both_blocks():
  assert content(solution="2 + 2 = 4", feedback="5 is wrong.") == (
    "How much is 2 + 2?"
    "\n\nCorrect solution:\n\n2 + 2 = 4"
    "\n\nThe following is feedback from your unsuccessful earlier attempt:"
    "\n\n5 is wrong."
    "\n\nCorrectly solve the original question."
  )


def test_one_block():
  assert content(solution="4") == (
    "How much is 2 + 2?\n\nCorrect solution:\n\n4"
    "\n\nCorrectly solve the original question."
  )
  assert content(feedback="No.") == (
    "How much is 2 + 2?"
    "\n\nThe following is feedback from your unsuccessful earlier attempt:"
    "\n\nNo."
    "\n\nCorrectly solve the original question."
  )


@pytest.mark.parametrize("nothing", [None, "", " \n"])
def test_nothing_to_say_leaves_the_students_messages(nothing):
  messages = teacher_prompts.teacher_prompt(
    PROBLEM, solution=nothing, feedback=nothing
  )
  assert messages == list(PROBLEM.messages)
  assert content(solution="4", feedback=nothing) == content(solution="4")


def test_the_problem_itself_is_not_changed():
  before = [dict(message) for message in PROBLEM.messages]
  teacher_prompts.teacher_prompt(PROBLEM, solution="4")
  assert list(PROBLEM.messages) == before


def test_the_last_user_message_is_the_question():
  messages = (
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "reply"},
    {"role": "user", "content": "second"},
    {"role": "assistant", "content": "begin"},
  )
  problem = dataclasses.replace(PROBLEM, messages=messages)
  built = teacher_prompts.teacher_prompt(problem, feedback="No.")
  changed = [a != b for a, b in zip(built, messages, strict=True)]
  assert changed == [False, False, True, False]
  assert built[2]["content"].startswith("second\n\n")


def test_a_problem_without_a_question_is_an_error():
  problem = dataclasses.replace(PROBLEM, messages=(SYSTEM,))
  with pytest.raises(ValueError, match="problem 3 has no user message"):
    teacher_prompts.teacher_prompt(problem, feedback="No.")


def test_braces_in_a_block_are_text():
  assert "{0} {x}" in content(solution="{0} {x}", feedback="{}")


@pytest.mark.parametrize(
  ("solution", "kept"),
  [
    ("<think>hm\nhm</think>\n\n  four", "  four"),
    ("a<think>x</think>b<think>y</think>c", "abc"),
    ("four <think>never closed", "four "),
    ("opened by the template</think>\nfour", "four"),
    ("</think>four", "four"),
    ("<think>a<think>b</think>c</think>four", "four"),
  ],
)
def test_thoughts_are_taken_out(solution, kept):
  assert content(solution=solution) == content(solution=kept)
  assert f"\n\n{kept}{INSTRUCTION}" in content(solution=solution)


def test_a_solution_of_thought_alone_is_none():
  assert content(solution="<think>hm", feedback="No.") == content(
    feedback="No."
  )


def test_thoughts_are_taken_out_in_linear_time():
  hostile = "<think>" * 200_000 + "</think>" * 200_000 + "four"
  assert content(solution=hostile) == content(solution="four")


def test_the_first_other_success_is_chosen():
  completions = ["a", "b", "c", "d"]
  rewards = [0.0, 1.0, 0.5, 1.0]

  def choose(index, threshold=1.0):
    return teacher_prompts.choose_solution(
      rewards, completions, index, threshold=threshold
    )

  assert [choose(index) for index in range(4)] == ["b", "d", "b", "b"]
  assert choose(1, threshold=0.5) == "c"
  assert choose(0, threshold=1.5) is None


def test_a_lone_success_has_no_solution():
  assert (
    teacher_prompts.choose_solution([0.0, 1.0], ["a", "b"], 1, threshold=1.0)
    is None
  )
  assert teacher_prompts.choose_solution([1.0], ["a"], 0, threshold=1.0) is None


def test_a_success_of_thought_alone_is_passed_over():
  completions = ["wrong", "<think>right", "right"]
  chosen = teacher_prompts.choose_solution(
    [0.0, 1.0, 1.0], completions, 0, threshold=1.0
  )
  assert chosen == "right"


def test_a_group_that_does_not_fit_together_is_an_error():
  with pytest.raises(ValueError, match="2 rewards, 1 completions"):
    teacher_prompts.choose_solution([0.0, 1.0], ["a"], 0, threshold=1.0)
  with pytest.raises(ValueError, match="index=2 in a group of 2"):
    teacher_prompts.choose_solution([0.0, 1.0], ["a", "b"], 2, threshold=1.0)


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizer_lib.train([content(solution="4")] * 5, vocab_size=300)


def fit(tokenizer, limit, solution=None, feedback=None):
  return teacher_prompts.fit_teacher_prompt(
    PROBLEM,
    solution=solution,
    feedback=feedback,
    tokenizer=tokenizer,
    limit=limit,
  )


def length(tokenizer, **blocks):
  return len(
    tokenizer.encode_messages(teacher_prompts.teacher_prompt(PROBLEM, **blocks))
  )


SOLUTION = "zwei 漢字 plus 2 是 四 🧪. " * 6
FEEDBACK = "Schritt 1 ist falsch: 漢 = 5 🧪. " * 6


def test_every_limit(tokenizer):
  """All limits from nothing to more than enough, one token at a time."""
  full = length(tokenizer, solution=SOLUTION, feedback=FEEDBACK)
  solution_only = length(tokenizer, solution=SOLUTION)
  least = length(tokenizer, solution="z")
  kept_before = (0, 0)
  for limit in range(full + 2):
    fitted = fit(tokenizer, limit, SOLUTION, FEEDBACK)
    if limit < least:
      assert fitted is None
      continue
    assert fitted.was_truncated == (limit < full)
    assert len(fitted.ids) <= limit
    # A character of a few tokens cannot be kept in part.
    assert len(fitted.ids) > min(limit, full) - 4 or (
      solution_only
      <= limit
      < length(tokenizer, solution=SOLUTION, feedback="S")
    )
    text = tokenizer.decode(fitted.ids, skip_special=False)
    assert "\ufffd" not in text
    assert text.startswith(
      "<|im_start|>system\nBe brief.<|im_end|>\n"
      "<|im_start|>user\nHow much is 2 + 2?\n\nCorrect solution:\n\nz"
    )
    assert text.endswith(TAIL)
    blocks = text.removesuffix(TAIL).split(HEADING + "\n\n")[1]
    solution, _, feedback = blocks.partition(
      "\n\nThe following is feedback from your unsuccessful earlier attempt:"
      "\n\n"
    )
    assert SOLUTION.startswith(solution)
    assert FEEDBACK.startswith(feedback)
    # The feedback goes first: none of it beside a solution that was cut.
    assert solution == SOLUTION or not feedback
    kept = (len(solution), len(feedback))
    assert kept >= kept_before
    kept_before = kept
  assert kept_before == (len(SOLUTION), len(FEEDBACK))


def test_a_prompt_that_fits_is_the_teachers_prompt(tokenizer):
  fitted = fit(tokenizer, 10_000, "<think>x</think>4", "No.")
  messages = teacher_prompts.teacher_prompt(
    PROBLEM, solution="4", feedback="No."
  )
  assert fitted.ids == tokenizer.encode_messages(messages)
  assert not fitted.was_truncated


def test_feedback_alone_is_cut(tokenizer):
  limit = length(tokenizer, feedback=FEEDBACK) - 20
  fitted = fit(tokenizer, limit, feedback=FEEDBACK)
  text = tokenizer.decode(fitted.ids, skip_special=False)
  assert fitted.was_truncated
  assert "Correct solution" not in text
  assert "attempt:\n\nSchritt 1 ist falsch" in text
  assert text.endswith(TAIL)


def test_nothing_to_say_fits_or_not(tokenizer):
  plain = length(tokenizer)
  fitted = fit(tokenizer, plain)
  assert fitted.ids == tokenizer.encode_messages(PROBLEM.messages)
  assert not fitted.was_truncated
  assert fit(tokenizer, plain - 1) is None


def test_a_teacher_that_would_know_nothing_more_is_none(tokenizer):
  assert fit(tokenizer, length(tokenizer), feedback="No.") is None
  assert fit(tokenizer, length(tokenizer), solution="4") is None


def test_a_huge_block_takes_few_encodings(tokenizer):
  calls = []

  class Counting:
    encode, decode = tokenizer.encode, tokenizer.decode

    def encode_messages(self, messages):
      calls.append(sum(len(message["content"]) for message in messages))
      return tokenizer.encode_messages(messages)

  fitted = teacher_prompts.fit_teacher_prompt(
    PROBLEM,
    solution="4",
    feedback="wrong " * 20_000,
    tokenizer=Counting(),
    limit=200,
  )
  assert 190 < len(fitted.ids) <= 200
  assert len(calls) < 12
  assert sum(size > 5000 for size in calls) == 1


def test_padding():
  ids, mask = padding.pad_left([[1, 2], [], [3, 4, 5]], 3, 9)
  assert ids.tolist() == [[9, 1, 2], [9, 9, 9], [3, 4, 5]]
  assert mask.tolist() == [[0, 1, 1], [0, 0, 0], [1, 1, 1]]
  ids, mask = padding.pad_right([[1, 2], [], [3, 4, 5]], 3, 9)
  assert ids.tolist() == [[1, 2, 9], [9, 9, 9], [3, 4, 5]]
  assert mask.tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
  assert ids.dtype == mask.dtype == np.int32


@pytest.mark.parametrize("pad", [padding.pad_left, padding.pad_right])
def test_padding_at_the_edges(pad):
  ids, mask = pad([], 4, 0)
  assert ids.shape == mask.shape == (0, 4)
  ids, mask = pad([[], []], 0, 0)
  assert ids.shape == mask.shape == (2, 0)
  with pytest.raises(ValueError, match=r"sequence 1 has 3 tokens, .* the 2"):
    pad([[1], [1, 2, 3]], 2, 0)
