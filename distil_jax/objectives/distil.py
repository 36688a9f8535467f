"""DistIL: a local cost, and credit for the costs that follow.

See "Reinforcement Learning from Rich Feedback with Distributional DAgger"
(arXiv:2606.05152).
"""

import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from distil_jax.config.objectives import DistilConfig
from distil_jax.objectives import base, dense, losses, token_losses
from distil_jax.ops import advantages as advantages_lib
from distil_jax.ops import masking
from distil_jax.ops.divergences import Divergence
from distil_jax.ops.token_statistics import TokenStatistics

Cost = Literal["cross_entropy", "kl"]
LocalCost = Literal["forward_cross_entropy", "forward_kl", "reverse_kl"]


@dataclasses.dataclass(frozen=True)
class DistilSettings:
  """Settings of DistIL; the defaults are those of the published method.

  Attributes:
    top_k, top_k_of, tail: the support of all costs, see
      `divergences.Divergence`; a top_k of V or more is the whole vocabulary.
    temperature: of student and teacher in all costs; log π_θ is at 1.
    cost: what R is made of. `kl` leaves out the teacher's own entropy, of
      which the student has no part.
    local_cost: costₜ; None means the same as `cost`.
    future_weight, normalize, discount, baseline, group_size,
      terminal_neutral: see `token_losses.CreditSettings`.
    average_cost: subtracted from each cost that R is made of, nats, scalar; see
      `credit.future_costs`. None means 0.
    reward_weight: weight of the advantages; if 0 they are not read.
    importance_clip: upper limit of the off-policy ratio ρ; None means none.
    aggregation: how token losses are averaged over the batch.
  """

  top_k: int | None = None
  top_k_of: Literal["student", "teacher"] = "student"
  tail: bool = True
  temperature: float = 1.0
  cost: Cost = "cross_entropy"
  local_cost: LocalCost | None = None
  future_weight: float = 1.0
  normalize: bool = True
  discount: float = 1.0
  baseline: token_losses.Baseline | None = None
  group_size: int | None = None
  terminal_neutral: bool = False
  average_cost: jax.Array | float | None = None
  reward_weight: float = 0.0
  importance_clip: float | None = None
  aggregation: masking.Aggregation = "token_mean"

  @property
  def divergence(self) -> Divergence:
    return Divergence(
      local_kind(self.cost, self.local_cost),
      top_k=self.top_k,
      top_k_of=self.top_k_of,
      tail=self.tail,
      temperature=self.temperature,
    )

  @property
  def credit(self) -> token_losses.CreditSettings:
    return base.read_settings(token_losses.CreditSettings, self)


def build(
  section: DistilConfig, forward: base.ForwardPasses, layout: base.BatchLayout
) -> base.Objective:
  """Builds the objective from its section of a config."""
  group_size = layout.group_size
  read = base.read_settings(DistilSettings, section, group_size=group_size)
  advantage_fn = failure_fn = None
  if section.learns_from_rewards:
    # A mean that leaves the member out does not depend on what the member did,
    # so that subtracting it leaves the expected gradient as it is.
    advantage_fn = functools.partial(
      advantages_lib.group_advantages,
      group_size=group_size,
      normalize_std=section.normalize_std,
      leave_one_out=True,
    )
  if section.failure_weighted:
    failure_fn = functools.partial(
      advantages_lib.failure_weights, group_size=group_size
    )
  settings = losses.FeedbackSettings(
    compare_fn=functools.partial(
      forward.compare_fn, divergence=read.divergence
    ),
    costs_fn=functools.partial(token_costs, cost=read.cost),
    reward_weight=read.reward_weight,
    importance_clip=read.importance_clip,
    is_off_policy=layout.is_off_policy,
    teacher_names=forward.teacher_names,
    max_teacher_entropy=section.max_teacher_entropy,
  )
  credit_fn = None
  # Credit found ahead of the loss takes one more pass through both networks, so
  # that is done only if the loss cannot find it on its way.
  if _needs_all_costs(section, layout):
    credit_fn = base.BatchCredit(
      costs_fn=functools.partial(losses.costs_of_slice, settings=settings),
      score_fn=functools.partial(
        _batch_score_weights,
        settings=read.credit,
        differential=section.differential,
      ),
    )
  else:
    settings = dataclasses.replace(
      settings,
      score_fn=functools.partial(
        token_losses.score_weights_before, settings=read.credit
      ),
    )
  return base.Objective(
    prepare_fn=functools.partial(
      losses.prepare,
      aggregation=read.aggregation,
      everyone_counts=section.learns_from_rewards,
      advantage_fn=advantage_fn,
      failure_fn=failure_fn,
    ),
    loss_fn=functools.partial(losses.feedback_loss, settings=settings),
    credit_fn=credit_fn,
    ask_fn=forward.ask_fn,
  )


def _needs_all_costs(section: DistilConfig, layout: base.BatchLayout) -> bool:
  """Returns True if a token's credit depends on costs that are not after it.

  Or on those of sequences in another slice of the batch.
  """
  by_group = section.baseline == "leave_one_out" and layout.splits_groups
  by_batch = section.baseline == "batch_mean" and layout.is_cut
  return by_group or by_batch or section.differential


def _batch_score_weights(
  costs: jax.Array,
  mask: jax.Array,
  *,
  settings: token_losses.CreditSettings,
  differential: bool,
) -> tuple[jax.Array, jax.Array]:
  """Returns `score_weights`, counted from the batch's mean if differential."""
  average = None
  if differential:
    # The mean is over the whole batch, which is why this credit needs all
    # costs.
    costs = jax.lax.stop_gradient(masking.where_counts(costs, mask))
    average = jnp.sum(costs) / jnp.maximum(jnp.sum(mask), 1)
  return token_losses.score_weights(costs, mask, settings, average_cost=average)


def local_kind(cost: Cost, local_cost: LocalCost | None) -> LocalCost:
  """Returns the divergence that each token minimises by itself.

  Args:
    cost: what future credit sums.
    local_cost: None means the same as `cost`.

  Returns:
    A kind of `divergences.Divergence`.

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
  """Returns the cost of each token that is charged to the tokens before it.

  Args:
    statistics: of the student's tokens.
    mask: 1 where the token counts. Shape `[B, T]`.
    cost: `kl` leaves out the teacher's own entropy, of which the student has
      no part.

  Returns:
    Nats, constant, 0 at padding. Shape `[B, T]`.
  """
  costs = masking.where_counts(statistics.cross_entropies, mask)
  if cost == "cross_entropy":
    return costs
  if cost == "kl":
    # Cross-entropy is the KL plus the teacher's own entropy. Tokens that the
    # teacher leaves free would be charged to the choices before them.
    return costs - masking.where_counts(statistics.teacher_entropies, mask)
  raise ValueError(_unknown_cost(cost))


def distil(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  completion_ids: jax.Array,
  completion_mask: jax.Array,
  settings: DistilSettings = DistilSettings(),
  *,
  sample_mask: jax.Array | None = None,
  advantages: jax.Array | None = None,
  failure_weights: jax.Array | None = None,
  old_log_probs: jax.Array | None = None,
) -> dense.Loss:
  """Returns DistIL from logits: each token's cost, and credit for later ones.

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
    settings: of the objective.
    sample_mask: 1 for sequences that have a teacher signal. The others have
      no feedback parts and are not in the baseline. Without a reward part they
      are left out of the average too; with one (`reward_weight` not 0) every
      sequence has something to learn from, and all are in it. Shape `[B]`.
    advantages: A, whose reward part adds to the score function. Shape `[B]`.
    failure_weights: f, a factor of both feedback parts; None means 1. `[B]`.
    old_log_probs: log π of the tokens when they were sampled; from it the
      ratio ρ, a constant. None means on-policy, ρ = 1. Shape `[B, T]`.

  Returns:
    The loss.

  Raises:
    ValueError: settings that do not fit together.
  """
  learns_from_rewards = settings.reward_weight != 0
  if learns_from_rewards and advantages is None:
    raise ValueError(
      f"reward_weight={settings.reward_weight} needs advantages; give them, or "
      "set reward_weight=0"
    )
  statistics = dense.clean_statistics(
    student_logits,
    teacher_logits,
    completion_ids,
    completion_mask,
    settings.divergence,
    sample_mask,
    learns_from_rewards=learns_from_rewards,
  )
  scores, future = token_losses.score_weights(
    token_costs(statistics, completion_mask, cost=settings.cost),
    masking.counted_tokens(completion_mask, sample_mask),
    settings.credit,
    average_cost=settings.average_cost,
  )
  per_token = token_losses.feedback_losses(
    statistics,
    completion_mask,
    scores,
    failure_weights=failure_weights,
    advantages=advantages,
    reward_weight=settings.reward_weight,
    teacher_mask=masking.counted_tokens(completion_mask, sample_mask),
    importance=dense.importance(
      statistics,
      old_log_probs,
      completion_mask,
      clip=settings.importance_clip,
    ),
  )
  return dense.aggregate(
    statistics,
    per_token,
    future,
    completion_mask,
    # With rewards every sequence has something to learn from, and all are in
    # the average.
    None if learns_from_rewards else sample_mask,
    aggregation=settings.aggregation,
  )


def _unknown_cost(cost: str) -> str:
  return f"cost={cost!r} is neither 'cross_entropy' nor 'kl'"
