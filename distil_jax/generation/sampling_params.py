"""Settings of sampling, as people write them."""

import dataclasses
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distil_jax.ops.token_sampling import SamplingArrays

OneOrMore = float | None | Sequence[float | None]

_LARGEST = 2**31 - 1
# A test of each value, and the allowed values in words.
_ALLOWED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
  # Logits divided by a smaller temperature overflow.
  "temperature": (
    lambda x: x == 0 or 1e-6 <= x <= 1e6,
    "0, or from 1e-6 to 1e6",
  ),
  "top_k": (lambda x: x >= 1 and x == int(x), "a whole number above 0"),
  "top_p": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
  "min_p": (lambda x: 0 <= x <= 1, "in [0, 1]"),
}


@dataclasses.dataclass(frozen=True)
class SamplingParams:
  """Holds how completions are sampled, and where they end.

  Temperature, top-k, top-p and min-p may be one value, or a sequence of one for
  each prompt. None means that all tokens are kept.

  Attributes:
    temperature: Divides the logits; 0 takes the most probable token.
    top_k: Samples among the k most probable tokens.
    top_p: Samples among the most probable tokens that reach this mass.
    min_p: Samples among tokens whose probability is at least this share of the
      largest.
    stop: Strings; the first token with which the text contains one of them is
      the last of a completion. One that spells a special token, such as
      `<|im_end|>`, means that token.
    max_tokens: T, the most tokens of a completion.

  Raises:
    ValueError: Names the setting, its value and what it may be.
  """

  temperature: OneOrMore = 1.0
  top_k: OneOrMore = None
  top_p: OneOrMore = None
  min_p: OneOrMore = None
  stop: Sequence[str] = ()
  max_tokens: int = 128

  def __post_init__(self):
    for name, (is_allowed, allowed) in _ALLOWED.items():
      values = _values(getattr(self, name))
      for value in values:
        is_number = isinstance(value, numbers.Real)
        if value is not None and not (is_number and is_allowed(value)):
          raise ValueError(f"{name}={value} must be {allowed}")
      # Tuples, so that the record can be hashed.
      object.__setattr__(
        self, name, values[0] if len(values) == 1 else tuple(values)
      )
    stop = self.stop
    if isinstance(stop, str) or not all(isinstance(x, str) and x for x in stop):
      raise ValueError(f"stop={stop!r} must be a list of strings, none empty")
    object.__setattr__(self, "stop", tuple(stop))
    check_size("max_tokens", self.max_tokens)

  def arrays(self) -> SamplingArrays:
    """Returns the settings as arrays that a decode step takes.

    Returns:
      Scalars, or shape `[P, 1]` for a setting with one value for each prompt.
    """
    neutral = SamplingArrays()
    columns: dict[str, Any] = {}
    for name in _ALLOWED:
      rows = [
        getattr(neutral, name) if x is None else x
        for x in _values(getattr(self, name))
      ]
      # A larger top-k would not fit into int32, and keeps all tokens as well.
      rows = [min(x, _LARGEST) for x in rows]
      column = np.asarray(rows, np.int32 if name == "top_k" else np.float32)
      # A column broadcasts over the samples of each prompt.
      columns[name] = column[0] if len(rows) == 1 else column[:, None]
    return SamplingArrays(**columns)


def check_size(name: str, size: Any) -> None:
  """Refuses a size that is not a positive whole number.

  Raises:
    ValueError: Names the setting and its value.
  """
  is_whole = isinstance(size, numbers.Integral) and not isinstance(size, bool)
  if not is_whole or size < 1:
    raise ValueError(f"{name}={size} must be a positive whole number")


def _values(setting: OneOrMore) -> list[Any]:
  # As objects, None and the numbers keep their own types for the messages.
  return np.atleast_1d(np.asarray(setting, object)).tolist()
