"""Compares the rewards of a group, and probabilities under two policies."""

import chex
import jax
import jax.numpy as jnp

from distil_jax.ops import masking

# A log-ratio of ±20 is a factor of 5·10⁸: far beyond use, but finite.
_MAX_LOG_RATIO = 20.0


def group_advantages(
  rewards: jax.Array,
  *,
  group_size: int,
  normalize_std: bool = False,
  leave_one_out: bool = False,
  epsilon: float = 1e-6,
) -> jax.Array:
  """Returns how much better each sequence did than its group.

    Aᵢ = rᵢ − mean r        divided, if asked, by std r + ε

  See "DeepSeekMath" (arXiv:2402.03300); without the division it is Dr. GRPO
  (arXiv:2503.20783).

  Args:
    rewards: the members of a group in a row. Shape `[B]`.
    group_size: G; must divide B.
    normalize_std: divide by the population's standard deviation of the group,
      the member itself included.
    leave_one_out: subtract the mean of the other members, not of all.
    epsilon: keeps a group of equal rewards at 0.

  Returns:
    At least float32. Shape `[B]`.

  Raises:
    ValueError: a group size that is not above 0, does not divide the batch, or
      leaves no other members.
  """
  grouped = _grouped(rewards, group_size)
  # Only differences count, and those of equal rewards are exactly 0. A rounded
  # mean would leave a remainder, which the division by ε makes large.
  grouped = grouped - grouped[:, :1]
  if leave_one_out:
    advantages = grouped - _mean_of_others(grouped)
  else:
    advantages = grouped - jnp.mean(grouped, axis=1, keepdims=True)
  if normalize_std:
    spread = jnp.std(grouped, axis=1, keepdims=True)
    advantages = advantages / (spread + epsilon)
  return advantages.reshape(-1)


def failure_weights(rewards: jax.Array, *, group_size: int) -> jax.Array:
  """Returns 1 less the mean reward of the group's other members.

    fᵢ = 1 − mean_{j≠i} rⱼ

  It does not depend on the member that it weights, so it changes how much is
  learned from a problem, but not which policy is the best.

  Args:
    rewards: in [0, 1], the members of a group in a row. Shape `[B]`.
    group_size: G ≥ 2; must divide B.

  Returns:
    At least float32. Shape `[B]`.

  Raises:
    ValueError: a group size that is not above 0, does not divide the batch, or
      leaves no other members.
  """
  return (1 - _mean_of_others(_grouped(rewards, group_size))).reshape(-1)


def importance_weights(
  log_probs: jax.Array,
  old_log_probs: jax.Array,
  mask: jax.Array,
  *,
  clip: float | None,
) -> jax.Array:
  """Returns min(π_θ / π_old, clip) of each token, the log-ratio within ±20.

  Args:
    log_probs: of the sampled tokens now, nats; no gradient flows to them, as
      the ratio weights a loss and is not part of it. Shape `[B, T]`.
    old_log_probs: when they were sampled, nats. Shape `[B, T]`.
    mask: 1 where the token counts. Shape `[B, T]`.
    clip: upper limit; None means none.

  Returns:
    Shape `[B, T]`; 0 at padding.

  Raises:
    ValueError: a clip that is not above 0.
  """
  if clip is not None and not clip > 0:
    raise ValueError(f"clip={clip} must be above 0; None for no clip")
  ratios = probability_ratios(log_probs, old_log_probs, mask)
  if clip is not None:
    ratios = jnp.minimum(ratios, clip)
  # The ratio weights a loss; its own gradient is not that loss's.
  return jax.lax.stop_gradient(ratios)


def probability_ratios(
  log_probs: jax.Array, old_log_probs: jax.Array, mask: jax.Array
) -> jax.Array:
  """Returns π_θ / π_old of each token, differentiable; log-ratio within ±20.

  Args:
    log_probs: of the sampled tokens now, nats. Shape `[B, T]`.
    old_log_probs: when they were sampled, nats. Shape `[B, T]`.
    mask: 1 where the token counts. Shape `[B, T]`.

  Returns:
    Shape `[B, T]`; 0 at padding.
  """
  chex.assert_rank([log_probs, old_log_probs, mask], 2)
  chex.assert_equal_shape([log_probs, old_log_probs, mask])
  # Masked one by one: the difference of two infinities is NaN.
  log_ratios = masking.where_counts(log_probs, mask) - masking.where_counts(
    old_log_probs, mask
  )
  ratios = jnp.exp(jnp.clip(log_ratios, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))
  return masking.where_counts(ratios, mask)


def _grouped(rewards: jax.Array, group_size: int) -> jax.Array:
  """Returns rewards as `[P, G]`, at least float32."""
  chex.assert_rank(rewards, 1)
  dtype = jnp.promote_types(rewards.dtype, jnp.float32)
  return masking.split_groups(rewards.astype(dtype), group_size)


def _mean_of_others(grouped: jax.Array) -> jax.Array:
  """Returns the mean over the other members of each group, `[P, G]`."""
  group_size = grouped.shape[1]
  if group_size < 2:
    raise ValueError(
      f"group_size={group_size} leaves no other members to compare with; "
      "it must be at least 2"
    )
  # One sum less the own reward serves every member of the group.
  total = jnp.sum(grouped, axis=1, keepdims=True)
  return (total - grouped) / (group_size - 1)
