"""What the teacher's prompts of a group begin with, to be read only once."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from distil_jax.data import padding
from distil_jax.distributed import collectives

# Prompts of a batch have one width, out of so many: each compiles programs.
_NUM_WIDTHS = 3


@dataclasses.dataclass(frozen=True)
class SplitPrompts:
  """Prompts in two parts, each padded on the left.

  Attributes:
    prefix_ids, prefix_mask: each prefix before n prompts. `[B / n, S0]`.
    ids, mask: what comes after it, at least one token each. Shape `[B, S']`.
  """

  prefix_ids: np.ndarray
  prefix_mask: np.ndarray
  ids: np.ndarray
  mask: np.ndarray


def split(
  rows: Sequence[Sequence[int] | None],
  *,
  num_sharing: int,
  max_prefix_length: int,
  max_prompt_length: int,
  pad_id: int,
) -> SplitPrompts | None:
  """Splits prompts where that saves tokens, padding included.

  The prefixes are as wide as they may be. The rests are as wide as a prompt
  may be, half or a quarter of it: the least that holds those of all processes.

  Args:
    rows: token ids of the prompts; None: any prompt will do. B of them.
    num_sharing: n, prompts in a row that share a prefix.
    max_prefix_length: S0, tokens; what is longer stays with the rests.
    max_prompt_length: tokens of a whole prompt.
    pad_id: stands where no token is.

  Returns:
    None where whole prompts take no more tokens.
  """
  prefixes = [
    common_prefix(rows[i : i + num_sharing])[:max_prefix_length]
    for i in range(0, len(rows), num_sharing)
  ]
  rests = [
    [pad_id] if row is None else row[len(prefixes[i // num_sharing]) :]
    for i, row in enumerate(rows)
  ]
  width = narrowest(max(map(len, rests)), max_prompt_length)
  num_tokens = len(prefixes) * max_prefix_length + len(rows) * width
  if num_tokens >= len(rows) * max_prompt_length:
    return None
  return SplitPrompts(
    *padding.pad_left(prefixes, max_prefix_length, pad_id),
    *padding.pad_left(rests, width, pad_id),
  )


def common_prefix(rows: Sequence[Sequence[int] | None]) -> list[int]:
  """What all rows begin with; the last token of none is part of it."""
  known = [row for row in rows if row is not None]
  if not known:
    return []
  prefix = []
  for tokens in zip(*(row[:-1] for row in known), strict=False):
    if len(set(tokens)) > 1:
      break
    prefix.append(tokens[0])
  return prefix


def narrowest(longest: int, max_prompt_length: int) -> int:
  """The least of `widths` that holds what all processes have."""
  longest = collectives.global_max(longest)
  return min(w for w in widths(max_prompt_length) if w >= longest)


def widths(max_prompt_length: int) -> list[int]:
  """The widths that prompts may have, the largest first."""
  return [-(-max_prompt_length // 2**i) for i in range(_NUM_WIDTHS)]
