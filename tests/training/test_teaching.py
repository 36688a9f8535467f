"""Each turn of a conversation has a teacher that is told of that turn."""

import dataclasses

import numpy as np
import pytest

from distil_jax.data import padding
from distil_jax.data import tokenizer as tokenizers
from distil_jax.training import batch_builder
from distil_jax.training.rollouts.experience import Experience
from distil_jax.training.teaching import TeacherSettings
from distil_jax.types import Problem, Rollout, Status, StopReason, Verdict

SETTINGS = TeacherSettings(
  solution="none",
  feedback="always",
  success_threshold=1.0,
  max_prompt_length=240,
  num_turns=3,
)
# Of each episode the turns: what was said, the reward, and the feedback, or
# None for a turn that is not judged.
EPISODES = (
  [("first", 0.0, "of the first"), ("second", 1.0, "")],
  [("only", 0.0, "of the only")],
  [("one", 0.0, "of one"), ("two", None, None), ("three", 0.0, "of three")],
  [("crashed", 0.0, "never told"), ("so", 0.0, "nor this")],
)
QUESTION = {"role": "user", "content": "Question?"}


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizers.train(["Question? first second"], vocab_size=300)


def verdict(reward, feedback):
  if reward is None:
    return None
  return Verdict(reward, feedback, Status.CORRECT if reward else Status.WRONG)


@pytest.fixture(scope="module")
def experience(tokenizer):
  """Two groups of two; what the environment says is one token each time."""
  rows, own = [], []
  for turns in EPISODES:
    row, mask = [], []
    for text, *_ in turns:
      ids = [*tokenizer.encode(text), tokenizer.eos_ids[0]]
      row += [*ids, tokenizer.pad_id]
      mask += [1] * len(ids) + [0]
    rows.append(row[:-1])
    own.append(mask[:-1])
  ids, mask = padding.pad_right(rows, 64, tokenizer.pad_id)
  prompt_ids, prompt_mask = padding.pad_left(
    [tokenizer.encode_messages([QUESTION])] * 2, 40, tokenizer.pad_id
  )
  verdicts = [verdict(*turns[-1][1:]) for turns in EPISODES]
  verdicts[3] = Verdict(0.0, "", Status.CRASHED)
  nothing = np.zeros(ids.shape, np.float32)
  return Experience(
    problems=[Problem(i, (QUESTION,), "") for i in range(2)],
    group_size=2,
    rollout=Rollout(
      prompt_ids=prompt_ids,
      prompt_mask=prompt_mask,
      completion_ids=ids,
      completion_mask=mask,
      log_probs=nothing,
      behavior_log_probs=nothing,
      stop_reasons=np.full(4, StopReason.EOS),
      student_mask=padding.pad_right(own, 64, 0)[0],
    ),
    completions=[turns[-1][0] for turns in EPISODES],
    verdicts=verdicts,
    earlier=[
      [
        {"role": role, "content": content}
        for text, *_ in turns[:-1]
        for role, content in (("student", text), ("environment", "go on"))
      ]
      for turns in EPISODES
    ],
    earlier_verdicts=[
      [verdict(*turn[1:]) for turn in turns[:-1]] for turns in EPISODES
    ],
  )


def prompts(batch, tokenizer):
  """Text of the teacher's prompt of each turn; empty for stand-ins."""
  whole = [
    np.concatenate([first[:, None], later], axis=1)
    for first, later in (
      (batch.teacher_prompt_ids, batch.later_prompt_ids),
      (batch.teacher_prompt_mask, batch.later_prompt_mask),
    )
  ]
  return [
    [
      tokenizer.decode(ids[mask == 1].tolist())
      for ids, mask in zip(*turns, strict=True)
    ]
    for turns in zip(*whole, strict=True)
  ]


def test_a_turn_is_told_its_own_feedback(tokenizer, experience):
  batch, stats = batch_builder.from_experience(experience, tokenizer, SETTINGS)
  found = prompts(batch, tokenizer)
  for row, turns in enumerate(EPISODES):
    for turn in range(3):
      feedback = turns[turn][2] if turn < len(turns) and row != 3 else None
      text = found[row][turn]
      assert bool(text) == bool(feedback)
      for other in {"of the first", "of the only", "of one", "of three"}:
        assert (f":\n\n{other}\n" in text) == (other == feedback)
  np.testing.assert_array_equal(batch.sample_mask, [1, 1, 1, 0])
  assert stats.num_feedback == 3
  assert stats.teacher_prompts[3] is None
  assert "(turn 1)\n" in stats.teacher_prompts[2]
  assert "(turn 2)\n" not in stats.teacher_prompts[2]
  # Tokens have the number of their turn, but those of turns that the teacher is
  # told nothing of.
  own = np.asarray(batch.student_mask) == 1
  assert [sorted(set(batch.turn_numbers[i][own[i]])) for i in range(3)] == [
    [-1, 0],  # success has no feedback
    [0],
    [-1, 0, 2],
  ]


def test_a_sibling_shows_its_last_turn_to_every_turn(tokenizer, experience):
  settings = dataclasses.replace(SETTINGS, solution="sibling")
  batch, stats = batch_builder.from_experience(experience, tokenizer, settings)
  found = prompts(batch, tokenizer)
  assert "Correct solution:\n\nsecond\n" in found[1][0]
  assert "solution" not in found[0][0]  # the only success is its own
  assert stats.num_sibling == 1


def test_a_conversation_of_one_turn_is_as_without_one(tokenizer, experience):
  """Bit for bit, if all episodes have one turn."""
  alone = dataclasses.replace(
    experience, earlier=[[]] * 4, earlier_verdicts=[[]] * 4
  )
  several, _ = batch_builder.from_experience(alone, tokenizer, SETTINGS)
  plain, _ = batch_builder.from_experience(
    dataclasses.replace(alone, earlier=None, earlier_verdicts=None),
    tokenizer,
    dataclasses.replace(SETTINGS, num_turns=1),
  )
  assert plain.turn_numbers is None
  for name in ("teacher_prompt_ids", "teacher_prompt_mask", "sample_mask"):
    np.testing.assert_array_equal(getattr(several, name), getattr(plain, name))
  assert not np.asarray(several.later_prompt_mask)[..., :-1].any()
