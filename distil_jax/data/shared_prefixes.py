"""Splits off what the teacher's prompts of a group have in common.

The network then reads the common prefix once for the group.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from distil_jax.data import padding
from distil_jax.data.length_buckets import bucket_size
from distil_jax.distributed import collectives

# The prompts that are sampled from are padded to one of this many widths,
# because each width compiles programs of its own.
_NUM_WIDTHS = 3


@dataclasses.dataclass(frozen=True)
class SplitPrompts:
  """Holds prompts in two parts, each padded on the left.

  Attributes:
    prefix_ids, prefix_mask: the prefix of each n prompts. Shape `[B / n, S0]`.
    ids, mask: the rest of each prompt, at least one token. Shape `[B, S']`.
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
  """Splits prompts if that saves tokens, padding included.

  All are padded to their largest lengths; what is padding in all rows is cut
  off later.

  Args:
    rows: token ids of the B prompts; None for a row that is masked out.
    num_sharing: n, the number of consecutive prompts that share a prefix.
    max_prefix_length: S0, tokens; the end of a longer prefix stays in the
      rests.
    max_prompt_length: tokens of a whole prompt, at most.
    pad_id: the padding token.

  Returns:
    The split prompts; None if whole prompts take no more tokens.
  """
  prefixes = [
    common_prefix(rows[i : i + num_sharing])[:max_prefix_length]
    for i in range(0, len(rows), num_sharing)
  ]
  rests = [
    [pad_id] if row is None else row[len(prefixes[i // num_sharing]) :]
    for i, row in enumerate(rows)
  ]
  longest = collectives.global_maxima(
    [max(map(len, part), default=0) for part in (prefixes, rests, _known(rows))]
  )
  # Only sizes decide, which are the same everywhere: all processes must split,
  # or none.
  prefix, rest, whole = map(
    bucket_size,
    longest,
    (max_prefix_length, max_prompt_length, max_prompt_length),
  )
  if len(prefixes) * prefix + len(rows) * rest >= len(rows) * whole:
    return None
  return SplitPrompts(
    *padding.pad_left(prefixes, max_prefix_length, pad_id),
    *padding.pad_left(rests, max_prompt_length, pad_id),
  )


def common_prefix(rows: Sequence[Sequence[int] | None]) -> list[int]:
  """Returns the common beginning of all rows, without any row's last token."""
  prefix = []
  for tokens in zip(*(row[:-1] for row in _known(rows)), strict=False):
    if len(set(tokens)) > 1:
      break
    prefix.append(tokens[0])
  return prefix


def narrowest_width(longest: int, max_prompt_length: int) -> int:
  """Returns the smallest width that holds the rows of all processes."""
  longest = collectives.global_max(longest)
  return min(w for w in prompt_widths(max_prompt_length) if w >= longest)


def prompt_widths(max_prompt_length: int) -> list[int]:
  """Returns the widths that prompts can have, the largest first."""
  return [-(-max_prompt_length // 2**i) for i in range(_NUM_WIDTHS)]


def _known(rows: Sequence[Sequence[int] | None]) -> list[Sequence[int]]:
  """Returns the rows that are not masked out."""
  return [row for row in rows if row is not None]
