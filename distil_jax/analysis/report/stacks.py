"""Counts verdicts, and what the teacher was told, over the steps of runs."""

from collections.abc import Mapping

import numpy as np

from distil_jax.analysis.report.figures import Stack
from distil_jax.analysis.report.groups import Group
from distil_jax.types import Status

MAX_BARS = 48
# What the class of each kind is called in the style sheet is its name too.
_SIGNALS = {
  "feedback": "the environment's feedback",
  "sibling": "another sample's solution",
  "reference": "the row's solution",
  "none": "nothing",
}


def verdict_stack(group: Group, title: str) -> Stack | None:
  """Returns the verdicts of a group's completions; None without any."""
  return _stack(
    group,
    title,
    "Crashed is the judge's own failure: nothing is known of the completion.",
    {f"status/{status}": str(status) for status in Status},
  )


def signal_stack(group: Group, title: str) -> Stack | None:
  """Returns what the teacher was told; None if nobody counted that.

  A prompt can hold a solution and feedback; then both count.
  """
  return _stack(
    group,
    title,
    "What stood in the teacher's prompts; a prompt with two things counts "
    "for both.",
    {f"signal/{name}": text for name, text in _SIGNALS.items()},
  )


def _stack(
  group: Group, title: str, note: str, names: Mapping[str, str]
) -> Stack | None:
  by_step: dict[int, np.ndarray] = {}
  for run in group.runs:
    for line in run.metrics:
      counts = np.array([line.get(name) or 0.0 for name in names])
      if counts.any():
        step = line["step"]
        by_step[step] = by_step.get(step, 0.0) + counts
  if not by_step:
    return None
  steps = np.array(sorted(by_step))
  counts = np.stack([by_step[step] for step in steps.tolist()], axis=1)
  parts = np.array_split(np.arange(len(steps)), min(len(steps), MAX_BARS))
  binned = np.stack([counts[:, part].sum(axis=1) for part in parts], axis=1)
  is_used = counts.sum(axis=1) > 0
  return Stack(
    title=title,
    note=note,
    names=[x for x, used in zip(names.values(), is_used, strict=True) if used],
    kinds=[
      f"k-{name.partition('/')[2]}"
      for name, used in zip(names, is_used, strict=True)
      if used
    ],
    steps=np.array([steps[part[-1]] for part in parts]),
    shares=(binned / binned.sum(axis=0))[is_used],
    totals=counts.sum(axis=1)[is_used],
  )
