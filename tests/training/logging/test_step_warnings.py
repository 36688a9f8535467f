"""Warnings of steps from which nothing can be learned."""

import pytest

from distil_jax.training.logging.step_warnings import StepWarnings

NOTHING = {"cut_off": 1.0, "signal_fraction": 0.0, "frac_reward_zero_std": 1.0}


def warnings(steps, end_tokens=(), **settings):
  watch = StepWarnings(max_completion_length=9, **settings)
  watch.end_tokens = end_tokens
  return [
    text
    for step, metrics in enumerate(steps, start=1)
    for text in watch.of_step(step, metrics)
  ]


def test_a_step_of_cut_completions_says_why_that_may_be():
  steps = [{"cut_off": 0.9}, NOTHING, NOTHING]
  (text,) = warnings(steps, end_tokens=["<|endoftext|>", "</s>"])
  for part in (
    "step 2: every completion was cut off",
    "rollout.max_completion_length=9",
    "(<|endoftext|>, </s>)",
    "rollout.stop",
  ):
    assert part in text


@pytest.mark.parametrize(
  ("trait", "said"),
  [
    ("needs_teacher", "no sample had a teacher's prompt"),
    ("compares_group", "every problem had equal rewards"),
  ],
)
def test_several_empty_steps_in_a_row_are_warned_of_once(trait, said):
  nothing = NOTHING | {"cut_off": 0.0}
  something = {"signal_fraction": 0.1, "frac_reward_zero_std": 0.9}
  assert not warnings([nothing] * 4 + [something] + [nothing] * 4, **{trait: 1})
  (text,) = warnings([something] + [nothing] * 20, **{trait: True})
  assert text.startswith("step 6: for 5 steps")
  assert said in text
  assert not warnings([nothing] * 20)


def test_a_supervised_step_has_nothing_to_warn_of():
  steps = [{"loss": 1.0}] * 9
  assert not warnings(steps, needs_teacher=True, compares_group=True)
