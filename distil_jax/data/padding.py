"""Padding of token lists to rectangular arrays."""

from collections.abc import Sequence

import numpy as np


def pad_left(
  sequences: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Prompts in one array, each ending in the last column.

  Args:
    sequences: ids. B of them, each at most `length` long.
    length: S, tokens.
    pad_id: stands where no token is.

  Returns:
    ids and mask, 1 at a token. Shape `[B, S]` each, int32.

  Raises:
    ValueError: a sequence is longer.
  """
  ids, mask = _blank(sequences, length, pad_id)
  for row, sequence in enumerate(sequences):
    ids[row, length - len(sequence) :] = sequence
    mask[row, length - len(sequence) :] = 1
  return ids, mask


def pad_right(
  sequences: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Completions in one array, each beginning in the first column.

  Args:
    sequences: ids. B of them, each at most `length` long.
    length: T, tokens.
    pad_id: stands where no token is.

  Returns:
    ids and mask, 1 at a token. Shape `[B, T]` each, int32.

  Raises:
    ValueError: a sequence is longer.
  """
  ids, mask = _blank(sequences, length, pad_id)
  for row, sequence in enumerate(sequences):
    ids[row, : len(sequence)] = sequence
    mask[row, : len(sequence)] = 1
  return ids, mask


def _blank(
  sequences: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  for row, sequence in enumerate(sequences):
    if len(sequence) > length:
      raise ValueError(
        f"sequence {row} has {len(sequence)} tokens, more than the {length} "
        "of the array"
      )
  shape = (len(sequences), length)
  return np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32)
