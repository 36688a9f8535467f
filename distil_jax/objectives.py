"""What is minimised: statistics of the tokens in, a loss for each token out.

An objective is two pure functions. `*_losses` turns token statistics into
token losses and never averages; how they are averaged is one of
`ops.masking.aggregation_weights`, taken over the whole batch. Functions that
start from logits (`distil`) are the reference for small inputs; training goes
through `ops.unembedding`, which never holds the logits.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from flax import struct

from distil_jax.ops import credit, masking, unembedding

Cost = Literal["cross_entropy", "kl"]


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


def distil(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  completion_ids: jax.Array,
  completion_mask: jax.Array,
  *,
  future_weight: float = 1.0,
  normalize: bool = True,
  discount: float = 1.0,
  cost: Cost = "cross_entropy",
  baseline: Literal["leave_one_out"] | None = None,
  group_size: int | None = None,
  terminal_neutral: bool = False,
  sample_mask: jax.Array | None = None,
  aggregation: masking.Aggregation = "token_mean",
) -> Loss:
  """DistIL from logits: forward cross-entropy plus future credit.

    ℓₜ = Hₜ + future_weight · log π_θ(yₜ|sₜ) · sg[Rₜ − bₜ]

  with Hₜ = H×(sg[π_T(·|sₜ)], π_θ(·|sₜ)) and Rₜ from `credit.future_costs`. With
  the plain sum (`normalize=False`, `discount=1`) its gradient is, in
  expectation over the student's samples, that of E Σₜ Hₜ. See "Reinforcement
  Learning from Rich Feedback with Distributional DAgger" (arXiv:2606.05152).

  Args:
    student_logits: shape `[B, T, V]`.
    teacher_logits: shape `[B, T, V]`; no gradient flows to them.
    completion_ids: the student's own tokens. Shape `[B, T]`.
    completion_mask: 1 where the token counts. Shape `[B, T]`.
    future_weight: 0 leaves the local loss alone.
    normalize: mean of the future costs in place of their sum.
    discount: γ in (0, 1].
    cost: `kl` leaves out the teacher's own entropy, of which the student has
      no part. The local gradient is the same.
    baseline: what is subtracted from the future costs.
    group_size: G, needed by the baseline.
    terminal_neutral: the last token gets no future credit and is left out of
      the baseline; without it, ending early can be an optimum.
    sample_mask: 1 for sequences that have a teacher signal; the others are
      not in the baseline either. Shape `[B]`.
    aggregation: how token losses are averaged over the batch.

  Returns:
    the loss.

  Raises:
    ValueError: a baseline without a group size.
  """
  chex.assert_rank([student_logits, teacher_logits], 3)
  chex.assert_equal_shape([student_logits, teacher_logits])
  chex.assert_shape([completion_ids, completion_mask], student_logits.shape[:2])
  # Before the softmax: its gradient at NaN is NaN, whatever it is weighted by.
  student_logits, teacher_logits = (
    masking.where_counts(logits, completion_mask[..., None])
    for logits in (student_logits, jax.lax.stop_gradient(teacher_logits))
  )
  statistics = unembedding.from_logits(
    student_logits, jax.nn.softmax(teacher_logits, axis=-1), completion_ids
  )
  if sample_mask is None:
    sample_mask = jnp.ones(completion_mask.shape[0], completion_mask.dtype)
  costs = token_costs(statistics, completion_mask, cost=cost)
  scores, later = score_weights(
    costs,
    completion_mask * sample_mask[:, None],
    future_weight=future_weight,
    normalize=normalize,
    discount=discount,
    baseline=baseline,
    group_size=group_size,
    terminal_neutral=terminal_neutral,
  )
  losses = distil_losses(statistics, completion_mask, scores, cost=cost)
  weights = masking.aggregation_weights(
    completion_mask, sample_mask, aggregation=aggregation
  )
  return Loss(
    value=jnp.sum(weights * losses),
    costs=costs,
    future_costs=later,
    log_probs=masking.where_counts(statistics.log_probs, completion_mask),
    token_losses=losses,
  )


def token_costs(
  statistics: unembedding.TokenStatistics, mask: jax.Array, *, cost: Cost
) -> jax.Array:
  """The cost of each token, nats, 0 at padding. Shape `[B, T]`."""
  costs = masking.where_counts(statistics.costs, mask)
  if cost == "cross_entropy":
    return costs
  if cost == "kl":
    return costs - masking.where_counts(statistics.teacher_entropies, mask)
  raise ValueError(f"cost={cost!r} is neither 'cross_entropy' nor 'kl'")


def score_weights(
  costs: jax.Array,
  mask: jax.Array,
  *,
  future_weight: float = 1.0,
  normalize: bool = True,
  discount: float = 1.0,
  baseline: Literal["leave_one_out"] | None = None,
  group_size: int | None = None,
  terminal_neutral: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """future_weight · (Rₜ − bₜ), the weight of log π_θ(yₜ|sₜ) in the surrogate.

  Args:
    costs: nats; no gradient flows to them. Shape `[B, T]`.
    mask: shape `[B, T]`.
    future_weight, normalize, discount, baseline, group_size,
      terminal_neutral: see `distil`.

  Returns:
    the weights, and Rₜ itself; nats, shape `[B, T]` each, 0 at padding.
  """
  # The weight of a score function is a constant: its own gradient would be
  # that of another objective.
  costs = jax.lax.stop_gradient(costs)
  later = credit.future_costs(
    costs, mask, discount=discount, normalize=normalize
  )
  credited = mask
  if terminal_neutral:
    credited = mask * (1 - credit.last_tokens(mask))
  weights = later
  if baseline == "leave_one_out":
    if group_size is None:
      raise ValueError("baseline='leave_one_out' needs group_size")
    weights = weights - credit.leave_one_out_baseline(
      later, credited, group_size=group_size
    )
  elif baseline is not None:
    raise ValueError(f"baseline={baseline!r} is neither None nor leave_one_out")
  return future_weight * masking.where_counts(weights, credited), later


def distil_losses(
  statistics: unembedding.TokenStatistics,
  mask: jax.Array,
  scores: jax.Array,
  *,
  cost: Cost = "cross_entropy",
) -> jax.Array:
  """The surrogate of each token, given the weights of its score function.

  Args:
    statistics: of the student's tokens, differentiable.
    mask: shape `[B, T]`.
    scores: from `score_weights`. Shape `[B, T]`.
    cost: see `distil`.

  Returns:
    nats, 0 at padding. Shape `[B, T]`.
  """
  log_probs = masking.where_counts(statistics.log_probs, mask)
  return token_costs(statistics, mask, cost=cost) + log_probs * (
    jax.lax.stop_gradient(scores)
  )


def sft_losses(log_probs: jax.Array, mask: jax.Array) -> jax.Array:
  """−log π_θ of demonstrated tokens, 0 at padding. Shape `[B, T]`."""
  return -masking.where_counts(log_probs, mask)
