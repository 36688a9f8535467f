"""Values of tokens for a reader: their texts, and where nothing is known."""

import numpy as np

from distil_jax.training import token_values

_BYTES = "a😀b".encode()


def decode(ids):
  """Decodes as a byte-level tokenizer does, one byte a token."""
  return bytes(ids).decode("utf-8", errors="replace")


def test_a_sign_of_several_tokens_stands_at_its_last():
  assert token_values.texts(list(_BYTES), decode) == [
    "a",
    "",
    "",
    "",
    "😀",
    "b",
  ]


def test_bytes_that_make_no_sign_are_shown_and_lose_nothing():
  broken = [*_BYTES[:3], ord("c")]
  found = token_values.texts(broken, decode)
  assert len(found) == 4
  assert "".join(found) == decode(broken)
  cut_off = token_values.texts(list(_BYTES[:3]), decode)
  assert "".join(cut_off) == decode(_BYTES[:3])


def test_tokens_without_a_judge_have_no_values():
  found = {
    "mask": np.array([[1, 0, 1, 0]]),
    "costs": np.array([[0.123456, 9.0, np.nan, 9.0]], np.float32),
    "choices": np.array([[[98, 99]] * 4]),
    "choice_log_probs": np.log(np.array([[[0.75, 0.25]] * 4])),
  }
  ids, mask = np.array([[97, 98, 99, 0]]), np.array([[1, 1, 1, 0]])
  (record,) = token_values.records(found, ids, mask, decode)
  assert record["text"] == ["a", "b", "c"]
  assert record["cost"] == [0.1235, None, None]
  assert record["teacher_choices"] == [
    [("b", 0.75), ("c", 0.25)],
    None,
    [("b", 0.75), ("c", 0.25)],
  ]
