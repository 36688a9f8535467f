"""Finds stop strings in the text of completions, on the host."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

# Most tokens of a byte-level vocabulary have at least one byte, so a stop
# string spans at most as many tokens as it has bytes. Special tokens have no
# text: so many of them may stand in between.
_SPARE_TOKENS = 8


class StopStringSearch:
  """Searches the rows of one rollout, each token once."""

  def __init__(
    self,
    stop: Sequence[str],
    decode: Callable[[list[int]], str],
    special_ids: Mapping[str, int],
  ):
    """Remembers that nothing has been searched yet.

    Args:
      stop: Stop strings.
      decode: Turns token ids into text.
      special_ids: Tokens that have no text, by the strings that mean them.
    """
    self._stop = stop
    self._stop_ids = [special_ids[x] for x in stop if x in special_ids]
    self._decode = decode
    self._num_searched: np.ndarray | None = None
    self._num_before = max(len(x.encode()) for x in stop) + _SPARE_TOKENS

  def find(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Searches the tokens that are new since the last call.

    Args:
      ids: Tokens of all rows. Shape `[D, N, T]`.
      lengths: Number of tokens of each row. Shape `[D, N]`.

    Returns:
      Number of tokens with which a row's text first contains a stop string, or
      a token that one of them means; -1 for rows without one. int32, shape
      `[D, N]`.
    """
    ends = np.full(lengths.shape, -1, np.int32)
    searched, self._num_searched = self._num_searched, lengths.copy()
    if searched is None:
      searched = np.zeros_like(lengths)
    for row in zip(*np.nonzero(lengths > searched), strict=True):
      first, last = int(searched[row]), int(lengths[row])
      ends[row] = self._first_end(ids[row], first, last)
    return ends

  def _first_end(self, ids: np.ndarray, first: int, last: int) -> int:
    """Returns the tokens up to and with the first stop string, or -1."""
    special = np.flatnonzero(np.isin(ids[first:last], self._stop_ids))
    if special.size:
      # A string may still end before it.
      last = first + int(special[0])
      before = self._first_end(ids, first, last) if last > first else -1
      return last + 1 if before < 0 else before
    # One look at the new text is enough for most rows; only a hit is searched
    # token by token.
    start = max(0, first - self._num_before)
    if not self._is_in(ids[start:last]):
      return -1
    # A hit counts if it is in the text from the beginning, as people will read
    # it: the text above may begin in the middle of a character.
    return next(
      (n for n in range(first + 1, last + 1) if self._is_in(ids[:n])), -1
    )

  def _is_in(self, ids: np.ndarray) -> bool:
    text = self._decode(ids.tolist())
    return any(string in text for string in self._stop)
