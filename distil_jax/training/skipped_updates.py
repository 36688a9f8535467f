"""Skips updates whose numbers have failed, and ends a run of too many."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from distil_jax.training.train_state import TrainState

NAME = "updates_skipped"


class TrainingError(RuntimeError):
  """The error of a run that cannot go on; its last good state is saved."""


@dataclasses.dataclass
class SkippedUpdates:
  """Counts steps whose loss or gradient is not finite.

  Attributes:
    most: so many in a row are skipped; the next one ends the run.
    total: those of the run so far.
    in_a_row: those up to the last step.
  """

  most: int
  total: int = 0
  in_a_row: int = 0

  @property
  def counts(self) -> tuple[int, int]:
    """Returns what a checkpoint keeps: those of the run, and in a row."""
    return self.total, self.in_a_row

  def passed(self) -> None:
    """Notes a step whose numbers are finite."""
    self.in_a_row = 0

  def failed(
    self, step: int, metrics: Mapping[str, float], batch: pathlib.Path
  ) -> str:
    """Notes a step whose numbers are not, and returns what to say of it.

    Args:
      step: the training step, counted from 1.
      metrics: with `loss` and `gradient_norm`.
      batch: the file that has the step's batch.

    Raises:
      TrainingError: there were as many as are skipped right before it.
    """
    said = (
      f"step {step}: the loss is {metrics['loss']} and the gradient norm "
      f"{metrics['gradient_norm']}"
    )
    replay = (
      f"its batch is in {batch}, and distil-jax replay {batch.parents[1]} "
      f"{step} computes it again"
    )
    if self.in_a_row >= self.most:
      before = (
        f", after {self.in_a_row} such steps whose updates were skipped"
        if self.in_a_row
        else ""
      )
      raise TrainingError(
        f"{said}{before} (train.max_skipped_updates={self.most}). The state "
        f"before this step is the last good one; {replay}. Lower "
        "optimizer.learning_rate, or look at the data of this step"
      )
    self.total += 1
    self.in_a_row += 1
    return f"{said}: its update is skipped; {replay}"

  def metrics(self) -> dict[str, float]:
    """Returns the metric, once there is something to count."""
    return {NAME: float(self.total)} if self.total else {}


def with_step_done(state: TrainState) -> TrainState:
  """Returns the state after a step that changed nothing else."""
  count = jax.jit(lambda step: step + 1, out_shardings=_sharding(state.step))
  return dataclasses.replace(state, step=count(state.step))


def _sharding(x: Any) -> Any:
  # Of another sharding the next step would be another program.
  return x.sharding
