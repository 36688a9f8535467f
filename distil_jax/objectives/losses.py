"""Computes the loss of a slice of a batch from what the networks say of it.

Each `*_loss` of an objective maps parameters and a slice to the slice's part of
the loss, and to a `LossAux` for the log. What couples sequences (rewards of a
group, baselines, averages) was found over the whole batch by `prepare` and
`BatchCredit` and is in the slice.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from distil_jax.models import experts
from distil_jax.objectives import token_losses
from distil_jax.objectives.base import (
  BatchLayout,
  ForwardPasses,
  LossAux,
  MetricSums,
  Objective,
  Params,
  teacher_mask,
)
from distil_jax.ops import advantages, fused_statistics, masking
from distil_jax.ops import credit as credit_lib
from distil_jax.ops import sampler_mismatch as mismatch_lib
from distil_jax.ops.token_statistics import TokenStatistics
from distil_jax.types import TrainBatch

CompareFn = Callable[..., fused_statistics.FusedStatistics]
CostsFn = Callable[[TokenStatistics, jax.Array], jax.Array]
# Costs, mask and what comes later; weights, future costs and what is to come.
ScoreFn = Callable[..., tuple[jax.Array, jax.Array, credit_lib.FutureSums]]
# Metrics of tokens that were sampled from older parameters.
_RATIOS = ("importance", "importance_clipped")


@dataclasses.dataclass(frozen=True)
class FeedbackSettings:
  """Says what an objective makes of student and teacher.

  Attributes:
    compare_fn: `(params, teacher_params, batch)`: student beside teacher.
    costs_fn: `(statistics, mask) -> costs` that credit carries.
    score_fn: `token_losses.score_weights_before` with its settings; None means
      that there is no credit, or that the batch has it already.
    reward_weight: weight of the batch's advantages; 0 if there are none.
    importance_clip: largest off-policy ratio; None means no limit.
    is_off_policy: whether the tokens may come from older parameters.
    teacher_names: see `ForwardPasses`.
    max_teacher_entropy: nats, above which a token's costs are 0; None means no
      limit.
  """

  compare_fn: CompareFn
  costs_fn: CostsFn
  score_fn: ScoreFn | None = None
  reward_weight: float = 0.0
  importance_clip: float | None = None
  is_off_policy: bool = False
  teacher_names: tuple[str, ...] = ()
  max_teacher_entropy: float | None = None

  def gated(self, costs: jax.Array, statistics: TokenStatistics) -> jax.Array:
    """Returns costs, 0 where the teacher is too unsure. Shape `[b, t]`."""
    limit = self.max_teacher_entropy
    if limit is None:
      return costs
    return jnp.where(statistics.teacher_entropies > limit, 0.0, costs)


def prepare(
  batch: TrainBatch,
  *,
  aggregation: masking.Aggregation,
  everyone_counts: bool = False,
  advantage_fn: Callable[[jax.Array], jax.Array] | None = None,
  failure_fn: Callable[[jax.Array], jax.Array] | None = None,
) -> TrainBatch:
  """Fills in what is known of a whole batch before any network runs.

  Args:
    batch: of one update.
    aggregation: how token losses are averaged.
    everyone_counts: sequences without teacher signal learn too, from rewards.
    advantage_fn, failure_fn: of the rewards of all sequences, `[B]` to `[B]`;
      None leaves the field empty.

  Returns:
    The batch with `loss_weights`, `advantages` and `failure_weights`.
  """
  rewards = batch.rewards
  loss_weights = masking.aggregation_weights(
    batch.student_tokens if everyone_counts else teacher_mask(batch),
    None,
    aggregation=aggregation,
  )
  if batch.sample_weights is not None:
    # After the average: what one sequence weighs must not change the others.
    loss_weights *= batch.sample_weights[:, None]
  return dataclasses.replace(
    batch,
    loss_weights=loss_weights,
    advantages=None if advantage_fn is None else advantage_fn(rewards),
    failure_weights=None if failure_fn is None else failure_fn(rewards),
  )


def feedback_loss(
  params: Params,
  teacher_params: Params,
  batch: TrainBatch,
  *,
  settings: FeedbackSettings,
) -> tuple[jax.Array, LossAux]:
  """Returns a divergence from the teacher, with credit and rewards.

  Args:
    params: the student's.
    teacher_params: the teacher's.
    batch: a prepared slice.
    settings: of the objective.

  Returns:
    The slice's part of the loss, scalar, and what to report.
  """
  taught = teacher_mask(batch)
  # With rewards every sequence has something to learn from, without them only
  # those that a teacher judges.
  learned = taught if settings.reward_weight == 0 else batch.student_tokens
  # One value for each sequence cannot be cut along time, so these travel in the
  # carry.
  sequences = {
    "failure_weights": batch.failure_weights,
    "advantages": batch.advantages,
  }
  source = settings.compare_fn(params, teacher_params, batch)
  # A scan's carry must keep its type, so its zeros are as wide as the costs.
  dtype = jnp.promote_types(source.hidden.dtype, jnp.float32)
  value, reports = source.fused_loss(
    functools.partial(_feedback_token_losses, settings),
    {
      "teacher_mask": taught,
      "mask": batch.student_tokens,
      "weights": batch.loss_weights,
      "score_weights": batch.score_weights,
      "future_costs": batch.future_costs,
      "old_log_probs": batch.old_log_probs,
    },
    (credit_lib.nothing_later(taught.shape[0], dtype), sequences),
  )
  mismatch = mismatch_lib.measure(
    # Not a metric itself: the mismatch is made of it.
    reports.pop("log_probs"),
    batch.old_log_probs,
    learned,
  )
  ratios = {k: reports.pop(k) for k in _RATIOS if k in reports}
  sums = metric_sums(taught, **reports) | metric_sums(learned, **ratios)
  sums |= teacher_sums(batch, reports["cost"], settings.teacher_names)
  return value, LossAux(sums | sequence_sums(batch), mismatch, source.loads)


def _feedback_token_losses(settings: FeedbackSettings, carry, statistics, rows):
  """Returns token losses of a chunk; the carry holds the costs after it."""
  later, sequences = carry
  costs = settings.costs_fn(statistics, rows["teacher_mask"])
  scores, future = rows["score_weights"], rows["future_costs"]
  if scores is None and settings.score_fn is not None:
    scores, future, later = settings.score_fn(
      settings.gated(costs, statistics), rows["teacher_mask"], later
    )
  reports = {
    "cost": costs,
    "entropy": statistics.entropies,
    "teacher_entropy": statistics.teacher_entropies,
    "log_probs": statistics.log_probs,
  }
  if settings.max_teacher_entropy is not None:
    open_gates = settings.gated(jnp.ones_like(costs), statistics)
    reports["teacher/gated"] = 1.0 - open_gates
    statistics = dataclasses.replace(
      statistics, costs=settings.gated(statistics.costs, statistics)
    )
  if scores is not None:
    reports["future_cost"] = future
    reports["score_weight"] = jnp.abs(scores)
  importance = None
  if settings.is_off_policy:
    ratio = functools.partial(
      advantages.importance_weights,
      statistics.log_probs,
      rows["old_log_probs"],
      rows["mask"],
    )
    importance = ratio(clip=settings.importance_clip)
    reports |= ratio_reports(ratio(clip=None), importance)
  losses = token_losses.feedback_losses(
    statistics,
    rows["mask"],
    scores,
    teacher_mask=rows["teacher_mask"],
    reward_weight=settings.reward_weight,
    importance=importance,
    **sequences,
  )
  # The weights were found over the whole batch, so that the losses of its
  # slices need only be added.
  return rows["weights"] * losses, ((later, sequences), reports)


def local_costs(statistics: TokenStatistics, mask: jax.Array) -> jax.Array:
  """Returns what each token minimises, nats, 0 at padding. Shape `[b, T]`."""
  return masking.where_counts(statistics.costs, mask)


def build_local_objective(
  settings: Any,
  forward: ForwardPasses,
  layout: BatchLayout,
  *,
  max_teacher_entropy: float | None,
) -> Objective:
  """Builds an objective that is a divergence alone, without future credit.

  Args:
    settings: of the objective, see `dense.LocalSettings`.
    forward: passes through the networks.
    layout: how a step cuts its batch.
    max_teacher_entropy: see `FeedbackSettings`.
  """
  feedback = FeedbackSettings(
    compare_fn=functools.partial(
      forward.compare_fn, divergence=settings.divergence
    ),
    costs_fn=local_costs,
    importance_clip=settings.importance_clip,
    is_off_policy=layout.is_off_policy,
    teacher_names=forward.teacher_names,
    max_teacher_entropy=max_teacher_entropy,
  )
  return Objective(
    prepare_fn=functools.partial(prepare, aggregation=settings.aggregation),
    loss_fn=functools.partial(feedback_loss, settings=feedback),
    ask_fn=forward.ask_fn,
  )


def costs_of_slice(
  params: Params,
  teacher_params: Params,
  batch: TrainBatch,
  *,
  settings: FeedbackSettings,
) -> jax.Array:
  """Returns the costs that credit carries, see `BatchCredit`. `[b, T]`."""
  source = settings.compare_fn(params, teacher_params, batch)
  statistics = source.statistics()
  costs = settings.costs_fn(statistics, teacher_mask(batch))
  return settings.gated(costs, statistics)


def merge(one: LossAux, other: LossAux) -> LossAux:
  """Returns the report of two slices together."""
  # Sums and counts are added and divided at the end, so that a mean does not
  # depend on how the batch is cut.
  sums, loads = jax.tree.map(
    jnp.add, (one.sums, one.loads), (other.sums, other.loads)
  )
  if one.mismatch is None or other.mismatch is None:
    return LossAux(sums, loads=loads)
  mismatch = mismatch_lib.merge(one.mismatch, other.mismatch)
  return LossAux(sums, mismatch, loads)


def metrics(aux: LossAux) -> dict[str, jax.Array]:
  """Returns scalars to log."""
  means = {k: total / jnp.maximum(n, 1.0) for k, (total, n) in aux.sums.items()}
  if aux.loads is not None:
    means |= experts.load_metrics(aux.loads)
  if aux.mismatch is None:
    return means
  return means | mismatch_lib.metrics(aux.mismatch)


def metric_sums(mask: jax.Array, **values: jax.Array) -> MetricSums:
  """Returns each value's sum over the tokens that count, and their number."""
  count = jnp.sum(mask).astype(jnp.float32)
  return {
    name: jnp.stack([jnp.sum(masking.where_counts(value, mask)), count])
    for name, value in jax.lax.stop_gradient(values).items()
  }


def sequence_sums(batch: TrainBatch) -> MetricSums:
  """Returns the sums of metrics of which each sequence has one value."""
  values = {}
  if batch.advantages is not None:
    values["advantage"] = jnp.abs(batch.advantages)
  if batch.failure_weights is not None:
    values["failure_weight"] = batch.failure_weights
  return metric_sums(jnp.ones(batch.completion_ids.shape[0]), **values)


def teacher_sums(
  batch: TrainBatch, costs: jax.Array, names: Sequence[str]
) -> MetricSums:
  """Returns the sums of metrics of each of several teachers.

  Args:
    batch: a slice.
    costs: of each token, nats. Shape `[b, T]`.
    names: of the teachers; empty gives nothing.
  """
  found, everyone = {}, jnp.ones(costs.shape[0])
  for number, name in enumerate(names):
    is_own = (batch.teacher_index == number).astype(jnp.float32)
    found |= metric_sums(everyone, **{f"teacher/share/{name}": is_own})
    taught = teacher_mask(batch) * is_own[:, None]
    found |= metric_sums(taught, **{f"teacher/cost/{name}": costs})
  return found


def ratio_reports(ratio: jax.Array, clipped: jax.Array) -> dict[str, jax.Array]:
  """Returns off-policy ratios, and 1 for those that were clipped. `[b, T]`."""
  is_clipped = (ratio != clipped).astype(jnp.float32)
  return dict(zip(_RATIOS, (ratio, is_clipped), strict=True))
