"""Holds what all losses from logits share, the references for small inputs."""

import dataclasses
from typing import Protocol

import chex
import jax
import jax.numpy as jnp
from flax import struct

from distil_jax.objectives import token_losses
from distil_jax.ops import advantages, masking, token_statistics
from distil_jax.ops.divergences import Divergence


@struct.dataclass
class Loss:
  """A loss and its parts.

  Attributes:
    value: what is minimised. Scalar.
    costs: the local cost of each token, nats. Shape `[B, T]`.
    future_costs: cost still to come after each token, nats. Shape `[B, T]`.
    log_probs: log π_θ of the sampled tokens, nats. Shape `[B, T]`.
    token_losses: the surrogate before averaging. Shape `[B, T]`.
  """

  value: jax.Array
  costs: jax.Array
  future_costs: jax.Array
  log_probs: jax.Array
  token_losses: jax.Array


def clean_statistics(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  completion_ids: jax.Array,
  completion_mask: jax.Array,
  divergence: Divergence,
  sample_mask: jax.Array | None = None,
  *,
  learns_from_rewards: bool = False,
) -> token_statistics.TokenStatistics:
  """Returns statistics whose gradient depends only on tokens that count.

  Args:
    student_logits: shape `[B, T, V]`.
    teacher_logits: no gradient flows to them. Shape `[B, T, V]`.
    completion_ids: shape `[B, T]`.
    completion_mask: 1 where the token counts: at those of the student, and
      not at what a tool wrote between them. Shape `[B, T]`.
    divergence: the local cost.
    sample_mask: 1 where there is a teacher signal; None means everywhere.
      Shape `[B]`.
    learns_from_rewards: sequences without that signal have a gradient too, by
      their `log_probs` and `entropies`.

  Returns:
    Nats, shape `[B, T]` each; at padding they mean nothing.
  """
  chex.assert_rank([student_logits, teacher_logits], 3)
  chex.assert_equal_shape([student_logits, teacher_logits])
  chex.assert_shape([completion_ids, completion_mask], student_logits.shape[:2])
  # Masked before the softmax: its gradient at NaN is NaN, whatever weighs it.
  student_logits, teacher_logits = (
    masking.where_counts(logits, completion_mask[..., None])
    for logits in (student_logits, teacher_logits)
  )
  # A weight of 0 does not stop a gradient that is NaN. Where nothing is taught
  # the statistics are constants, so that no such gradient arises.
  taught = masking.counted_tokens(completion_mask, sample_mask)
  held = jnp.where(
    taught.astype(bool)[..., None],
    student_logits,
    jax.lax.stop_gradient(student_logits),
  )
  statistics = token_statistics.from_logits(
    held, teacher_logits, completion_ids, divergence
  )
  if not learns_from_rewards:
    return statistics
  # Rewards teach sequences without a teacher too. Their score function needs a
  # gradient, but their costs, which mean nothing, must have none.
  own = token_statistics.from_logits(
    student_logits, teacher_logits, completion_ids, divergence
  )
  return dataclasses.replace(
    statistics, log_probs=own.log_probs, entropies=own.entropies
  )


def importance(
  statistics: token_statistics.TokenStatistics,
  old_log_probs: jax.Array | None,
  completion_mask: jax.Array,
  *,
  clip: float | None,
) -> jax.Array | None:
  """Returns off-policy ratios of the student's tokens; None on-policy.

  Args:
    statistics: of the student's tokens now.
    old_log_probs: when they were sampled, nats; None means just now. `[B, T]`.
    completion_mask: 1 where the token counts. Shape `[B, T]`.
    clip: upper limit of a ratio; None means none.

  Returns:
    See `advantages.importance_weights`. Shape `[B, T]`.

  Raises:
    ValueError: a clip without old log-probabilities.
  """
  if old_log_probs is not None:
    return advantages.importance_weights(
      statistics.log_probs, old_log_probs, completion_mask, clip=clip
    )
  if clip is not None:
    raise ValueError(
      f"importance_clip={clip} limits a ratio to old_log_probs; give them, or "
      "set importance_clip=None"
    )
  return None


def aggregate(
  statistics: token_statistics.TokenStatistics,
  token_losses: jax.Array,
  future_costs: jax.Array,
  completion_mask: jax.Array,
  sample_mask: jax.Array | None,
  *,
  aggregation: masking.Aggregation,
) -> Loss:
  """Averages the token losses over the sequences that count.

  Args:
    statistics: of the student's tokens.
    token_losses: shape `[B, T]`.
    future_costs: shape `[B, T]`.
    completion_mask: 1 where the token counts. Shape `[B, T]`.
    sample_mask: 1 where the sequence is in the average; None means that all
      are. Shape `[B]`.
    aggregation: which average.

  Returns:
    The loss.
  """
  weights = masking.aggregation_weights(
    completion_mask, sample_mask, aggregation=aggregation
  )
  return Loss(
    value=jnp.sum(weights * token_losses),
    costs=masking.where_counts(statistics.costs, completion_mask),
    future_costs=future_costs,
    log_probs=masking.where_counts(statistics.log_probs, completion_mask),
    token_losses=token_losses,
  )


class LocalSettings(Protocol):
  """The settings of an objective that `local_objective` reads."""

  @property
  def divergence(self) -> Divergence: ...
  @property
  def importance_clip(self) -> float | None: ...
  @property
  def aggregation(self) -> masking.Aggregation: ...


def local_objective(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  completion_ids: jax.Array,
  completion_mask: jax.Array,
  settings: LocalSettings,
  *,
  sample_mask: jax.Array | None,
  old_log_probs: jax.Array | None,
) -> Loss:
  """Returns the loss of a divergence at each token, without future credit.

  Args:
    student_logits, teacher_logits, completion_ids, completion_mask,
      sample_mask, old_log_probs: as for `distil.distil`.
    settings: of the objective.
  """
  statistics = clean_statistics(
    student_logits,
    teacher_logits,
    completion_ids,
    completion_mask,
    settings.divergence,
    sample_mask,
  )
  losses = token_losses.feedback_losses(
    statistics,
    completion_mask,
    None,
    teacher_mask=masking.counted_tokens(completion_mask, sample_mask),
    importance=importance(
      statistics,
      old_log_probs,
      completion_mask,
      clip=settings.importance_clip,
    ),
  )
  return aggregate(
    statistics,
    losses,
    jnp.zeros_like(losses),
    completion_mask,
    sample_mask,
    aggregation=settings.aggregation,
  )
