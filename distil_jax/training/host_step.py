"""Makes training steps from batches on the host, without their padding."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from distil_jax.distributed import collectives
from distil_jax.models import sharding
from distil_jax.training.step_work import Work, WorkCounter
from distil_jax.training.train_state import TrainState
from distil_jax.training.trimming import Trimmer
from distil_jax.types import TrainBatch

PADDING = "update/padding"


# `(state, batch) -> (state, metrics, read)`: a trimmed batch on the host, and
# what the networks read of it.
RunFn = Callable[..., tuple[TrainState, dict[str, Any], list[TrainBatch]]]
# `(state, batch, rows) -> records`, see `token_values.records`.
ValuesFn = Callable[..., list[dict[str, list[Any]]]]


class HostStep:
  """Trims batches and makes training steps of them.

  Attributes:
    trimmer: its widths belong into a checkpoint.
    work: what the last step computed.
  """

  def __init__(
    self,
    run_fn: RunFn,
    values_fn: ValuesFn | None = None,
    *,
    reads_teacher_prompts: bool,
    count: WorkCounter | None = None,
  ):
    """Takes the parts.

    Args:
      run_fn: makes the step; donates the state.
      values_fn: computes values of tokens; None computes none.
      reads_teacher_prompts: false if a teacher elsewhere has read them.
      count: counts the operations of a step; None counts none.
    """
    self.trimmer = Trimmer()
    self.work = Work()
    self._count = count
    self._run_fn = run_fn
    self._values_fn = values_fn
    self._reads_teacher_prompts = reads_teacher_prompts

  def __call__(
    self, state: TrainState, batch: TrainBatch
  ) -> tuple[TrainState, dict[str, Any]]:
    """Returns the next state, and scalars to log.

    Args:
      state: is donated.
      batch: this process's rows, on the host.
    """
    batch = self._trimmed(batch)
    state, metrics, read = self._run_fn(state, batch)
    sums = _read_sums(read)
    if self._count is not None:
      sums |= self._count(batch, read)
    sums = collectives.global_sums(sums)
    self.work = Work(
      sums["tokens"],
      sums.get("rollout_flops", 0.0),
      sums.get("update_flops", 0.0),
    )
    return state, {**metrics, PADDING: _padding_share(sums)}

  def token_values(
    self, state: TrainState, batch: TrainBatch, rows: Sequence[int]
  ) -> list[dict[str, list[Any]]]:
    """Returns values of the tokens of some rows before a step.

    All processes call it, for it runs on all devices.

    Args:
      state: before the step; it is kept.
      batch: this process's rows, on the host.
      rows: numbers of the first process's rows.

    Returns:
      Lists by name, an entry for each token, see `token_values.records`; empty
      without a teacher, or if nobody wants them.
    """
    if self._values_fn is None:
      return []
    return self._values_fn(state, self._trimmed(batch), rows)

  def _trimmed(self, batch: TrainBatch) -> TrainBatch:
    batch = self.trimmer(batch)
    return (
      batch if self._reads_teacher_prompts else without_teacher_prompts(batch)
    )


def whole_batch(
  step_fn: Callable[..., tuple[TrainState, dict[str, Any]]],
  mesh: jax.sharding.Mesh,
) -> RunFn:
  """Returns what makes a step with all rows in arrays of one width.

  Args:
    step_fn: `(state, batch) -> (state, metrics)` on the devices.
    mesh: the mesh of the step.
  """

  def run(state, batch):
    state, metrics = step_fn(state, sharding.put_batch(mesh, batch))
    return state, metrics, [batch]

  return run


def without_teacher_prompts(batch: TrainBatch) -> TrainBatch:
  """Returns the batch with teacher's prompts that have no columns."""
  return dataclasses.replace(
    batch,
    teacher_prompt_ids=batch.teacher_prompt_ids[:, :0],
    teacher_prompt_mask=batch.teacher_prompt_mask[:, :0],
    later_prompt_ids=None,
    later_prompt_mask=None,
  )


def padding_share(batches: list[TrainBatch]) -> float:
  """Returns the share of padding in what the networks read of some batches.

  Student and teacher read the completion after their own prompts.

  Args:
    batches: this process's rows, on the host.
  """
  return _padding_share(collectives.global_sums(_read_sums(batches)))


def _padding_share(sums: Mapping[str, float]) -> float:
  return 1 - sums["tokens"] / max(sums["columns"], 1.0)


def _read_sums(batches: list[TrainBatch]) -> dict[str, float]:
  """Returns the tokens and the columns that the networks read."""
  sums = {"tokens": 0.0, "columns": 0.0}
  for batch in batches:
    for mask in _read(batch):
      sums["tokens"] += float(np.sum(mask))
      sums["columns"] += float(mask.size)
  return sums


def _read(batch: TrainBatch) -> list[np.ndarray]:
  """Returns the masks of what is read, once for each time that it is."""
  masks = [batch.prompt_mask, batch.completion_mask]
  if batch.teacher_prompt_mask.shape[1]:
    masks += [batch.teacher_prompt_mask, batch.completion_mask]
  if batch.teacher_prefix_mask is not None:
    masks.append(batch.teacher_prefix_mask)
  if batch.later_prompt_mask is not None:
    for mask in np.moveaxis(batch.later_prompt_mask, 1, 0):
      masks += [mask, batch.completion_mask]
  return masks
