"""Reads series of numbers from reports, and smooths them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Records = Sequence[Mapping[str, Any]]

_LEAST_WINDOW = 5  # points; a shorter series has no running mean
_WINDOWS = 25  # number of windows side by side in a long run


def read(lines: Records, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns steps and values of a name, without the steps that lack it."""
  pairs = [(r["step"], r[name]) for r in lines if r.get(name) is not None]
  steps, values = zip(*pairs, strict=True) if pairs else ((), ())
  return np.array(steps, dtype=int), np.array(values, dtype=float)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
  """Returns the mean of each value and its neighbors on both sides.

  Args:
    values: shape `[n]`.
    window: number of values in a mean, odd; at both ends there are fewer.

  Returns:
    Shape `[n]`.
  """
  # Sums up to each point, so that the time does not depend on the window.
  sums = np.concatenate([[0.0], np.cumsum(values)])
  positions = np.arange(len(values))
  begins = np.maximum(positions - window // 2, 0)
  ends = np.minimum(positions + window // 2 + 1, len(values))
  return (sums[ends] - sums[begins]) / (ends - begins)


def window(num_points: int) -> int | None:
  """Returns the odd size of a running mean; None if the series is too short."""
  if num_points <= _LEAST_WINDOW:
    return None
  return max(_LEAST_WINDOW, num_points // _WINDOWS // 2 * 2 + 1)


def accuracies(evaluations: Records) -> list[str]:
  """Returns the names of the accuracies: avg@n first, then pass@k by k."""
  names = {
    name
    for line in evaluations
    for name, value in line.items()
    if name.startswith(("avg@", "pass@")) and value is not None
  }
  if any(name.startswith("avg@") for name in names):
    names.discard("pass@1")  # it equals avg@n
  return sorted(names, key=lambda name: (name[0], int(name.split("@")[1])))
