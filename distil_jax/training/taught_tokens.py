"""Finds the tokens of completions that the teacher judges."""

import bisect
import itertools
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from distil_jax.data.tokenizer import Tokenizer

Skipped = Literal["thoughts", "special_tokens"]

# A thought that is never closed reaches to the end. One that the chat template
# opens is only closed by the completion.
_THOUGHT = re.compile(
  r"\A(?:(?!<think>).)*?</think>|<think>.*?(?:</think>|\Z)", re.DOTALL
)


def find_taught_tokens(
  completion_ids: np.ndarray,
  student_tokens: np.ndarray,
  tokenizer: Tokenizer,
  *,
  first_tokens: int | None,
  skip: Sequence[Skipped],
) -> np.ndarray | None:
  """Returns 1 at the tokens that the teacher may judge; None means all.

  Args:
    completion_ids: shape `[B, T]`.
    student_tokens: 1 at the student's own. Shape `[B, T]`.
    tokenizer: of the completions.
    first_tokens: number of the student's tokens of a completion, from its
      first; None means all.
    skip: `thoughts`: tokens of which any part is in a thought or its tags.
      `special_tokens`: end tokens and all other special ones.

  Returns:
    Shape `[B, T]`, int32.
  """
  if first_tokens is None and not skip:
    return None
  own = np.asarray(student_tokens) == 1
  taught = np.ones(own.shape, bool)
  if first_tokens is not None:
    taught &= np.cumsum(own, axis=1) <= first_tokens
  if "special_tokens" in skip:
    special = list(tokenizer.special_ids.values())
    taught &= ~np.isin(completion_ids, special)
  if "thoughts" in skip:
    for row, ids in enumerate(np.asarray(completion_ids)):
      places = np.flatnonzero(own[row])
      pieces = [tokenizer.decode([ids[i]], skip_special=False) for i in places]
      for start, stop in _thoughts(pieces):
        taught[row, places[start:stop]] = False
  return taught.astype(np.int32)


def _thoughts(pieces: Sequence[str]) -> list[tuple[int, int]]:
  """Returns first token and end of each thought.

  Tokens are decoded one by one: parts of a character become signs of their
  own, but the tags have plain characters, so that they are found.
  """
  ends = list(itertools.accumulate(map(len, pieces)))
  found = []
  for match in _THOUGHT.finditer("".join(pieces)):
    # The first token that ends behind the thought's start, and the first that
    # begins at or behind its end.
    first = bisect.bisect_right(ends, match.start())
    found.append((first, 1 + bisect.bisect_left(ends, match.end())))
  return found
