"""Objectives that charge a token for itself or for the reward alone."""

from typing import Literal

import jax
import jax.numpy as jnp

from distil_jax.objectives import dense, token_losses
from distil_jax.ops import advantages as advantages_lib
from distil_jax.ops import masking
from distil_jax.ops.divergences import Divergence


def sdpo(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  completion_ids: jax.Array,
  completion_mask: jax.Array,
  *,
  alpha: float,
  top_k: int | None = None,
  top_k_of: Literal["student", "teacher"] = "student",
  tail: bool = True,
  old_log_probs: jax.Array | None = None,
  importance_clip: float | None = None,
  sample_mask: jax.Array | None = None,
  aggregation: masking.Aggregation = "token_mean",
) -> dense.Loss:
  """SDPO: a divergence between the two KLs at each token, no future credit.

  Args:
    student_logits, teacher_logits, completion_ids, completion_mask: see
      `distil`.
    alpha: in [0, 1], see `divergences.sdpo`.
    top_k, top_k_of, tail, old_log_probs, importance_clip, sample_mask,
      aggregation: see `distil`.

  Returns:
    the loss; its future costs are 0.
  """
  return _local(
    student_logits,
    teacher_logits,
    completion_ids,
    completion_mask,
    Divergence("sdpo", weight=alpha, top_k=top_k, top_k_of=top_k_of, tail=tail),
    old_log_probs=old_log_probs,
    importance_clip=importance_clip,
    sample_mask=sample_mask,
    aggregation=aggregation,
  )


def opsd(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  completion_ids: jax.Array,
  completion_mask: jax.Array,
  *,
  beta: float,
  top_k: int | None = None,
  top_k_of: Literal["student", "teacher"] = "teacher",
  tail: bool = False,
  token_clip: float | None = None,
  temperature: float = 1.0,
  sample_mask: jax.Array | None = None,
  aggregation: masking.Aggregation = "token_mean",
) -> dense.Loss:
  """OPSD: a generalised Jensen-Shannon divergence, no future credit.

  Args:
    student_logits, teacher_logits, completion_ids, completion_mask: see
      `distil`.
    beta: in [0, 1], see `divergences.opsd`.
    top_k, top_k_of, tail: see `distil`.
    token_clip: upper limit of each summand of the sum over the vocabulary.
    temperature: of student and teacher in the cost; log π_θ is at 1.
    sample_mask, aggregation: see `distil`.

  Returns:
    the loss; its future costs are 0.
  """
  divergence = Divergence(
    "opsd",
    weight=beta,
    token_clip=token_clip,
    top_k=top_k,
    top_k_of=top_k_of,
    tail=tail,
    temperature=temperature,
  )
  return _local(
    student_logits,
    teacher_logits,
    completion_ids,
    completion_mask,
    divergence,
    sample_mask=sample_mask,
    aggregation=aggregation,
  )


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


def _local(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  completion_ids: jax.Array,
  completion_mask: jax.Array,
  divergence: Divergence,
  *,
  old_log_probs: jax.Array | None = None,
  importance_clip: float | None = None,
  sample_mask: jax.Array | None,
  aggregation: masking.Aggregation,
) -> dense.Loss:
  """A divergence at each token, without future credit."""
  statistics = dense.clean_statistics(
    student_logits,
    teacher_logits,
    completion_ids,
    completion_mask,
    divergence,
    sample_mask,
  )
  losses = token_losses.feedback_losses(
    statistics,
    completion_mask,
    None,
    sample_mask=sample_mask,
    importance=dense.importance(
      statistics, old_log_probs, completion_mask, clip=importance_clip
    ),
  )
  return dense.aggregate(
    statistics,
    losses,
    jnp.zeros_like(losses),
    completion_mask,
    sample_mask,
    aggregation=aggregation,
  )
