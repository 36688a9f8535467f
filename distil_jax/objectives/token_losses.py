"""Losses of tokens from their statistics; nothing here averages."""

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from distil_jax.ops import advantages as advantages_lib
from distil_jax.ops import credit, masking
from distil_jax.ops.token_statistics import TokenStatistics

Cost = Literal["cross_entropy", "kl"]
LocalCost = Literal["forward_cross_entropy", "forward_kl", "reverse_kl"]
Baseline = Literal["leave_one_out", "batch_mean"]


def local_kind(cost: Cost, local_cost: LocalCost | None) -> LocalCost:
  """The divergence that is minimised at each token itself.

  Args:
    cost: of what is still to come.
    local_cost: None: the same as `cost`.

  Returns:
    a kind of `divergences.Divergence`.

  Raises:
    ValueError: an unknown cost.
  """
  kinds: dict[Cost, LocalCost] = {
    "cross_entropy": "forward_cross_entropy",
    "kl": "forward_kl",
  }
  if cost not in kinds:
    raise ValueError(_unknown_cost(cost))
  if local_cost is None:
    return kinds[cost]
  if local_cost not in get_args(LocalCost):
    raise ValueError(
      f"local_cost={local_cost!r} is none of {get_args(LocalCost)}"
    )
  return local_cost


def token_costs(
  statistics: TokenStatistics, mask: jax.Array, *, cost: Cost
) -> jax.Array:
  """The cost of each token that is charged to the tokens before it.

  Args:
    statistics: of the student's tokens.
    mask: shape `[B, T]`.
    cost: `kl` leaves out the teacher's own entropy, of which the student has
      no part.

  Returns:
    nats, constant, 0 at padding. Shape `[B, T]`.
  """
  costs = masking.where_counts(statistics.cross_entropies, mask)
  if cost == "cross_entropy":
    return costs
  if cost == "kl":
    return costs - masking.where_counts(statistics.teacher_entropies, mask)
  raise ValueError(_unknown_cost(cost))


def sampled_reverse_kl(
  statistics: TokenStatistics, mask: jax.Array
) -> jax.Array:
  """log π_θ − log π_T of the sampled tokens: MiniLLM's cost.

  Its mean over the student's samples is KL(s‖t); a single one may be negative.

  Args:
    statistics: of the student's tokens.
    mask: shape `[B, T]`.

  Returns:
    nats, constant, 0 at padding. Shape `[B, T]`.
  """
  log_probs = masking.where_counts(statistics.log_probs, mask)
  return jax.lax.stop_gradient(
    log_probs - masking.where_counts(statistics.teacher_log_probs, mask)
  )


def score_weights(
  costs: jax.Array,
  mask: jax.Array,
  *,
  future_weight: float = 1.0,
  normalize: bool = True,
  discount: float = 1.0,
  baseline: Baseline | None = None,
  group_size: int | None = None,
  terminal_neutral: bool = False,
  average_cost: jax.Array | float | None = None,
) -> tuple[jax.Array, jax.Array]:
  """future_weight · (Rₜ − bₜ), the weight of log π_θ(yₜ|sₜ) in the surrogate.

  Args:
    costs: nats; no gradient flows to them. Shape `[B, T]`.
    mask: 1 where the token counts and its sequence has a teacher signal.
      Shape `[B, T]`.
    future_weight, normalize, discount, baseline, group_size,
      terminal_neutral, average_cost: see `distil`.

  Returns:
    the weights, and Rₜ itself; nats, shape `[B, T]` each, 0 at padding.

  Raises:
    ValueError: an unknown baseline, one without a group size, or a discount
      outside (0, 1].
  """
  if average_cost is not None:
    costs = costs - average_cost
  costs = masking.where_counts(costs, mask)
  weights, later, _ = score_weights_before(
    costs,
    mask,
    credit.nothing_later(costs.shape[0], costs.dtype),
    future_weight=future_weight,
    normalize=normalize,
    discount=discount,
    baseline=baseline,
    group_size=group_size,
    terminal_neutral=terminal_neutral,
  )
  return weights, later


def score_weights_before(
  costs: jax.Array,
  mask: jax.Array,
  later: credit.FutureSums,
  *,
  future_weight: float = 1.0,
  normalize: bool = True,
  discount: float = 1.0,
  baseline: Baseline | None = None,
  group_size: int | None = None,
  terminal_neutral: bool = False,
) -> tuple[jax.Array, jax.Array, credit.FutureSums]:
  """The same for a stretch of time, see `credit.future_costs_before`.

  Args:
    costs, mask: of the stretch. Shape `[B, t]` each.
    later: from the stretch that follows, or `credit.nothing_later`.
    future_weight, normalize, discount, baseline, group_size,
      terminal_neutral: as for `score_weights`.

  Returns:
    the weights and Rₜ, `[B, t]` each, and what the stretch before has ahead.
  """
  followed = credit.is_followed(mask, later)
  credited, alive = mask, jnp.maximum(mask, followed)
  if terminal_neutral:
    credited, alive = mask * followed, followed
  # The weight of a score function is a constant: its own gradient would be
  # that of another objective.
  future, later = credit.future_costs_before(
    jax.lax.stop_gradient(costs),
    mask,
    later,
    discount=discount,
    normalize=normalize,
  )
  weights = future
  if baseline == "leave_one_out":
    if group_size is None:
      raise ValueError("baseline='leave_one_out' needs group_size")
    weights = weights - credit.leave_one_out_baseline(
      future, alive, group_size=group_size
    )
  elif baseline == "batch_mean":
    weights = weights - credit.batch_mean_baseline(future, alive)
  elif baseline is not None:
    raise ValueError(
      f"baseline={baseline!r} is neither None, 'leave_one_out' nor 'batch_mean'"
    )
  weights = future_weight * masking.where_counts(weights, credited)
  return weights, masking.where_counts(future, mask), later


def feedback_losses(
  statistics: TokenStatistics,
  mask: jax.Array,
  scores: jax.Array | None,
  *,
  failure_weights: jax.Array | None = None,
  advantages: jax.Array | None = None,
  reward_weight: float = 0.0,
  sample_mask: jax.Array | None = None,
  importance: jax.Array | None = None,
) -> jax.Array:
  """The surrogate of each token; serves every objective with a teacher.

    ℓₜ = ρₜ · (f · costₜ + log π_θ(yₜ|sₜ) · sg[f · scoreₜ − reward_weight · A])

  Args:
    statistics: of the student's tokens; the local costs are its `costs`.
    mask: shape `[B, T]`.
    scores: from `score_weights`; None: no future credit. Shape `[B, T]`.
    failure_weights: f, a factor of both feedback parts; None: 1. Shape `[B]`.
    advantages: A; None: 0. Shape `[B]`.
    reward_weight: weight of the advantages; with 0 they are not read.
    sample_mask: 1 for sequences that have a teacher signal. The others have
      no feedback parts; their reward counts as any, and without rewards
      nothing of theirs is read. None: all. Shape `[B]`.
    importance: ρ, from `advantages.importance_weights`; None: 1, on-policy.
      Shape `[B, T]`.

  Returns:
    nats, 0 at padding. Shape `[B, T]`.
  """
  per_sequence = (failure_weights, advantages, sample_mask)
  chex.assert_shape([x for x in per_sequence if x is not None], mask.shape[:1])
  if reward_weight == 0:
    advantages = None
  taught = masking.counted_tokens(mask, sample_mask)
  learned = taught if advantages is None else mask
  losses = masking.where_counts(statistics.costs, taught)
  weights = jnp.zeros_like(losses)
  if scores is not None:
    weights = masking.where_counts(scores, taught)
  if failure_weights is not None:
    factors = masking.where_counts(failure_weights[:, None], taught)
    losses = losses * factors
    weights = weights * factors
  if advantages is not None:
    better = masking.where_counts(advantages[:, None], mask)
    weights = weights - reward_weight * better
  if scores is not None or advantages is not None:
    log_probs = masking.where_counts(statistics.log_probs, learned)
    losses = losses + log_probs * jax.lax.stop_gradient(weights)
  if importance is not None:
    losses = losses * masking.where_counts(
      jax.lax.stop_gradient(importance), learned
    )
  return losses


def policy_gradient_losses(
  log_probs: jax.Array,
  old_log_probs: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.28,
  reference_log_probs: jax.Array | None = None,
  kl_weight: float = 0.0,
) -> jax.Array:
  """The clipped surrogate of each token.

    −min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A)    ρ = π_θ / π_old

  plus, if weighted, an estimate of the KL to a reference π_ref that is never
  negative and whose mean over the student's samples is exact:

    kl_weight · (π_ref / π_θ − log(π_ref / π_θ) − 1)

  Args:
    log_probs: of the sampled tokens, differentiable, nats. Shape `[B, T]`.
    old_log_probs: when they were sampled, nats. Shape `[B, T]`.
    advantages: shape `[B]`.
    mask: shape `[B, T]`.
    clip_low: how far below 1 the ratio still counts.
    clip_high: how far above.
    reference_log_probs: of the sampled tokens under the reference, nats.
      Shape `[B, T]`.
    kl_weight: weight of that KL.

  Returns:
    0 at padding. Shape `[B, T]`.

  Raises:
    ValueError: a weight of the KL without a reference.
  """
  old_log_probs = jax.lax.stop_gradient(old_log_probs)
  ratios = advantages_lib.probability_ratios(log_probs, old_log_probs, mask)
  advantages = masking.where_counts(
    jax.lax.stop_gradient(advantages)[:, None], mask
  )
  # A choice and not a minimum, which would halve its gradient where both are
  # equal: a ratio on the edge of the clip is not clipped.
  bound = jnp.clip(jax.lax.stop_gradient(ratios), 1 - clip_low, 1 + clip_high)
  is_clipped = bound * advantages < ratios * advantages
  losses = -jnp.where(is_clipped, bound, ratios) * advantages
  if kl_weight == 0:
    return losses
  if reference_log_probs is None:
    raise ValueError(
      f"kl_weight={kl_weight} needs reference_log_probs; give them, or set "
      "kl_weight=0"
    )
  reference = masking.where_counts(
    jax.lax.stop_gradient(reference_log_probs), mask
  )
  log_ratios = reference - masking.where_counts(log_probs, mask)
  return losses + kl_weight * (jnp.exp(log_ratios) - log_ratios - 1)


def sft_losses(log_probs: jax.Array, mask: jax.Array) -> jax.Array:
  """−log π_θ of demonstrated tokens, 0 at padding. Shape `[B, T]`."""
  return -masking.where_counts(log_probs, mask)


def _unknown_cost(cost: str) -> str:
  return f"cost={cost!r} is neither 'cross_entropy' nor 'kl'"
