"""Stops a run whose numbers have failed."""

import math
import pathlib
from collections.abc import Callable, Mapping


class TrainingError(RuntimeError):
  """The error of a run that cannot go on; its last good state is saved."""


def check_finite(
  step: int,
  metrics: Mapping[str, float],
  directory: pathlib.Path,
  save: Callable[[], None],
) -> None:
  """Stops a run whose numbers have failed, after saving its last good state.

  Args:
    step: the training steps done before.
    metrics: of the step.
    directory: the run's folder.
    save: saves the state before the step, and waits until it is written.

  Raises:
    TrainingError: loss or gradient norm are not finite.
  """
  loss, norm = metrics["loss"], metrics["gradient_norm"]
  if math.isfinite(loss) and math.isfinite(norm):
    return
  save()
  raise TrainingError(
    f"step {step + 1}: the loss is {loss} and the gradient norm {norm}; the "
    f"state before this step is saved in {directory}/checkpoints. Lower "
    "optimizer.learning_rate, or look at the data of this step"
  )
