"""What the trials of a comparison come to: means, errors, gaps, places."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from distil_jax.analysis.comparison import trial_store
from distil_jax.analysis.comparison.settings import Comparison
from distil_jax.analysis.comparison.trial_store import Done

Records = Sequence[Mapping[str, Any]]
# Reported records by family, then by arm; without those that have none.
Found = Mapping[str, Mapping[str, Records]]
Measure = Callable[[Mapping[str, Any]], float]
Place = Literal["first", "tied", "behind"]


@dataclasses.dataclass(frozen=True)
class Cell:
  """Mean and standard error over the seeds of an arm in a family.

  The error is NaN where there is one seed alone.
  """

  mean: float
  error: float
  num_seeds: int
  learning_rate: float


def reported(
  comparison: Comparison, done: Done, family: str, arm: str
) -> Records:
  """The records that count: chosen learning rate, seeds of the report."""
  rate = trial_store.chosen_rate(comparison, family, arm, done)
  return [
    record
    for trial, record in done.items()
    if (trial.family, trial.arm) == (family, arm)
    and trial.learning_rate == rate
    and not trial.is_tuning
    and trial_store.is_planned(comparison, trial)
  ]


def collect(comparison: Comparison, done: Done) -> Found:
  """All records that count."""
  found = {}
  for family in comparison.families:
    of_arms = {
      arm: reported(comparison, done, family, arm) for arm in comparison.arms
    }
    of_arms = {arm: records for arm, records in of_arms.items() if records}
    if of_arms:
      found[family] = of_arms
  return found


def records_of(found: Found) -> list[Mapping[str, Any]]:
  """All that was found, in a row."""
  return [
    record
    for of_arms in found.values()
    for of_arm in of_arms.values()
    for record in of_arm
  ]


def main_arms(comparison: Comparison) -> list[str]:
  """The arms that choose their own learning rate; others are ablations."""
  return [name for name, arm in comparison.arms.items() if arm.like is None]


def planned_seeds(comparison: Comparison, family: str) -> int:
  return comparison.families[family].seeds or comparison.seeds


def final_accuracy(record: Mapping[str, Any]) -> float:
  return record["after"]["avg"]


def mean_accuracy(record: Mapping[str, Any]) -> float:
  """Over the curve: how early it learns."""
  return float(np.mean([point["avg"] for point in record["curve"]]))


def num_rollouts(record: Mapping[str, Any]) -> int:
  """That the trial trained on."""
  return record["num_sequences"] * record["curve"][-1]["step"]


def cell(records: Records, measure: Measure) -> Cell:
  """Over the seeds of an arm in a family, of which there is at least one."""
  mean, error = mean_and_error([measure(record) for record in records])
  return Cell(mean, error, len(records), records[0]["learning_rate"])


def cells(
  of_arms: Mapping[str, Records],
  arms: Sequence[str],
  measure: Measure = final_accuracy,
) -> dict[str, Cell]:
  """Of those arms of a family that have run."""
  return {arm: cell(of_arms[arm], measure) for arm in arms if arm in of_arms}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
  """The mean and its standard error, which is NaN for one value alone."""
  error = math.nan
  if len(values) > 1:
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
  return float(np.mean(values)), error


def gap(
  own: Records, other: Records, measure: Measure
) -> tuple[float, float] | None:
  """Mean difference, seed by seed, and its standard error.

  Arms share seeds, and with them bases and problems, so that what a seed does
  to both drops out.

  Returns:
    own less other; None where they have no seed in common.
  """
  of_seed = {_start(record): measure(record) for record in other}
  gaps = [
    measure(record) - of_seed[_start(record)]
    for record in own
    if _start(record) in of_seed
  ]
  return mean_and_error(gaps) if gaps else None


def _start(record: Mapping[str, Any]) -> tuple[int, int]:
  return record["base"], record["seed"]


def is_tied(one: Cell, first: Cell) -> bool:
  """Whether `one` is within a standard error of the difference to `first`.

  Without an error, from one seed alone, only equals are tied.
  """
  error = math.hypot(one.error, first.error)
  return one.mean >= first.mean - (0.0 if math.isnan(error) else error)


def place(own: Cell, others: Sequence[Cell]) -> Place:
  """Where an arm stands in its family, among at least one other."""
  best = max(others, key=lambda c: c.mean)
  if own.mean > best.mean:
    return "first"
  return "tied" if is_tied(own, best) else "behind"


def default_places(comparison: Comparison, found: Found) -> dict[str, Place]:
  """Of the default among the main arms, in families that have another too."""
  places = {}
  for family, of_arms in found.items():
    others = cells(of_arms, main_arms(comparison))
    own = others.pop(comparison.default, None)
    if own and others:
      places[family] = place(own, [*others.values()])
  return places
