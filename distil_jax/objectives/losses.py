"""Losses of a slice of a batch: networks, then `objectives`.

Each `*_loss` maps parameters and a `Piece` to its part of the loss and to a
`Report` for the log. What couples sequences (rewards of a group, baselines,
averages) is in the piece: it was found over the whole batch, so that slices
can be learned from one after the other.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from distil_jax import objectives
from distil_jax.models import decoder
from distil_jax.objectives import teachers
from distil_jax.ops import (
  advantages,
  fused_statistics,
  masking,
  token_statistics,
)
from distil_jax.ops import credit as credit_lib
from distil_jax.ops import sampler_mismatch as mismatch_lib
from distil_jax.types import TrainBatch

# Sum and number of what a metric averages. Shape `[2]` each.
Sums = dict[str, jax.Array]
SourceFn = Callable[..., fused_statistics.FusedStatistics]
CostsFn = Callable[[token_statistics.TokenStatistics, jax.Array], jax.Array]
# Costs, mask and what comes later; weights, future costs and what is to come.
ScoreFn = Callable[..., tuple[jax.Array, jax.Array, credit_lib.FutureSums]]
# What is reported of tokens that were sampled from older parameters.
_RATIOS = ("importance", "importance_clipped")


@struct.dataclass
class LossAux:
  """What the loss of a slice tells the log.

  Attributes:
    sums: of each metric that is a mean.
    mismatch: of the sampler with this pass over its tokens; None where nothing
      was sampled.
  """

  sums: Sums
  mismatch: mismatch_lib.Mismatch | None = None


@struct.dataclass
class Credit:
  """What future costs make of each token.

  Attributes:
    scores: weights of log π_θ in the surrogate. Shape `[b, T]`.
    future_costs: nats. Shape `[b, T]`.
  """

  scores: Any
  future_costs: Any


@struct.dataclass
class Piece:
  """A batch, or a slice of it, with what was found over the whole.

  Attributes:
    batch: what is learned from.
    weights: what each token's loss counts in the average. Shape `[b, T]`.
    advantages: of each sequence; None where rewards do not count. `[b]`.
    failure_weights: of each sequence's feedback; None: 1. Shape `[b]`.
    credit: None where the loss can find it from the slice.
  """

  batch: TrainBatch
  weights: Any
  advantages: Any = None
  failure_weights: Any = None
  credit: Any = None


def prepare(
  batch: TrainBatch,
  *,
  aggregation: masking.Aggregation,
  everyone_counts: bool = False,
  advantage_fn: Callable[[jax.Array], jax.Array] | None = None,
  failure_fn: Callable[[jax.Array], jax.Array] | None = None,
) -> Piece:
  """What is known of a whole batch before any network runs.

  Args:
    batch: of one update.
    aggregation: how token losses are averaged.
    everyone_counts: sequences without teacher signal learn too, from rewards.
    advantage_fn, failure_fn: of the rewards of all sequences.
  """
  rewards = batch.rewards
  return Piece(
    batch=batch,
    weights=masking.aggregation_weights(
      batch.student_tokens,
      None if everyone_counts else batch.sample_mask,
      aggregation=aggregation,
    ),
    advantages=None if advantage_fn is None else advantage_fn(rewards),
    failure_weights=None if failure_fn is None else failure_fn(rewards),
  )


def feedback_loss(
  params: decoder.Params,
  teacher_params: decoder.Params,
  piece: Piece,
  *,
  source_fn: SourceFn,
  costs_fn: CostsFn,
  score_fn: ScoreFn | None,
  reward_weight: float = 0.0,
  importance_clip: float | None = None,
  is_off_policy: bool = False,
  chunk_size: int | None = None,
) -> tuple[jax.Array, LossAux]:
  """A divergence to the teacher, and what it makes of future and rewards.

  Args:
    params, teacher_params: of the networks.
    piece: what is learned from.
    source_fn: `experts.exact_source` or `experts.list_source`.
    costs_fn: the costs that credit carries, see `objectives.token_costs`.
    score_fn: `objectives.score_weights_before` with its settings; None for
      objectives without credit.
      Not asked where the piece has its credit.
    reward_weight: of the piece's advantages.
    importance_clip: largest off-policy ratio.
    is_off_policy: the tokens may have been sampled from older parameters.
    chunk_size: columns of time whose logits are in memory at once.

  Returns:
    the loss, and what to report.
  """
  batch = piece.batch
  told = teachers.teacher_mask(batch)
  learned = told if reward_weight == 0 else batch.student_tokens

  def token_losses(carry, statistics, rows):
    later, sequences = carry
    costs = costs_fn(statistics, rows["told"])
    credit = rows["credit"]
    if credit is None and score_fn is not None:
      *found, later = score_fn(costs, rows["told"], later)
      credit = Credit(*found)
    reports = {
      "cost": costs,
      "entropy": statistics.entropies,
      "teacher_entropy": statistics.teacher_entropies,
      "log_probs": statistics.log_probs,
    }
    if credit is not None:
      reports["future_cost"] = credit.future_costs
      reports["score_weight"] = jnp.abs(credit.scores)
    importance = None
    if is_off_policy:
      ratio = functools.partial(
        advantages.importance_weights,
        statistics.log_probs,
        rows["old_log_probs"],
        rows["mask"],
      )
      importance = ratio(clip=importance_clip)
      reports |= _ratios(ratio(clip=None), importance)
    losses = objectives.feedback_losses(
      statistics,
      rows["mask"],
      None if credit is None else credit.scores,
      reward_weight=reward_weight,
      importance=importance,
      **sequences,
    )
    return rows["weights"] * losses, ((later, sequences), reports)

  sequences = {
    "failure_weights": piece.failure_weights,
    "advantages": piece.advantages,
    "sample_mask": batch.sample_mask,
  }
  source = source_fn(params, teacher_params, batch)
  dtype = jnp.promote_types(source.hidden.dtype, jnp.float32)
  value, reports = source.minimise(
    token_losses,
    {
      "told": told,
      "mask": batch.student_tokens,
      "weights": piece.weights,
      "credit": piece.credit,
      "old_log_probs": batch.old_log_probs,
    },
    (credit_lib.nothing_later(told.shape[0], dtype), sequences),
    chunk_size=chunk_size,
    layout=teachers.layout(source.hidden, source.unembedding),
  )
  mismatch = mismatch_lib.measure(
    reports.pop("log_probs"), batch.old_log_probs, learned
  )
  ratios = {k: reports.pop(k) for k in _RATIOS if k in reports}
  sums = _sums(told, **reports) | _sums(learned, **ratios)
  return value, LossAux(sums | _sequence_sums(piece), mismatch)


def local_costs(
  statistics: token_statistics.TokenStatistics, mask: jax.Array
) -> jax.Array:
  """What each token minimises, 0 at padding. Shape `[b, T]`."""
  return masking.where_counts(statistics.costs, mask)


def scores(
  costs: jax.Array, mask: jax.Array, *, differential: bool = False, **settings
) -> tuple[jax.Array, jax.Array]:
  """`objectives.score_weights`, counted from the mean cost if differential."""
  if differential:
    costs = jax.lax.stop_gradient(masking.where_counts(costs, mask))
    settings["average_cost"] = jnp.sum(costs) / jnp.maximum(jnp.sum(mask), 1)
  return objectives.score_weights(costs, mask, **settings)


def batch_credit(
  params: decoder.Params,
  teacher_params: decoder.Params,
  slices: TrainBatch,
  *,
  source_fn: SourceFn,
  costs_fn: CostsFn,
  score_fn: Callable[..., tuple[jax.Array, jax.Array]],
  chunk_size: int | None = None,
) -> Credit:
  """Credit that cannot be found on the way, in a pass of its own.

  Args:
    params, teacher_params: of the networks.
    slices: the batch, cut. `[n, b, ...]`.
    source_fn, costs_fn, chunk_size: as for `feedback_loss`.
    score_fn: `scores` with its settings, for the whole batch.

  Returns:
    Shape `[B, T]` each.
  """

  def costs_of(micro_batch):
    source = source_fn(params, teacher_params, micro_batch)
    statistics = source.statistics(
      chunk_size=chunk_size,
      layout=teachers.layout(source.hidden, source.unembedding),
    )
    return costs_fn(statistics, teachers.teacher_mask(micro_batch))

  costs = jax.lax.map(costs_of, slices)
  masks = jax.vmap(teachers.teacher_mask)(slices)
  whole = (-1, costs.shape[-1])
  return Credit(*score_fn(costs.reshape(whole), masks.reshape(whole)))


def policy_gradient_loss(
  params: decoder.Params,
  teacher_params: decoder.Params,
  piece: Piece,
  *,
  graphdef: nnx.GraphDef,
  clip_low: float,
  clip_high: float,
  kl_weight: float = 0.0,
  is_off_policy: bool = False,
  chunk_size: int | None = None,
) -> tuple[jax.Array, LossAux]:
  """Rewards alone; `teacher_params` are the reference of the divergence."""
  batch, mask = piece.batch, piece.batch.student_tokens
  source = teachers.own_source(params, batch, graphdef=graphdef)
  settings = {
    "chunk_size": chunk_size,
    "layout": teachers.layout(source.hidden, source.unembedding),
  }
  reference = None
  if kl_weight > 0:
    reference = teachers.own_source(teacher_params, batch, graphdef=graphdef)
    reference = reference.statistics(**settings).log_probs

  def token_losses(advantages_of, statistics, rows):
    log_probs = statistics.log_probs
    reports = {"entropy": statistics.entropies, "log_probs": log_probs}
    # On policy the ratio is 1; the sampler's rounding is no reason to clip.
    old_log_probs = jax.lax.stop_gradient(log_probs)
    if is_off_policy:
      old_log_probs = rows["old_log_probs"]
      ratio = advantages.importance_weights(
        log_probs, old_log_probs, rows["mask"], clip=None
      )
      reports |= _ratios(ratio, jnp.clip(ratio, 1 - clip_low, 1 + clip_high))
    if rows["reference"] is not None:
      reports["reference_log_ratio"] = log_probs - rows["reference"]
    losses = objectives.policy_gradient_losses(
      log_probs,
      old_log_probs,
      advantages_of,
      rows["mask"],
      clip_low=clip_low,
      clip_high=clip_high,
      reference_log_probs=rows["reference"],
      kl_weight=kl_weight,
    )
    return rows["weights"] * losses, (advantages_of, reports)

  value, reports = source.minimise(
    token_losses,
    {
      "mask": mask,
      "weights": piece.weights,
      "old_log_probs": batch.old_log_probs,
      "reference": reference,
    },
    piece.advantages,
    **settings,
  )
  mismatch = mismatch_lib.measure(
    reports.pop("log_probs"), batch.old_log_probs, mask
  )
  sums = _sums(mask, **reports) | _sequence_sums(piece)
  return value, LossAux(sums, mismatch)


def sft_loss(
  params: decoder.Params,
  teacher_params: decoder.Params,
  piece: Piece,
  *,
  graphdef: nnx.GraphDef,
  chunk_size: int | None = None,
) -> tuple[jax.Array, LossAux]:
  """Demonstrations."""
  del teacher_params
  batch = piece.batch

  def token_losses(carry, statistics, rows):
    losses = objectives.sft_losses(statistics.log_probs, rows["mask"])
    reports = {"cost": losses, "entropy": statistics.entropies}
    return rows["weights"] * losses, (carry, reports)

  source = teachers.own_source(params, batch, graphdef=graphdef)
  value, reports = source.minimise(
    token_losses,
    {"mask": batch.student_tokens, "weights": piece.weights},
    chunk_size=chunk_size,
    layout=teachers.layout(source.hidden, source.unembedding),
  )
  return value, LossAux(_sums(teachers.teacher_mask(batch), **reports))


def merge(one: LossAux, other: LossAux) -> LossAux:
  """What two slices tell together."""
  sums = jax.tree.map(jnp.add, one.sums, other.sums)
  if one.mismatch is None or other.mismatch is None:
    return LossAux(sums)
  return LossAux(sums, mismatch_lib.merge(one.mismatch, other.mismatch))


def metrics(report: LossAux) -> dict[str, jax.Array]:
  """Scalars to log."""
  means = {
    k: total / jnp.maximum(n, 1.0) for k, (total, n) in report.sums.items()
  }
  if report.mismatch is None:
    return means
  return means | mismatch_lib.metrics(report.mismatch)


def _sums(mask: jax.Array, **values: jax.Array) -> Sums:
  """Of each value over the tokens that count, and how many these are."""
  count = jnp.sum(mask).astype(jnp.float32)
  return {
    name: jnp.stack([jnp.sum(masking.where_counts(value, mask)), count])
    for name, value in jax.lax.stop_gradient(values).items()
  }


def _sequence_sums(piece: Piece) -> Sums:
  """Of what each sequence has one of."""
  values = {}
  if piece.advantages is not None:
    values["advantage"] = jnp.abs(piece.advantages)
  if piece.failure_weights is not None:
    values["failure_weight"] = piece.failure_weights
  return _sums(jnp.ones(piece.weights.shape[0]), **values)


def _ratios(ratio: jax.Array, clipped: jax.Array) -> dict[str, jax.Array]:
  is_clipped = (ratio != clipped).astype(jnp.float32)
  return dict(zip(_RATIOS, (ratio, is_clipped), strict=True))
