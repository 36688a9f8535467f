"""Finds stop strings in the text of completions, on the host."""

from collections.abc import Callable, Sequence

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
    shape: tuple[int, ...],
  ):
    """Remembers that nothing has been searched yet.

    Args:
      stop: Stop strings.
      decode: Turns token ids into text.
      shape: Shape of the rows, `[D, N]`.
    """
    self._stop = stop
    self._decode = decode
    self._num_searched = np.zeros(shape, np.int32)
    self._num_before = max(len(x.encode()) for x in stop) + _SPARE_TOKENS

  def find(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Searches the tokens that are new since the last call.

    Args:
      ids: Tokens of all rows. Shape `[D, N, T]`.
      lengths: Number of tokens of each row. Shape `[D, N]`.

    Returns:
      Number of tokens with which a row's text first contains a stop string, -1
      for rows without one. int32, shape `[D, N]`.
    """
    ends = np.full(lengths.shape, -1, np.int32)
    for row in zip(*np.nonzero(lengths > self._num_searched), strict=True):
      first, last = int(self._num_searched[row]), int(lengths[row])
      ends[row] = self._first_end(ids[row], first, last)
    self._num_searched[...] = lengths
    return ends

  def _first_end(self, ids: np.ndarray, first: int, last: int) -> int:
    """Returns the tokens up to and with the first stop string, or -1."""
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
