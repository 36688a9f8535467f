"""How completions are sampled, checked on the host."""

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distil_jax.ops import sampling

OneOrMore = float | None | Sequence[float | None]


_LARGEST = 2**31 - 1


# What each setting may be, and that in words.
_ALLOWED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
  # Logits divided by less overflow.
  "temperature": (
    lambda x: x == 0 or 1e-6 <= x <= 1e6,
    "0, or from 1e-6 to 1e6",
  ),
  "top_k": (lambda x: x >= 1 and x == int(x), "a whole number above 0"),
  "top_p": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
  "min_p": (lambda x: 0 <= x <= 1, "in [0, 1]"),
}


def choice(
  *,
  temperature: OneOrMore = 1.0,
  top_k: OneOrMore = None,
  top_p: OneOrMore = None,
  min_p: OneOrMore = None,
) -> sampling.Choice:
  """Settings as people write them, as the sampler wants them.

  Args:
    temperature, top_k, top_p, min_p: see `sampling.Choice`; None: all tokens.
      One value, or a list of one for each prompt.

  Raises:
    ValueError: names the setting, its value and what it may be.
  """
  given = {
    "temperature": temperature,
    "top_k": top_k,
    "top_p": top_p,
    "min_p": min_p,
  }
  neutral = sampling.Choice()
  columns: dict[str, Any] = {}
  for name, values in given.items():
    rows = np.atleast_1d(np.asarray(values, object)).tolist()
    for value in rows:
      is_number = isinstance(value, numbers.Real)
      if value is not None and not (is_number and _ALLOWED[name][0](value)):
        raise ValueError(f"{name}={value} must be {_ALLOWED[name][1]}")
    rows = [getattr(neutral, name) if x is None else x for x in rows]
    rows = [min(x, _LARGEST) for x in rows]
    column = np.asarray(rows, np.int32 if name == "top_k" else np.float32)
    columns[name] = column[0] if len(rows) == 1 else column[:, None]
  return sampling.Choice(**columns)
