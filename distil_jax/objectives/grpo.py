"""Objectives that charge a token for itself or for the reward alone."""

import jax
import jax.numpy as jnp

from distil_jax.objectives import dense, token_losses
from distil_jax.ops import advantages as advantages_lib
from distil_jax.ops import masking


def grpo(
  log_probs: jax.Array,
  old_log_probs: jax.Array,
  rewards: jax.Array,
  mask: jax.Array,
  *,
  group_size: int,
  clip_low: float = 0.2,
  clip_high: float = 0.28,
  normalize_std: bool = False,
  reference_log_probs: jax.Array | None = None,
  kl_weight: float = 0.0,
  aggregation: masking.Aggregation = "token_mean",
) -> dense.Loss:
  """GRPO: the reward of each sequence compared with its group, no teacher.

  Args:
    log_probs: of the sampled tokens, differentiable, nats. Shape `[B, T]`.
    old_log_probs: when they were sampled, nats. Shape `[B, T]`.
    rewards: the members of a group in a row. Shape `[B]`.
    mask: 1 where the token counts. Shape `[B, T]`.
    group_size: G; must divide B.
    clip_low, clip_high: see `policy_gradient_losses`.
    normalize_std: divide advantages by the group's standard deviation.
    reference_log_probs, kl_weight: see `policy_gradient_losses`.
    aggregation: how token losses are averaged over the batch.

  Returns:
    the loss; its costs and future costs are 0.
  """
  losses = token_losses.policy_gradient_losses(
    log_probs,
    old_log_probs,
    advantages_lib.group_advantages(
      rewards, group_size=group_size, normalize_std=normalize_std
    ),
    mask,
    clip_low=clip_low,
    clip_high=clip_high,
    reference_log_probs=reference_log_probs,
    kl_weight=kl_weight,
  )
  weights = masking.aggregation_weights(mask, None, aggregation=aggregation)
  return dense.Loss(
    value=jnp.sum(weights * losses),
    costs=jnp.zeros_like(losses),
    future_costs=jnp.zeros_like(losses),
    log_probs=masking.where_counts(log_probs, mask),
    token_losses=losses,
  )
