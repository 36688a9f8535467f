"""Selects the trials that count: chosen learning rates and reported seeds."""

import math

import numpy as np

from distil_jax.analysis.comparison.settings import Comparison
from distil_jax.analysis.comparison.trial_record import Done, Found, Records


def chosen_rate(
  comparison: Comparison, family: str, arm: str, done: Done
) -> float | None:
  """Returns the learning rate with the best tuning trials.

  Best is the final accuracy, to the nearest hundredth. Between equals the mean
  over the curve decides, then the distance to the middle of the grid.

  Returns:
    The rate; None until all tuning trials of the arm are done.
  """
  arm = comparison.arms[arm].like or arm
  grid = comparison.learning_rates_of(family, arm)
  if len(grid) == 1:
    return grid[0]
  # Rates of a grid are factors apart, so distances are those of logarithms.
  middle = math.log(sorted(grid)[len(grid) // 2])
  ranks = []
  for rate in grid:
    records = [
      record
      for trial, record in done.items()
      if trial.is_tuning
      and (trial.family, trial.arm) == (family, arm)
      and trial.learning_rate == rate
      and comparison.is_planned(trial)
    ]
    if len(records) < comparison.tuning_seeds_of(family):
      return None
    final = np.mean([r["after"]["avg"] for r in records])
    curve = np.mean([[p["avg"] for p in r["curve"]] for r in records])
    distance = abs(math.log(rate) - middle)
    # Rounded, so that noise in the last digits does not choose a rate.
    ranks.append((round(float(final), 2), float(curve), -distance, rate))
  return max(ranks)[-1]


def reported(
  comparison: Comparison, done: Done, family: str, arm: str
) -> Records:
  """Returns the records of an arm that count in the report."""
  rate = chosen_rate(comparison, family, arm, done)
  return [
    record
    for trial, record in done.items()
    if (trial.family, trial.arm) == (family, arm)
    and trial.learning_rate == rate
    and not trial.is_tuning
    and comparison.is_planned(trial)
  ]


def collect(comparison: Comparison, done: Done) -> Found:
  """Returns all records that count in the report, by family and arm."""
  found = {}
  for family in comparison.families:
    by_arm = {
      arm: reported(comparison, done, family, arm) for arm in comparison.arms
    }
    by_arm = {arm: records for arm, records in by_arm.items() if records}
    if by_arm:
      found[family] = by_arm
  return found
