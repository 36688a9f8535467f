"""Chooses which checkpoints of a run are kept: the last, the best, every k."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from orbax.checkpoint import checkpoint_managers

from distil_jax.training.logging import run_folder


@dataclasses.dataclass
class MostAccurate:
  """Orbax's preservation policy of the steps with the highest accuracies.

  Its own `BestN` knows accuracies from when a step is saved alone, but the last
  step is evaluated after it is saved.

  Attributes:
    number: the steps to keep.
    accuracies: held-out accuracy by step; it may change between saves.
  """

  number: int
  accuracies: Mapping[int, float]

  def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
    """Returns True for each checkpoint to keep."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    best = by_accuracy(steps, self.accuracies)[: self.number]
    return [step in best for step in steps]


def build_policy(
  keep: int,
  keep_every: int | None,
  keep_best: int,
  accuracies: Mapping[int, float],
) -> checkpoint_managers.PreservationPolicy:
  """Returns a policy that keeps a step for any of the reasons.

  Args:
    keep: latest checkpoints to keep.
    keep_every: keeps the steps that are multiples of it; None keeps none.
    keep_best: checkpoints with the highest accuracies to keep.
    accuracies: held-out accuracy by step.
  """
  policies = [
    checkpoint_managers.LatestN(keep),
    MostAccurate(keep_best, accuracies),
  ]
  if keep_every is not None:
    policies.append(checkpoint_managers.EveryNSteps(keep_every))
  return checkpoint_managers.AnyPreservationPolicy(policies)


def by_accuracy(
  steps: Iterable[int], accuracies: Mapping[int, float]
) -> list[int]:
  """Returns the steps that have an accuracy, best first; of equals the last."""
  known = [step for step in steps if step in accuracies]
  return sorted(known, key=lambda step: (accuracies[step], step), reverse=True)


def read_accuracies(run_directory: pathlib.Path) -> dict[int, float]:
  """Returns the held-out accuracy of each step that the run has evaluated.

  Raises:
    ReportError: `evaluations.jsonl` is malformed.
  """
  found = {}
  for line in run_folder.read_lines(run_directory / run_folder.EVALUATIONS):
    # The number of samples may change between evaluations; the mean stays an
    # estimate of the same.
    means = [x for name, x in line.items() if name.startswith("avg@")]
    if means and means[0] is not None:
      found[line["step"]] = means[0]
  return found
