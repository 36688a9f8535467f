"""Defines the records that an objective is made of and is built from."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import struct

from distil_jax.models import experts
from distil_jax.ops import masking
from distil_jax.ops import sampler_mismatch as mismatch_lib
from distil_jax.ops.token_statistics import TeacherLists
from distil_jax.types import TrainBatch

_Record = TypeVar("_Record")
# A tree of parameters, as `models.decoder.Params`.
Params = dict[str, Any]
# For each metric that is a mean: its sum and its count, in shape `[2]`.
MetricSums = dict[str, jax.Array]


@struct.dataclass
class LossAux:
  """Holds what the loss of a slice reports to the log.

  Attributes:
    sums: sum and count of each metric that is a mean.
    mismatch: how far the sampler's log-probabilities are from this pass's;
      None if nothing was sampled.
    loads: how the student's tokens use its experts; None without experts.
  """

  sums: MetricSums
  mismatch: mismatch_lib.Mismatch | None = None
  loads: experts.Loads | None = None


@dataclasses.dataclass(frozen=True)
class BatchCredit:
  """Finds credit that depends on the whole batch, in a pass of its own.

  Attributes:
    costs_fn: `(params, teacher_params, slice) -> costs` of the slice. `[b, T]`.
    score_fn: `(costs, mask) -> (score_weights, future_costs)` of the whole
      batch. `[B, T]` each.
  """

  costs_fn: Callable[..., jax.Array]
  score_fn: Callable[..., tuple[jax.Array, jax.Array]]

  def __call__(
    self, params: Params, teacher_params: Params, slices: TrainBatch
  ) -> tuple[jax.Array, jax.Array]:
    """Returns weights of log π_θ in the surrogate, and future costs.

    Args:
      params: the student's.
      teacher_params: the teacher's.
      slices: the batch, cut. `[n, b, ...]`.

    Returns:
      Shape `[B, T]` each.
    """
    # One slice after another, so that the activations of one are in memory.
    costs = jax.lax.map(
      lambda batch: self.costs_fn(params, teacher_params, batch), slices
    )
    masks = jax.vmap(teacher_mask)(slices)
    # Slices are the batch's rows in their order, so flattening joins them.
    whole = (-1, costs.shape[-1])
    return self.score_fn(costs.reshape(whole), masks.reshape(whole))


@dataclasses.dataclass(frozen=True)
class Objective:
  """An objective as the functions that a training step is made of.

  What couples sequences (rewards of a group, baselines, averages) is found over
  the whole batch first and travels in it, so that slices of the batch can be
  learned from one after the other.

  Attributes:
    prepare_fn: `batch -> batch` with what is known before any network runs,
      see `losses.prepare`.
    loss_fn: `(params, teacher_params, slice) -> (loss, LossAux)`.
    credit_fn: for credit that cannot be found slice by slice. None means that
      the loss finds it.
    ask_fn: `(params, teacher_params, slice, keys) -> TeacherLists`: asks a
      teacher for lists of tokens, see `teachers.ask_teacher`. None means that
      the loss has the teacher's distribution, or no teacher.
  """

  prepare_fn: Callable[[TrainBatch], TrainBatch]
  loss_fn: Callable[..., tuple[jax.Array, LossAux]]
  credit_fn: BatchCredit | None = None
  ask_fn: Callable[..., TeacherLists] | None = None


@dataclasses.dataclass(frozen=True)
class ForwardPasses:
  """The passes through the networks that an objective is built on.

  Each returns a `FusedStatistics`, tiled for the mesh in use.

  Attributes:
    own_fn: `(params, batch)`: a policy on the batch's tokens.
    compare_fn: `(params, teacher_params, batch, divergence=...)`: the student
      beside its teacher.
    ask_fn: as in `Objective`.
    teacher_names: of several teachers, in the order of `teacher_index`; empty
      if there is one.
  """

  own_fn: Callable[..., Any]
  compare_fn: Callable[..., Any]
  ask_fn: Callable[..., TeacherLists] | None = None
  teacher_names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class BatchLayout:
  """Says how a training step cuts its batch.

  Attributes:
    group_size: G.
    is_cut: whether an update accumulates gradients over micro-batches.
    splits_groups: whether a group may lie in several micro-batches.
    is_off_policy: whether a step has several updates, all but the first of
      which learn from samples of older parameters.
  """

  group_size: int
  is_cut: bool = False
  splits_groups: bool = False
  is_off_policy: bool = False


def read_settings(kind: type[_Record], section: Any, **others: Any) -> _Record:
  """Returns a record whose fields are read from a config's section by name.

  Args:
    kind: a dataclass.
    section: of a config; fields that it does not have keep their defaults.
    others: fields that the section cannot know.
  """
  # By name, so that no setting has to be listed a second time on its way.
  names = [field.name for field in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
  found = {
    name: getattr(section, name) for name in names if hasattr(section, name)
  }
  return kind(**found | others)


def teacher_mask(batch: TrainBatch) -> jax.Array:
  """Returns 1 at the tokens that a teacher judges. Shape `[b, T]`.

  These are the student's own. A sequence without teacher signal has none: its
  costs mean nothing, so they must not stand in its group's baseline either. The
  same holds for a turn whose teacher is told nothing, and for tokens that the
  config leaves out.
  """
  mask = masking.counted_tokens(batch.student_tokens, batch.sample_mask)
  if batch.taught_mask is not None:
    mask = mask * batch.taught_mask.astype(mask.dtype)
  if batch.turn_numbers is None:
    return mask
  return mask * (batch.turn_numbers >= 0).astype(mask.dtype)


def with_lists(batch: TrainBatch, lists: TeacherLists) -> TrainBatch:
  """Returns the batch with what a teacher that is known by lists said."""
  return dataclasses.replace(
    batch,
    teacher_candidate_ids=lists.ids,
    teacher_candidate_log_probs=lists.log_probs,
    teacher_log_probs=lists.token_log_probs,
  )
