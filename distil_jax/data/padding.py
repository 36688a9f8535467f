"""Pads token lists to rectangular arrays."""

from collections.abc import Sequence

import numpy as np


def pad_left(
  sequences: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Pads prompts on the left, so that each ends in the last column.

  Args:
    sequences: ids of B prompts, each at most `length` long.
    length: S, tokens.
    pad_id: the padding token.

  Returns:
    Ids and mask, which is 1 at a token. Shape `[B, S]` each, int32.

  Raises:
    ValueError: a sequence is longer.
  """
  ids, mask = _all_padding(sequences, length, pad_id)
  for row, sequence in enumerate(sequences):
    ids[row, length - len(sequence) :] = sequence
    mask[row, length - len(sequence) :] = 1
  return ids, mask


def pad_right(
  sequences: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Pads completions on the right, so that each begins in the first column.

  Args:
    sequences: ids of B completions, each at most `length` long.
    length: T, tokens.
    pad_id: the padding token.

  Returns:
    Ids and mask, which is 1 at a token. Shape `[B, T]` each, int32.

  Raises:
    ValueError: a sequence is longer.
  """
  ids, mask = _all_padding(sequences, length, pad_id)
  for row, sequence in enumerate(sequences):
    ids[row, : len(sequence)] = sequence
    mask[row, : len(sequence)] = 1
  return ids, mask


def _all_padding(
  sequences: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns ids and mask of padding alone, after checking the lengths."""
  for row, sequence in enumerate(sequences):
    if len(sequence) > length:
      raise ValueError(
        f"sequence {row} has {len(sequence)} tokens, more than the {length} "
        "of the array"
      )
  shape = (len(sequences), length)
  return np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32)
