"""Defines what a callback is told of a training step."""

import dataclasses
from collections.abc import Callable, Mapping

from distil_jax.training.rollouts.experience import Experience


@dataclasses.dataclass(frozen=True)
class StepResult:
  """Holds what a training step did, for a callback.

  Attributes:
    step: number of the step, counted from 1.
    metrics: numbers by the names of docs/reference/metrics.md.
    experience: the problems, completions and verdicts that it learned from;
      None for a supervised step.
  """

  step: int
  metrics: Mapping[str, float]
  experience: Experience | None


OnStep = Callable[[StepResult], None]
