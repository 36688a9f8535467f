"""Defines what objectives with a teacher make of token statistics.

Nothing here averages: see `ops.masking.aggregation_weights`.
"""

import dataclasses
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from distil_jax.ops import credit, masking
from distil_jax.ops.token_statistics import TokenStatistics

Baseline = Literal["leave_one_out", "batch_mean"]


@dataclasses.dataclass(frozen=True)
class CreditSettings:
  """Says what future costs make of the score function's weight.

  Attributes:
    future_weight: weight of the future costs; 0 leaves the local cost alone.
    normalize: takes the mean of the future costs in place of their sum.
    discount: γ in (0, 1].
    baseline: what is subtracted from the future costs: their mean at the same
      position over the group's other members, or over the whole batch. None
      subtracts nothing.
    group_size: G; needed by `leave_one_out`.
    terminal_neutral: gives the last token no future credit and leaves it out of
      the baseline. Without it, ending early can be an optimum.
  """

  future_weight: float = 1.0
  normalize: bool = True
  discount: float = 1.0
  baseline: Baseline | None = None
  group_size: int | None = None
  terminal_neutral: bool = False


def score_weights(
  costs: jax.Array,
  mask: jax.Array,
  settings: CreditSettings = CreditSettings(),
  *,
  average_cost: jax.Array | float | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns the weight of log π_θ(yₜ|sₜ) in the surrogate, and Rₜ.

    future_weight · (Rₜ − bₜ)

  Args:
    costs: nats; no gradient flows to them. Shape `[B, T]`.
    mask: 1 where the token counts and its sequence has a teacher signal.
      Shape `[B, T]`.
    settings: of the credit.
    average_cost: subtracted from each cost, nats, scalar; see
      `credit.future_costs`. None means 0.

  Returns:
    The weights, and Rₜ itself; nats, shape `[B, T]` each, 0 at padding.

  Raises:
    ValueError: an unknown baseline, one without a group size, or a discount
      outside (0, 1].
  """
  if average_cost is not None:
    costs = costs - average_cost
  costs = masking.where_counts(costs, mask)
  nothing = credit.nothing_later(costs.shape[0], costs.dtype)
  weights, future, _ = score_weights_before(costs, mask, nothing, settings)
  return weights, future


def score_weights_before(
  costs: jax.Array,
  mask: jax.Array,
  later: credit.FutureSums,
  settings: CreditSettings = CreditSettings(),
) -> tuple[jax.Array, jax.Array, credit.FutureSums]:
  """Returns `score_weights` of a stretch of time whose future is known.

  Args:
    costs, mask: of the stretch. Shape `[B, t]` each.
    later: from the stretch that follows, or `credit.nothing_later`.
    settings: of the credit.

  Returns:
    The weights and Rₜ, `[B, t]` each, and the sums that lie ahead of the
    stretch before this one.

  Raises:
    ValueError: as for `score_weights`.
  """
  followed = credit.is_followed(mask, later)
  # A member in a hole where a tool wrote is alive: costs of its own still come.
  credited, alive = mask, jnp.maximum(mask, followed)
  if settings.terminal_neutral:
    credited, alive = mask * followed, followed
  # The weight of a score function is a constant: its own gradient would be
  # that of another objective.
  future, later = credit.future_costs_before(
    jax.lax.stop_gradient(costs),
    mask,
    later,
    discount=settings.discount,
    normalize=settings.normalize,
  )
  weights = future
  if settings.baseline == "leave_one_out":
    if settings.group_size is None:
      raise ValueError("baseline='leave_one_out' needs group_size")
    weights = weights - credit.leave_one_out_baseline(
      future, alive, group_size=settings.group_size
    )
  elif settings.baseline == "batch_mean":
    weights = weights - credit.batch_mean_baseline(future, alive)
  elif settings.baseline is not None:
    raise ValueError(
      f"baseline={settings.baseline!r} is neither None, 'leave_one_out' nor "
      "'batch_mean'"
    )
  weights = settings.future_weight * masking.where_counts(weights, credited)
  return weights, masking.where_counts(future, mask), later


def feedback_losses(
  statistics: TokenStatistics,
  mask: jax.Array,
  scores: jax.Array | None,
  *,
  failure_weights: jax.Array | None = None,
  advantages: jax.Array | None = None,
  reward_weight: float = 0.0,
  teacher_mask: jax.Array | None = None,
  importance: jax.Array | None = None,
) -> jax.Array:
  """Returns each token's surrogate, for every objective with a teacher.

    ℓₜ = ρₜ · (f · costₜ + log π_θ(yₜ|sₜ) · sg[f · scoreₜ − reward_weight · A])

  Args:
    statistics: of the student's tokens; the local costs are its `costs`.
    mask: 1 where the token counts. Shape `[B, T]`.
    scores: from `score_weights`; None means no future credit. Shape `[B, T]`.
    failure_weights: f, a factor of both feedback parts; None means 1. `[B]`.
    advantages: A; None means 0. Shape `[B]`.
    reward_weight: weight of the advantages; if 0 they are not read.
    teacher_mask: 1 at the tokens that a teacher judges. The others have no
      feedback parts: only their reward counts, and without rewards nothing of
      theirs is read. None means all that count. Shape `[B, T]`.
    importance: ρ, from `advantages.importance_weights`; None means 1,
      on-policy. Shape `[B, T]`.

  Returns:
    Nats, 0 at padding. Shape `[B, T]`.
  """
  per_sequence = (failure_weights, advantages)
  chex.assert_shape([x for x in per_sequence if x is not None], mask.shape[:1])
  if reward_weight == 0:
    advantages = None
  taught = mask if teacher_mask is None else mask * teacher_mask
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
    counted = masking.where_counts(advantages[:, None], mask)
    weights = weights - reward_weight * counted
  if scores is not None or advantages is not None:
    log_probs = masking.where_counts(statistics.log_probs, learned)
    # The weight of a score function is a constant: credit and advantages must
    # not be lowered by making themselves cheaper.
    losses = losses + log_probs * jax.lax.stop_gradient(weights)
  if importance is not None:
    losses = losses * masking.where_counts(
      jax.lax.stop_gradient(importance), learned
    )
  return losses
