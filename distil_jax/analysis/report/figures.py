"""Defines what the figures of a report hold, before they are drawn."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Series:
  """Holds one line of a chart.

  Attributes:
    label: for the legend.
    steps: shape `[n]`.
    values: the line, smoothed if `raw` is there. Shape `[n]`.
    raw: the values before smoothing. Shape `[n]`; None for a short series.
    low, high: of the seeds; None with one run. Shape `[n]`.
    is_marked: each point was measured by itself, and has a mark.
  """

  label: str
  steps: np.ndarray
  values: np.ndarray
  raw: np.ndarray | None = None
  low: np.ndarray | None = None
  high: np.ndarray | None = None
  is_marked: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
  """Holds one chart.

  Attributes:
    title: above the chart.
    unit: of the values.
    note: what to look for.
    series: at least one.
    is_share: the axis shows percent from 0 up to 1 at most.
  """

  title: str
  unit: str
  note: str
  series: Sequence[Series]
  is_share: bool = False


@dataclasses.dataclass(frozen=True)
class Stack:
  """Holds shares that sum to 1 in each stretch of steps.

  Attributes:
    title: above the chart.
    note: what to look for.
    names: of the K kinds, for the legend.
    kinds: their classes in the style sheet.
    steps: the last step of each of the n stretches. Shape `[n]`.
    shares: shape `[K, n]`.
    totals: counts over all steps that were logged. Shape `[K]`.
  """

  title: str
  note: str
  names: Sequence[str]
  kinds: Sequence[str]
  steps: np.ndarray
  shares: np.ndarray
  totals: np.ndarray
