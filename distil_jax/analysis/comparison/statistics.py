"""Computes means, standard errors, gaps and ranks of arms over seeds."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from distil_jax.analysis.comparison.trial_record import Found, Record, Records

Measure = Callable[[Record], float]
Rank = Literal["first", "tied", "behind"]


@dataclasses.dataclass(frozen=True)
class Cell:
  """Holds mean and standard error over the seeds of an arm in a family.

  The error is NaN if there is only one seed.
  """

  mean: float
  error: float
  num_seeds: int
  learning_rate: float


def final_accuracy(record: Record) -> float:
  return record["after"]["avg"]


def mean_accuracy(record: Record) -> float:
  """Returns the mean over the learning curve, which shows early learning."""
  return float(np.mean([point["avg"] for point in record["curve"]]))


def num_rollouts(record: Record) -> int:
  """Returns the number of rollouts that a trial was trained on."""
  return record["num_sequences"] * record["curve"][-1]["step"]


def records_of(found: Found) -> list[Record]:
  """Returns the records of all families and arms."""
  return [
    record
    for by_arm in found.values()
    for records in by_arm.values()
    for record in records
  ]


def rows_of(
  found: Found, arms: Sequence[str]
) -> Iterator[tuple[str, str, Records]]:
  """Yields family, arm and records of each arm that has any."""
  return (
    (family, arm, found[family][arm])
    for family in found
    for arm in arms
    if arm in found[family]
  )


def cell(records: Records, measure: Measure) -> Cell:
  """Returns the statistics of an arm in a family, of at least one record."""
  mean, error = mean_and_error([measure(record) for record in records])
  return Cell(mean, error, len(records), records[0]["learning_rate"])


def cells(
  by_arm: Mapping[str, Records],
  arms: Sequence[str],
  measure: Measure = final_accuracy,
) -> dict[str, Cell]:
  """Returns the statistics of those arms that have run in a family."""
  return {arm: cell(by_arm[arm], measure) for arm in arms if arm in by_arm}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
  """Returns the mean and its standard error, which is NaN for one value."""
  error = math.nan
  if len(values) > 1:
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
  return float(np.mean(values)), error


def gap(
  own: Records, other: Records, measure: Measure
) -> tuple[float, float] | None:
  """Returns the mean difference of two arms and its standard error.

  Arms share seeds, and with them bases and problems. The difference is taken
  seed by seed, so that what a seed does to both arms cancels.

  Returns:
    Mean and error of own less other; None if they have no seed in common.
  """
  by_seed = {_start(record): measure(record) for record in other}
  gaps = [
    measure(record) - by_seed[_start(record)]
    for record in own
    if _start(record) in by_seed
  ]
  return mean_and_error(gaps) if gaps else None


def _start(record: Record) -> tuple[int, int]:
  """Returns base and seed, which determine where a trial starts."""
  return record["base"], record["seed"]


def is_tied(one: Cell, first: Cell) -> bool:
  """Returns True if an arm is within one standard error of the first.

  The error is that of the difference. If there is none, because an arm has
  only one seed, only equal means are tied.
  """
  # Errors add as squares, as if the two means were independent.
  error = math.hypot(one.error, first.error)
  return one.mean >= first.mean - (0.0 if math.isnan(error) else error)


def rank(own: Cell, others: Sequence[Cell]) -> Rank:
  """Returns the rank of an arm in its family, among at least one other."""
  best = max(others, key=lambda c: c.mean)
  if own.mean > best.mean:
    return "first"
  return "tied" if is_tied(own, best) else "behind"
