"""Which tokens of a completion the teacher judges."""

import dataclasses

import numpy as np
import pytest

from distil_jax.data import tokenizer as tokenizers
from distil_jax.objectives import base
from distil_jax.training import batch_builder, taught_tokens
from tests.training import test_batch_builder as built

END = "<|im_end|>"


@pytest.fixture(scope="module")
def tokenizer():
  texts = [text for sample in built.SAMPLES for text in (sample[0], sample[2])]
  return tokenizers.train(texts, vocab_size=320)


def judged(tokenizer, text, own=None, **settings):
  """Returns the text of the tokens that the teacher judges."""
  # Text that spells a special token is taken apart, so the tokens are put in.
  parts = [tokenizer.encode(part) for part in text.split(END)]
  ids = parts[0] + [
    token for part in parts[1:] for token in (tokenizer.eos_ids[0], *part)
  ]
  ids = np.asarray([ids])
  own = np.ones_like(ids) if own is None else own
  mask = taught_tokens.find_taught_tokens(
    ids, own, tokenizer, **{"first_tokens": None, "skip": ()} | settings
  )
  return tokenizer.decode(ids[0][mask[0] == 1], skip_special=False)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("<think>wrong</think>right", "right"),
    ("a <think>bad</think> one <think>worse</think> two", "a  one  two"),
    ("<think>never closed", ""),
    # The chat template has opened it.
    ("wrong and bad</think>right", "right"),
    ("right one", "right one"),
    ("<think></think>", ""),
    ("<think>é漢🙂</think>right 🙂", "right 🙂"),
    ("<think>a</think>b<think>c", "b"),
    ("<thinking>right", "<thinking>right"),
  ],
)
def test_thoughts_are_not_judged(tokenizer, text, expected):
  assert judged(tokenizer, text, skip=["thoughts"]) == expected


def test_special_tokens_are_not_judged(tokenizer):
  text = f"right{END}wrong{END}"
  assert judged(tokenizer, text, skip=["special_tokens"]) == "rightwrong"
  both = ["special_tokens", "thoughts"]
  assert judged(tokenizer, f"<think>a{END}</think>b{END}", skip=both) == "b"


def test_the_first_tokens_are_counted_among_the_students_own(tokenizer):
  ids = tokenizer.encode("right wrong bad, worse")
  own = np.ones((1, len(ids)), int)
  own[0, 1] = 0  # a tool's
  mask = taught_tokens.find_taught_tokens(
    np.asarray([ids]), own, tokenizer, first_tokens=2, skip=()
  )
  np.testing.assert_array_equal((mask * own)[0, :4], [1, 0, 1, 0])
  assert (mask * own).sum() == 2


def test_without_settings_there_is_no_mask(tokenizer):
  experience = built.make_experience(tokenizer)
  batch, _ = batch_builder.from_experience(
    experience, tokenizer, built.SETTINGS
  )
  assert batch.taught_mask is None


def test_a_batch_has_the_mask_and_the_loss_reads_it(tokenizer):
  experience = built.make_experience(tokenizer)
  settings = dataclasses.replace(built.SETTINGS, skip=("special_tokens",))
  batch, _ = batch_builder.from_experience(experience, tokenizer, settings)
  plain, _ = batch_builder.from_experience(
    experience, tokenizer, built.SETTINGS
  )
  counted = np.asarray(base.teacher_mask(batch))
  before = np.asarray(base.teacher_mask(plain))
  # One end token less in each sample that has a signal.
  np.testing.assert_array_equal(
    before.sum(1) - counted.sum(1), plain.sample_mask
  )
  assert plain.sample_mask.sum() > 1


def test_successes_can_be_left_to_rewards(tokenizer):
  experience = built.make_experience(tokenizer)
  settings = dataclasses.replace(built.SETTINGS, learn_from="failures")
  batch, stats = batch_builder.from_experience(experience, tokenizer, settings)
  plain, _ = batch_builder.from_experience(
    experience, tokenizer, built.SETTINGS
  )
  rewards = np.asarray(plain.rewards)
  np.testing.assert_array_equal(
    batch.sample_mask, plain.sample_mask * (rewards < 1)
  )
  assert (plain.sample_mask * rewards).sum() > 0
  assert [x is None for x in stats.teacher_prompts] == [
    not x for x in batch.sample_mask
  ]
