"""GRPO: rewards compared within a group, with a clipped ratio; no teacher.

See "DeepSeekMath" (arXiv:2402.03300); without `normalize_std` it is Dr. GRPO
(arXiv:2503.20783).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from distil_jax.config.objectives import GRPOConfig
from distil_jax.objectives import base, dense, losses
from distil_jax.ops import advantages as advantages_lib
from distil_jax.ops import masking
from distil_jax.ops import sampler_mismatch as mismatch_lib
from distil_jax.types import TrainBatch


@dataclasses.dataclass(frozen=True)
class GRPOSettings:
  """Settings of GRPO.

  Attributes:
    clip_low: how far below 1 a ratio still learns.
    clip_high: how far above 1 a ratio still learns.
    normalize_std: divides advantages by the group's standard deviation.
    kl_weight: weight of the divergence from the reference.
    aggregation: how token losses are averaged over the batch.
  """

  clip_low: float = 0.2
  clip_high: float = 0.28
  normalize_std: bool = False
  kl_weight: float = 0.0
  aggregation: masking.Aggregation = "token_mean"


def build(
  section: GRPOConfig, forward: base.ForwardPasses, layout: base.BatchLayout
) -> base.Objective:
  """Builds the objective from its section of a config."""
  settings = base.read_settings(GRPOSettings, section)
  return base.Objective(
    prepare_fn=functools.partial(
      losses.prepare,
      aggregation=settings.aggregation,
      # There is no teacher whose signal a sequence could lack.
      everyone_counts=True,
      advantage_fn=functools.partial(
        advantages_lib.group_advantages,
        group_size=layout.group_size,
        normalize_std=settings.normalize_std,
      ),
    ),
    loss_fn=functools.partial(
      policy_gradient_loss,
      own_fn=forward.own_fn,
      settings=settings,
      is_off_policy=layout.is_off_policy,
    ),
  )


def policy_gradient_loss(
  params: base.Params,
  reference_params: base.Params,
  batch: TrainBatch,
  *,
  own_fn,
  settings: GRPOSettings,
  is_off_policy: bool,
) -> tuple[jax.Array, base.LossAux]:
  """Returns the loss of rewards alone.

  Args:
    params: the policy's.
    reference_params: of the divergence; they take the teacher's place.
    batch: a prepared slice.
    own_fn: see `base.ForwardPasses`.
    settings: of the objective.
    is_off_policy: whether the tokens may come from older parameters.

  Returns:
    The slice's part of the loss, scalar, and what to report.
  """
  mask = batch.student_tokens
  source = own_fn(params, batch)
  reference = None
  # A pass through the reference's network is made only if it has a weight.
  if settings.kl_weight > 0:
    reference = own_fn(reference_params, batch).statistics().log_probs
  value, reports = source.fused_loss(
    functools.partial(_token_losses, settings, is_off_policy),
    {
      "mask": mask,
      "weights": batch.loss_weights,
      "old_log_probs": batch.old_log_probs,
      "reference": reference,
    },
    batch.advantages,
  )
  mismatch = mismatch_lib.measure(
    reports.pop("log_probs"), batch.old_log_probs, mask
  )
  sums = losses.metric_sums(mask, **reports) | losses.sequence_sums(batch)
  return value, base.LossAux(sums, mismatch, source.loads)


def _token_losses(
  settings: GRPOSettings, is_off_policy: bool, advantages, statistics, rows
):
  """Returns token losses of a chunk; the carry holds the advantages."""
  log_probs = statistics.log_probs
  reports = {"entropy": statistics.entropies, "log_probs": log_probs}
  # On policy the ratio is 1; the sampler's rounding is no reason to clip.
  old_log_probs = jax.lax.stop_gradient(log_probs)
  if is_off_policy:
    old_log_probs = rows["old_log_probs"]
    ratio = advantages_lib.importance_weights(
      log_probs, old_log_probs, rows["mask"], clip=None
    )
    clipped = jnp.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
    reports |= losses.ratio_reports(ratio, clipped)
  if rows["reference"] is not None:
    reports["reference_log_ratio"] = log_probs - rows["reference"]
  per_token = policy_gradient_losses(
    log_probs,
    old_log_probs,
    advantages,
    rows["mask"],
    clip_low=settings.clip_low,
    clip_high=settings.clip_high,
    reference_log_probs=rows["reference"],
    kl_weight=settings.kl_weight,
  )
  return rows["weights"] * per_token, (advantages, reports)


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
  """Returns the clipped surrogate of each token.

    −min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A)    ρ = π_θ / π_old

  plus, if `kl_weight` is not 0, an estimate of the KL to a reference π_ref. It
  is never negative, and its mean over the student's samples is exact:

    kl_weight · (π_ref / π_θ − log(π_ref / π_θ) − 1)

  Args:
    log_probs: of the sampled tokens, differentiable, nats. Shape `[B, T]`.
    old_log_probs: when they were sampled, nats. Shape `[B, T]`.
    advantages: shape `[B]`.
    mask: shape `[B, T]`.
    clip_low: how far below 1 a ratio still learns.
    clip_high: how far above 1 a ratio still learns.
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
  # `where` and not a minimum, which would halve the gradient if both are equal:
  # a ratio on the edge of the clip is not clipped.
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


def grpo(
  log_probs: jax.Array,
  old_log_probs: jax.Array,
  rewards: jax.Array,
  mask: jax.Array,
  settings: GRPOSettings = GRPOSettings(),
  *,
  group_size: int,
  reference_log_probs: jax.Array | None = None,
) -> dense.Loss:
  """Returns GRPO from log-probabilities.

  Args:
    log_probs: of the sampled tokens, differentiable, nats. Shape `[B, T]`.
    old_log_probs: when they were sampled, nats. Shape `[B, T]`.
    rewards: the members of a group in a row. Shape `[B]`.
    mask: 1 where the token counts. Shape `[B, T]`.
    settings: of the objective.
    group_size: G; must divide B.
    reference_log_probs: see `policy_gradient_losses`. Shape `[B, T]`.

  Returns:
    The loss; its costs and future costs are 0.
  """
  per_token = policy_gradient_losses(
    log_probs,
    old_log_probs,
    advantages_lib.group_advantages(
      rewards, group_size=group_size, normalize_std=settings.normalize_std
    ),
    mask,
    clip_low=settings.clip_low,
    clip_high=settings.clip_high,
    reference_log_probs=reference_log_probs,
    kl_weight=settings.kl_weight,
  )
  weights = masking.aggregation_weights(
    mask, None, aggregation=settings.aggregation
  )
  return dense.Loss(
    value=jnp.sum(weights * per_token),
    costs=jnp.zeros_like(per_token),
    future_costs=jnp.zeros_like(per_token),
    log_probs=masking.where_counts(log_probs, mask),
    token_losses=per_token,
  )
