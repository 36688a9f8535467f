"""Finds runs that collapse, and the measure that shows it first."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax.analysis.comparison import markdown, statistics
from distil_jax.analysis.comparison.settings import Comparison
from distil_jax.analysis.comparison.trial_record import Found

Curve = Sequence[Mapping[str, Any]]

# Accuracy that a collapsed run has lost for good.
_LOST_ACCURACY = 0.1
_NOTE = (
  "Seed by seed. accuracy fell: the first step from which it stays more than "
  "ten points below its best. The others: the first step at which a measure is "
  "that far from the best that it has been (teacher and length their highest, "
  "entropy and p_eos their lowest), lasting or not; where accuracy did not "
  "fall it is a false alarm or one that was averted. Left out: arms that show "
  "none of it."
)


@dataclasses.dataclass(frozen=True)
class Sign:
  """Describes a measure that warns by leaving its best value so far.

  Attributes:
    measure: Name of the measure on the learning curves.
    limit: Distance from its highest value that counts as a warning; from its
      lowest value if it `rises`.
    rises: True if a rise is bad.
    is_share: True if the limit is a share of the best value, not a difference.
  """

  measure: str
  limit: float
  rises: bool = False
  is_share: bool = False

  @property
  def label(self) -> str:
    amount = f"{self.limit:.0%}" if self.is_share else f"{self.limit:g}"
    return f"{self.measure} {'+' if self.rises else '−'}{amount}"


SIGNS = (
  Sign("teacher", 0.1),
  Sign("entropy", 0.1, rises=True),
  Sign("length", 0.1, is_share=True),
  Sign("p_eos", 0.05, rises=True),
)


def collapse_step(curve: Curve) -> int | None:
  """Returns the first step from which accuracy stays well below its best.

  Args:
    curve: Points with `step` and `avg`, in order.

  Returns:
    The step; None if the end is within a tenth of the best.
  """
  best = max(point["avg"] for point in curve)
  step = None
  # From the end, so that a fall that is made good again does not count.
  for point in reversed(curve):
    if point["avg"] > best - _LOST_ACCURACY:
      return step
    step = point["step"]
  return step


def warning_step(curve: Curve, sign: Sign) -> int | None:
  """Returns the first step at which a measure passes its limit, or None.

  Points without the measure are skipped.
  """
  best = None
  for point in curve:
    value = point.get(sign.measure)
    if value is None:
      continue
    if best is None:
      best = value
    best = min(best, value) if sign.rises else max(best, value)
    if abs(value - best) > sign.limit * (best if sign.is_share else 1.0):
      return point["step"]
  return None


def table(comparison: Comparison, found: Found) -> str | None:
  """Returns arms that collapsed or showed a sign; None if there are none."""
  heads = [sign.label for sign in SIGNS]
  rows = [["family", "arm", "best, %", "end, %", "accuracy fell", *heads]]
  for family, arm, records in statistics.rows_of(found, list(comparison.arms)):
    curves = [r["curve"] for r in sorted(records, key=lambda r: r["seed"])]
    steps = [[collapse_step(curve) for curve in curves]]
    for sign in SIGNS:
      # Without a teacher it would measure the student, given feedback.
      counts = (
        sign.measure != "teacher"
        or comparison.arms[arm].objective.needs_teacher
      )
      steps.append([warning_step(c, sign) if counts else None for c in curves])
    if all(step is None for of_seeds in steps for step in of_seeds):
      continue
    best = [max(point["avg"] for point in curve) for curve in curves]
    ends = [curve[-1]["avg"] for curve in curves]
    accuracies = [
      _listed([f"{100 * value:.0f}" for value in values])
      for values in (best, ends)
    ]
    rows.append([family, arm, *accuracies, *map(_listed, steps)])
  return f"{markdown.table(rows)}\n\n{_NOTE}" if len(rows) > 1 else None


def _listed(values: Sequence[object]) -> str:
  return ", ".join(markdown.NONE if v is None else str(v) for v in values)
