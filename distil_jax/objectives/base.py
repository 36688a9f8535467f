"""The record that every objective is built as."""

import dataclasses
from collections.abc import Callable

import jax

from distil_jax.objectives import losses
from distil_jax.types import TrainBatch


@dataclasses.dataclass(frozen=True)
class Objective:
  """An objective as the functions that a step is made of.

  Attributes:
    prepare_fn: what is known of a whole batch before any network runs, see
      `losses.prepare`.
    loss_fn: the loss of a slice, and what to report: `losses.*_loss`.
    credit_fn: where credit cannot be found slice by slice: the whole batch's,
      in a pass of its own, see `losses.batch_credit`. None: the loss finds it.
    ask_fn: where the teacher is known by a list of tokens: asks it, see
      `experts.ask_teacher`. None: the loss has its distribution.
  """

  prepare_fn: Callable[[TrainBatch], losses.Piece]
  loss_fn: Callable[..., tuple[jax.Array, losses.LossAux]]
  credit_fn: Callable[..., losses.Credit] | None = None
  ask_fn: Callable[..., tuple[jax.Array, jax.Array]] | None = None
