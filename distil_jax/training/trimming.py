"""Cuts off columns of a batch that are padding in all of its rows.

Limits of lengths are limits then, and no sizes of arrays: a looser one costs
nothing.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from distil_jax.data import length_buckets
from distil_jax.distributed import collectives
from distil_jax.models import sharding
from distil_jax.types import TrainBatch

# Fields that begin so are padded on the left, along their last axis. All others
# with two axes or more are `[B, T, ...]`, padded on the right.
_PROMPTS = ("prompt", "teacher_prompt", "teacher_prefix", "later_prompt")
_COMPLETION = "completion"
# Prompts of a teacher without their common beginning are shorter, and their
# width is remembered apart.
_REST = "teacher_rest"


class Trimmer:
  """Cuts batches to widths of few sizes, the same in all processes.

  A completion's width is that of the longest in the batch. Widths of prompts
  only grow: if each followed its batch, every combination of them would be a
  program. They must be kept with a checkpoint, so that a resumed run has the
  same programs, which round alike.

  Attributes:
    widths: of prompts, the largest so far.
  """

  def __init__(self, widths: Mapping[str, int] | None = None):
    self.widths = dict(widths or {})

  def __call__(self, batch: TrainBatch) -> TrainBatch:
    """Returns the batch, on the host, without columns of padding.

    It depends on the mesh that is set: devices that share a sequence must
    share what is left of it.

    Args:
      batch: this process's rows, padded to the limits.
    """
    limits = _limits(batch)
    lengths = collectives.global_maxima(
      [
        num_columns(
          getattr(batch, f"{name}_mask"), is_left_padded=name != _COMPLETION
        )
        for name in limits
      ]
    )
    multiple = sharding.num_shards("sequence")
    found = {}
    for (name, limit), length in zip(limits.items(), lengths, strict=True):
      found[name] = length_buckets.bucket_size(length, limit, multiple=multiple)
      if name != _COMPLETION:
        key = _remembered_as(name, batch)
        found[name] = max(found[name], min(self.widths.get(key, 0), limit))
        self.widths[key] = found[name]
    return cut(batch, found)


def cut(batch: TrainBatch, widths: Mapping[str, int]) -> TrainBatch:
  """Returns the batch with prompts and completions of the given widths.

  Args:
    batch: on the host.
    widths: columns to keep of `prompt`, `teacher_prompt`, `teacher_prefix`,
      `later_prompt` and `completion`; a part that is not named keeps all.
  """
  changed = {}
  for field in dataclasses.fields(batch):
    value, name = getattr(batch, field.name), _part_of(field.name)
    if value is None or value.ndim < 2 or name not in widths:
      continue
    width = widths[name]
    changed[field.name] = (
      value[:, :width]
      if name == _COMPLETION
      else value[..., value.shape[-1] - width :]
    )
  return dataclasses.replace(batch, **changed)


def num_columns(mask: np.ndarray, *, is_left_padded: bool) -> int:
  """Returns the columns that hold all tokens of all rows.

  Args:
    mask: 1 at tokens. Shape `[B, S]`, or `[B, K, S]`.
    is_left_padded: the columns are the last ones, not the first.
  """
  used = np.flatnonzero(np.any(mask, axis=tuple(range(mask.ndim - 1))))
  if not used.size:
    return 0
  return int(mask.shape[-1] - used[0] if is_left_padded else used[-1] + 1)


def _limits(batch: TrainBatch) -> dict[str, int]:
  """Returns the widths of the batch's parts."""
  masks = {
    name: getattr(batch, f"{name}_mask") for name in (*_PROMPTS, _COMPLETION)
  }
  return {
    name: mask.shape[-1] for name, mask in masks.items() if mask is not None
  }


def _part_of(field: str) -> str:
  names = (name for name in _PROMPTS if field.startswith(f"{name}_"))
  return next(names, _COMPLETION)


def _remembered_as(name: str, batch: TrainBatch) -> str:
  is_rest = name == "teacher_prompt" and batch.teacher_prefix_ids is not None
  return _REST if is_rest else name
