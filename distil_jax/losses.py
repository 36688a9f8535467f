"""Losses of a slice of a batch: networks, then `objectives`.

Each `*_loss` maps parameters and a `Piece` to the loss of each token, `[b, T]`,
and to sums for the log. What couples sequences (rewards of a group, baselines,
averages) is in the piece: it was found over the whole batch, so that slices
can be learned from one after the other.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from distil_jax import experts, objectives
from distil_jax.models import qwen3
from distil_jax.ops import advantages, masking, unembedding
from distil_jax.records import Batch

# Sum and number of what a metric averages. Shape `[2]` each.
Sums = dict[str, jax.Array]
StatisticsFn = Callable[..., unembedding.TokenStatistics]


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

  batch: Batch
  weights: Any
  advantages: Any = None
  failure_weights: Any = None
  credit: Any = None


def prepare(
  batch: Batch,
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
      batch.completion_mask,
      None if everyone_counts else batch.sample_mask,
      aggregation=aggregation,
    ),
    advantages=None if advantage_fn is None else advantage_fn(rewards),
    failure_weights=None if failure_fn is None else failure_fn(rewards),
  )


def feedback_loss(
  params: qwen3.Params,
  teacher_params: qwen3.Params,
  piece: Piece,
  *,
  statistics_fn: StatisticsFn,
  costs_fn: Callable[..., jax.Array],
  score_fn: Callable[..., tuple[jax.Array, jax.Array]] | None,
  reward_weight: float = 0.0,
  importance_clip: float | None = None,
  is_off_policy: bool = False,
) -> tuple[jax.Array, Sums]:
  """A divergence to the teacher, and what it makes of future and rewards.

  Args:
    params, teacher_params: of the networks.
    piece: what is learned from.
    statistics_fn: `experts.exact_statistics` or `experts.list_statistics`.
    costs_fn: the costs that credit carries, see `objectives.token_costs`.
    score_fn: `scores` with its settings; None for objectives without credit.
    reward_weight: of the piece's advantages.
    importance_clip: largest off-policy ratio.
    is_off_policy: the tokens may have been sampled from older parameters.
  """
  batch, credit = piece.batch, piece.credit
  statistics = statistics_fn(params, teacher_params, batch)
  told = experts.judged_tokens(batch)
  costs = costs_fn(statistics, told)
  if credit is None and score_fn is not None:
    credit = Credit(*score_fn(costs, told))
  importance = None
  sums = {}
  if is_off_policy:
    ratio = functools.partial(
      advantages.importance_weights,
      statistics.log_probs,
      batch.old_log_probs,
      batch.completion_mask,
    )
    importance = ratio(clip=importance_clip)
    learned = told if reward_weight == 0 else batch.completion_mask
    sums = _ratio_sums(ratio(clip=None), importance, learned)
  losses = objectives.feedback_losses(
    statistics,
    batch.completion_mask,
    None if credit is None else credit.scores,
    failure_weights=piece.failure_weights,
    advantages=piece.advantages,
    reward_weight=reward_weight,
    sample_mask=batch.sample_mask,
    importance=importance,
  )
  sums |= _sums(
    told,
    cost=costs,
    entropy=statistics.entropies,
    teacher_entropy=statistics.teacher_entropies,
  )
  if credit is not None:
    sums |= _sums(
      told,
      future_cost=credit.future_costs,
      score_weight=jnp.abs(credit.scores),
    )
  return losses, sums | _sequence_sums(piece)


def local_costs(
  statistics: unembedding.TokenStatistics, mask: jax.Array
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
  params: qwen3.Params,
  teacher_params: qwen3.Params,
  slices: Batch,
  *,
  statistics_fn: StatisticsFn,
  costs_fn: Callable[..., jax.Array],
  score_fn: Callable[..., tuple[jax.Array, jax.Array]],
) -> Credit:
  """Credit of a batch whose slices have a part in each other's.

  Args:
    params, teacher_params: of the networks.
    slices: the batch, cut. `[n, b, ...]`.
    statistics_fn, costs_fn, score_fn: as for `feedback_loss`.

  Returns:
    Shape `[B, T]` each.
  """

  def costs_of(micro_batch):
    statistics = statistics_fn(params, teacher_params, micro_batch)
    return costs_fn(statistics, experts.judged_tokens(micro_batch))

  costs = jax.lax.map(costs_of, slices)
  masks = jax.vmap(experts.judged_tokens)(slices)
  whole = (-1, costs.shape[-1])
  return Credit(*score_fn(costs.reshape(whole), masks.reshape(whole)))


def policy_gradient_loss(
  params: qwen3.Params,
  teacher_params: qwen3.Params,
  piece: Piece,
  *,
  graphdef: nnx.GraphDef,
  clip_low: float,
  clip_high: float,
  kl_weight: float = 0.0,
  is_off_policy: bool = False,
  chunk_size: int | None = None,
) -> tuple[jax.Array, Sums]:
  """Rewards alone; `teacher_params` are the reference of the divergence."""
  batch, mask = piece.batch, piece.batch.completion_mask

  def score(params):
    return unembedding.token_log_probs(
      experts.student_hidden_states(params, batch, graphdef=graphdef),
      qwen3.unembedding(params),
      batch.completion_ids,
      chunk_size=chunk_size,
    )

  log_probs, entropies = score(params)
  # On policy the ratio is 1; the sampler's rounding is no reason to clip.
  old_log_probs = jax.lax.stop_gradient(log_probs)
  sums = {}
  if is_off_policy:
    old_log_probs = batch.old_log_probs
    ratio = advantages.importance_weights(
      log_probs, old_log_probs, mask, clip=None
    )
    bounded = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    sums = _ratio_sums(ratio, bounded, mask)
  reference = None
  if kl_weight > 0:
    reference = jax.lax.stop_gradient(score(teacher_params)[0])
    sums |= _sums(mask, reference_log_ratio=log_probs - reference)
  losses = objectives.policy_gradient_losses(
    log_probs,
    old_log_probs,
    piece.advantages,
    mask,
    clip_low=clip_low,
    clip_high=clip_high,
    reference_log_probs=reference,
    kl_weight=kl_weight,
  )
  sums |= _sums(mask, entropy=entropies)
  return losses, sums | _sequence_sums(piece)


def sft_loss(
  params: qwen3.Params,
  teacher_params: qwen3.Params,
  piece: Piece,
  *,
  graphdef: nnx.GraphDef,
  chunk_size: int | None = None,
) -> tuple[jax.Array, Sums]:
  """Demonstrations."""
  del teacher_params
  batch = piece.batch
  log_probs, entropies = unembedding.token_log_probs(
    experts.student_hidden_states(params, batch, graphdef=graphdef),
    qwen3.unembedding(params),
    batch.completion_ids,
    chunk_size=chunk_size,
  )
  losses = objectives.sft_losses(log_probs, batch.completion_mask)
  return losses, _sums(
    experts.judged_tokens(batch), cost=losses, entropy=entropies
  )


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


def _ratio_sums(ratio: jax.Array, clipped: jax.Array, mask: jax.Array) -> Sums:
  is_clipped = (ratio != clipped).astype(jnp.float32)
  return _sums(mask, importance=ratio, importance_clipped=is_clipped)
