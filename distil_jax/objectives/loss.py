"""A loss from logits, and what all such losses share."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from flax import struct

from distil_jax.ops import masking, unembedding
from distil_jax.ops.divergences import Divergence


@struct.dataclass
class Loss:
  """A loss and what it is made of.

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
) -> unembedding.TokenStatistics:
  """Statistics that do not depend on what stands at padding.

  Args:
    student_logits: shape `[B, T, V]`.
    teacher_logits: no gradient flows to them. Shape `[B, T, V]`.
    completion_ids: shape `[B, T]`.
    completion_mask: 1 where the token counts. Shape `[B, T]`.
    divergence: the local cost.
    sample_mask: 1 where there is a teacher signal. Shape `[B]`.

  Returns:
    nats, shape `[B, T]` each.
  """
  chex.assert_rank([student_logits, teacher_logits], 3)
  chex.assert_equal_shape([student_logits, teacher_logits])
  chex.assert_shape([completion_ids, completion_mask], student_logits.shape[:2])
  # Before the softmax: its gradient at NaN is NaN, whatever it is weighted by.
  student_logits, teacher_logits = (
    masking.where_counts(logits, completion_mask[..., None])
    for logits in (student_logits, teacher_logits)
  )
  statistics = unembedding.from_logits(
    student_logits, teacher_logits, completion_ids, divergence
  )
  if sample_mask is None:
    return statistics
  # A weight of 0 does not stop a gradient that is NaN: where nothing is taught
  # the costs are constants, whatever the teacher's logits are there.
  taught = (completion_mask * sample_mask[:, None]).astype(bool)
  held = jnp.where(
    taught[..., None], student_logits, jax.lax.stop_gradient(student_logits)
  )
  costs = unembedding.from_logits(
    held, teacher_logits, completion_ids, divergence
  ).costs
  return dataclasses.replace(statistics, costs=costs)


def aggregate(
  statistics: unembedding.TokenStatistics,
  token_losses: jax.Array,
  future_costs: jax.Array,
  completion_mask: jax.Array,
  sample_mask: jax.Array,
  *,
  aggregation: masking.Aggregation,
) -> Loss:
  """Averages the token losses over the sequences that count.

  Args:
    statistics: of the student's tokens.
    token_losses: shape `[B, T]`.
    future_costs: shape `[B, T]`.
    completion_mask: shape `[B, T]`.
    sample_mask: 1 where the sequence is in the average. Shape `[B]`.
    aggregation: which average.

  Returns:
    the loss.
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
