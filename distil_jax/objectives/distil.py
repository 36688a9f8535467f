"""Objectives that charge a token for what follows it, from logits."""

from typing import Literal

import jax

from distil_jax.objectives import dense, token_losses
from distil_jax.ops import masking
from distil_jax.ops.divergences import Divergence


def distil(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  completion_ids: jax.Array,
  completion_mask: jax.Array,
  *,
  top_k: int | None = None,
  top_k_of: Literal["student", "teacher"] = "student",
  tail: bool = True,
  future_weight: float = 1.0,
  normalize: bool = True,
  discount: float = 1.0,
  cost: token_losses.Cost = "cross_entropy",
  local_cost: token_losses.LocalCost | None = None,
  baseline: token_losses.Baseline | None = None,
  group_size: int | None = None,
  terminal_neutral: bool = False,
  average_cost: jax.Array | float | None = None,
  advantages: jax.Array | None = None,
  reward_weight: float = 0.0,
  failure_weights: jax.Array | None = None,
  old_log_probs: jax.Array | None = None,
  importance_clip: float | None = None,
  sample_mask: jax.Array | None = None,
  aggregation: masking.Aggregation = "token_mean",
) -> dense.Loss:
  """DistIL: the cost of each token, and credit for the costs that follow.

    ℓₜ = ρₜ · (f · costₜ + log π_θ(yₜ|sₜ)
               · sg[f · future_weight · (Rₜ − bₜ) − reward_weight · A])

  As published, costₜ = Hₜ = H×(sg[π_T(·|sₜ)], π_θ(·|sₜ)), f = 1, A = 0, and Rₜ
  is made of the same Hₜ by `credit.future_costs`. With the plain sum
  (`normalize=False`, `discount=1`) its gradient is, in expectation over the
  student's samples, that of E Σₜ Hₜ. See "Reinforcement Learning from Rich
  Feedback with Distributional DAgger" (arXiv:2606.05152).

  Args:
    student_logits: shape `[B, T, V]`.
    teacher_logits: shape `[B, T, V]`; no gradient flows to them.
    completion_ids: the student's own tokens. One that counts and is not in
      the vocabulary makes the value NaN. Shape `[B, T]`.
    completion_mask: 1 where the token counts: at those of the student, and
      not at what a tool wrote between them. Shape `[B, T]`.
    top_k, top_k_of, tail: the support of all costs, see
      `divergences.Divergence`; a top_k of V or more is the whole vocabulary.
    future_weight: 0 leaves the local loss alone.
    normalize: mean of the future costs in place of their sum.
    discount: γ in (0, 1].
    cost: what R is made of. `kl` leaves out the teacher's own entropy, of
      which the student has no part.
    local_cost: costₜ; None: as `cost`.
    baseline: what is subtracted from the future costs: their mean at the same
      position over the group's other members, or over the whole batch.
    group_size: G, needed by `leave_one_out`.
    terminal_neutral: the last token gets no future credit and is left out of
      the baseline; without it, ending early can be an optimum.
    average_cost: subtracted from each cost that R is made of, see
      `credit.future_costs`. Scalar, nats.
    advantages: A, whose reward part adds to the score function. Shape `[B]`.
    reward_weight: weight of the advantages; with 0 they are not read.
    failure_weights: f, a factor of both feedback parts; None: 1. Shape `[B]`.
    old_log_probs: log π of the tokens when they were sampled; from it the
      ratio ρ, a constant. None: on-policy, ρ = 1. Shape `[B, T]`.
    importance_clip: upper limit of ρ, for which old_log_probs are needed;
      None: none.
    sample_mask: 1 for sequences that have a teacher signal; the others have
      no feedback parts and are not in the baseline. Without a reward part they
      are left out of the average too; with one (`reward_weight` not 0) every
      sequence has something to learn from, and all are in it. Shape `[B]`.
    aggregation: how token losses are averaged over the batch.

  Returns:
    the loss.

  Raises:
    ValueError: settings that do not fit together.
  """
  if reward_weight != 0 and advantages is None:
    raise ValueError(
      f"reward_weight={reward_weight} needs advantages; give them, or set "
      "reward_weight=0"
    )
  learns_from_rewards = reward_weight != 0
  kind = token_losses.local_kind(cost, local_cost)
  statistics = dense.clean_statistics(
    student_logits,
    teacher_logits,
    completion_ids,
    completion_mask,
    Divergence(kind, top_k=top_k, top_k_of=top_k_of, tail=tail),
    sample_mask,
    learns_from_rewards=learns_from_rewards,
  )
  scores, later = token_losses.score_weights(
    token_losses.token_costs(statistics, completion_mask, cost=cost),
    masking.counted_tokens(completion_mask, sample_mask),
    future_weight=future_weight,
    normalize=normalize,
    discount=discount,
    baseline=baseline,
    group_size=group_size,
    terminal_neutral=terminal_neutral,
    average_cost=average_cost,
  )
  losses = token_losses.feedback_losses(
    statistics,
    completion_mask,
    scores,
    failure_weights=failure_weights,
    advantages=advantages,
    reward_weight=reward_weight,
    sample_mask=sample_mask,
    importance=dense.importance(
      statistics, old_log_probs, completion_mask, clip=importance_clip
    ),
  )
  return dense.aggregate(
    statistics,
    losses,
    later,
    completion_mask,
    None if learns_from_rewards else sample_mask,
    aggregation=aggregation,
  )
