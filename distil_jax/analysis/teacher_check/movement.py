"""Measures how a step moved the teacher, and what padding changed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.analysis.teacher_check.records import Movement
from distil_jax.types import TrainBatch

# A power of two away, so that the way itself is hardly rounded.
_DISPLACEMENT = 1 / 64


def displaced(params: Any) -> Any:
  """Returns parameters a little away from these, in their types."""
  return jax.tree.map(
    lambda x: (x.astype(jnp.float32) * (1 + _DISPLACEMENT)).astype(x.dtype),
    params,
  )


def of_teacher(before: Any, target: Any, after: Any, rate: float) -> Movement:
  """Compares a teacher after a step with where it should be.

    before + rate · (target − before)

  Args:
    before, after: the teacher's parameters around the step.
    target: what it follows, the student after the step.
    rate: share of the way.
  """
  along = square = distance = deviation = 0.0
  num_params = 0
  leaves = (jax.tree.leaves(tree) for tree in (before, target, after))
  for old, aim, new in zip(*leaves, strict=True):
    unit = float(jnp.finfo(new.dtype).eps)
    b, t, a = (np.asarray(x).astype(np.float64) for x in (old, aim, new))
    way = t - b
    along += float(np.sum((a - b) * way))
    square += float(np.sum(way * way))
    distance = max(distance, float(np.abs(a - b).max(initial=0)))
    size = unit * np.maximum(np.abs(b), np.abs(t)) + 1e-30
    gap = np.abs(a - (b + rate * way)) / size
    deviation = max(deviation, float(gap.max(initial=0)))
    num_params += b.size
  return Movement(
    rate=rate,
    measured_rate=along / square if square else 0.0,
    distance=distance,
    deviation=deviation,
    num_params=num_params,
  )


def relative_distance(tree: Any, other: Any) -> float:
  """Returns the largest difference of two entries, relative to their leaf's."""
  largest = 0.0
  for one, two in zip(
    jax.tree.leaves(tree), jax.tree.leaves(other), strict=True
  ):
    one, two = (np.asarray(x).astype(np.float64) for x in (one, two))
    gap = np.abs(one - two).max(initial=0)
    # NaN in one of them is a difference too.
    if not np.isfinite(gap):
      return float("inf")
    largest = max(largest, float(gap / (np.abs(one).max(initial=0) + 1e-30)))
  return largest


def with_garbage(
  batch: TrainBatch, vocab_size: int, seed: int
) -> tuple[TrainBatch, int]:
  """Returns a batch with garbage wherever nothing counts, and where that is.

  Args:
    batch: on the host.
    vocab_size: garbage is tokens below it.
    seed: of the garbage.

  Returns:
    The batch, and the number of positions that were filled.
  """
  rng = np.random.default_rng(seed)
  changed: dict[str, np.ndarray] = {}
  count = 0
  for name in ("prompt", "teacher_prompt", "completion", "teacher_prefix"):
    ids = getattr(batch, f"{name}_ids")
    if ids is None:
      continue
    is_padding = np.asarray(getattr(batch, f"{name}_mask")) == 0
    garbage = rng.integers(0, vocab_size, ids.shape).astype(ids.dtype)
    changed[f"{name}_ids"] = np.where(is_padding, garbage, ids)
    count += int(is_padding.sum())
  is_padding = np.asarray(batch.completion_mask) == 0
  old = np.asarray(batch.old_log_probs)
  changed["old_log_probs"] = np.where(is_padding, np.nan, old).astype(old.dtype)
  return dataclasses.replace(batch, **changed), count
