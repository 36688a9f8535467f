"""Counts what the networks compute in a step, without padding."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from distil_jax.models import model_flops
from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.types import TrainBatch


@dataclasses.dataclass(frozen=True)
class Networks:
  """Describes the networks that scoring and update run.

  Attributes:
    student: Sizes of the student.
    teachers: Sizes of each teacher; empty if none is run here.
    num_teacher_passes: Forward passes for one look at the teacher.
    reads_reference: True if the initial policy scores the student's sequences.
  """

  student: DecoderConfig
  teachers: Sequence[DecoderConfig] = ()
  num_teacher_passes: int = 1
  reads_reference: bool = False


@dataclasses.dataclass(frozen=True)
class Work:
  """Holds what a step computed, over all processes, without padding.

  Attributes:
    update_tokens: Tokens that the networks read in scoring and update.
    rollout_flops: Operations of sampling; 0 without a rollout.
    update_flops: Operations of scoring and update.
  """

  update_tokens: float = 0.0
  rollout_flops: float = 0.0
  update_flops: float = 0.0


@dataclasses.dataclass(frozen=True)
class WorkCounter:
  """Counts the operations of a process's part of a step.

  Attributes:
    networks: The networks that scoring and update run.
    group_size: G; None if a step learns from demonstrations.
  """

  networks: Networks
  group_size: int | None

  def __call__(
    self, batch: TrainBatch, read: Sequence[TrainBatch]
  ) -> dict[str, float]:
    """Returns `rollout_flops` and `update_flops`.

    Args:
      batch: This process's rows, on the host.
      read: The same rows as the networks read them.
    """
    student, size = self.networks.student, self.group_size
    return {
      "rollout_flops": 0.0
      if size is None
      else rollout_flops(student, batch, size),
      "update_flops": sum(update_flops(self.networks, x) for x in read),
    }


def update_flops(networks: Networks, batch: TrainBatch) -> float:
  """Returns the operations of scoring and update of some sequences.

  Args:
    networks: The networks that read them.
    batch: This process's rows, on the host.
  """
  completions = _lengths(batch.completion_mask)
  own = model_flops.count(
    networks.student,
    _lengths(batch.prompt_mask) + completions,
    completions.sum(),
  )
  flops = own.training + networks.reads_reference * own.forward
  if networks.teachers and batch.teacher_prompt_mask.shape[1]:
    flops += networks.num_teacher_passes * sum(
      _teacher_flops(config, batch, _rows_of(number, batch))
      for number, config in enumerate(networks.teachers)
    )
  return flops


def rollout_flops(
  config: DecoderConfig, batch: TrainBatch, group_size: int
) -> float:
  """Returns the operations of sampling some completions.

  Args:
    config: Sizes of the student.
    batch: This process's rows, on the host. The prompts of a group are equal,
      and are read once.
    group_size: G.
  """
  prompts = _lengths(batch.prompt_mask)
  completions = _lengths(batch.completion_mask)
  # The last token of a completion is not read, but its logits are those of the
  # token before.
  ends = prompts + np.maximum(completions - 1, 0)
  first = model_flops.count(
    config, prompts[::group_size], len(prompts) // group_size
  )
  rest = model_flops.count(config, ends, ends.sum() - prompts.sum(), prompts)
  return first.forward + rest.forward


def _teacher_flops(
  config: DecoderConfig, batch: TrainBatch, is_own: np.ndarray
) -> float:
  """Returns the operations of a teacher's pass over its own rows."""
  completions = _lengths(batch.completion_mask)[is_own]
  prompts = _lengths(batch.teacher_prompt_mask)[is_own]
  prefixes, flops = np.zeros_like(prompts), 0.0
  if batch.teacher_prefix_mask is not None:
    found = _lengths(batch.teacher_prefix_mask)
    flops = model_flops.count(config, found, 0).forward
    prefixes = np.repeat(found, len(is_own) // len(found))[is_own]
  ends = prefixes + prompts + completions
  flops += model_flops.count(config, ends, completions.sum(), prefixes).forward
  if batch.later_prompt_mask is not None:
    later = _lengths(batch.later_prompt_mask)[is_own]
    # Each turn's teacher reads the whole completion after its own prompt.
    ends = (later + (later > 0) * completions[:, None]).reshape(-1)
    num_logits = float(np.sum((later > 0) * completions[:, None]))
    flops += model_flops.count(config, ends, num_logits).forward
  return flops


def _rows_of(number: int, batch: TrainBatch) -> np.ndarray:
  """Returns True for each sequence of a teacher. Shape `[B]`."""
  if batch.teacher_index is None:
    return np.ones(len(batch.completion_mask), bool)
  return np.asarray(batch.teacher_index) == number


def _lengths(mask: np.ndarray) -> np.ndarray:
  """Returns the number of tokens along the last axis."""
  return np.sum(np.asarray(mask, np.int64), axis=-1)
