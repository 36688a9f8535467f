"""Reads token statistics from hidden states, without all logits in memory."""

import functools

import chex
import jax
import jax.numpy as jnp

from distil_jax.ops import divergences, fused_linear, statistics_vjp, vocabulary
from distil_jax.ops.chunking import Layout
from distil_jax.ops.divergences import Divergence, TopKFn
from distil_jax.ops.fused_linear import FusedStatistics, Reader
from distil_jax.ops.token_statistics import (
  DenseTeacher,
  ListKind,
  OwnStatistics,
  SparseTeacher,
  TokenStatistics,
)


def compared(
  hidden: jax.Array,
  unembedding: jax.Array,
  teacher: DenseTeacher,
  token_ids: jax.Array,
  divergence: Divergence,
  mask: jax.Array | None = None,
  *,
  top_k_fn: TopKFn = jax.lax.top_k,
) -> FusedStatistics:
  """Compares a student with a teacher whose whole distribution is known.

  Args:
    hidden, unembedding: the student's. Shape `[B, T, D]` and `[D, V]`.
    teacher: no gradient flows to it, because its distribution is the label.
    token_ids: the student's own tokens. Shape `[B, T]`.
    divergence: the cost, and what it is taken on.
    mask: 1 where the teacher counts. Elsewhere its hidden states are not read,
      and statistics that compare with it mean nothing. None means that it
      counts everywhere. Shape `[B, T]`.
    top_k_fn: finds the largest logits, `[t, B, V]`, if only these are kept.

  Returns:
    What is read: `TokenStatistics`.

  Raises:
    ValueError: not as many hidden states as unembeddings.
  """
  chex.assert_rank([*teacher.hidden], 3)
  chex.assert_equal_shape_suffix([unembedding, *teacher.unembedding], 1)
  if len(teacher.hidden) != len(teacher.unembedding) or not teacher.hidden:
    raise ValueError(
      f"a teacher of {len(teacher.hidden)} hidden states and "
      f"{len(teacher.unembedding)} unembeddings; it needs as many, at least one"
    )
  token_ids = _checked(hidden, token_ids)
  rows = {"ids": token_ids, "teacher": tuple(teacher.hidden)}
  if mask is not None:
    rows["teacher_mask"] = mask
  # The reader is a static argument of a custom vjp. It may close over settings,
  # but arrays must travel as constants and rows, or tracing would refuse them.
  return FusedStatistics(
    Reader(
      functools.partial(_read_compared, divergence, top_k_fn),
      functools.partial(_vjp_compared, divergence),
      _teacher_logits,
    ),
    hidden,
    unembedding,
    tuple(teacher.unembedding),
    rows,
  )


def compared_with_list(
  hidden: jax.Array,
  unembedding: jax.Array,
  teacher: SparseTeacher,
  token_ids: jax.Array,
  mask: jax.Array | None = None,
  weights: jax.Array | None = None,
) -> FusedStatistics:
  """Compares a student with a teacher of whom lists of tokens are known.

  Args:
    hidden, unembedding: the student's. Shape `[B, T, D]` and `[D, V]`.
    teacher: no gradient flows to it.
    token_ids: the student's own tokens. Shape `[B, T]`.
    mask: 1 where the token counts; elsewhere the lists are not read. None
      means that they are read everywhere. Shape `[B, T]`.
    weights: factors of all that compares with the lists; None means 1. Shape
      `[B, T]`.

  Returns:
    What is read: `TokenStatistics`.

  Raises:
    ValueError: an unknown kind, or samples with a tail.
  """
  ids, log_probs, kind, tail, vocab_size = teacher
  if kind not in ("samples", "top_k"):
    raise ValueError(f"kind={kind!r} is neither 'samples' nor 'top_k'")
  if kind == "samples" and tail:
    raise ValueError("kind='samples' has no tail; set tail=False")
  chex.assert_rank([ids, log_probs], 3)
  chex.assert_equal_shape([ids, log_probs])
  log_probs = log_probs.astype(jnp.float32)
  if mask is not None:
    counts = mask.astype(bool)[..., None]
    ids = jnp.where(counts, ids, 0)
    log_probs = jnp.where(counts, log_probs, 0.0)
  rows = (_checked(hidden, token_ids), (ids, log_probs), weights)
  read = functools.partial(
    _read_list, kind=kind, tail=tail, vocab_size=vocab_size
  )
  return FusedStatistics(
    fused_linear.reader_by_autodiff(read), hidden, unembedding, None, rows
  )


def alone(
  hidden: jax.Array, unembedding: jax.Array, token_ids: jax.Array
) -> FusedStatistics:
  """Reads a policy by itself, without a teacher.

  Args:
    hidden, unembedding: of the policy. Shape `[B, T, D]` and `[D, V]`.
    token_ids: shape `[B, T]`.

  Returns:
    What is read: `OwnStatistics`.
  """
  token_ids = _checked(hidden, token_ids)
  reader = Reader(_read_own, _vjp_own)
  return FusedStatistics(reader, hidden, unembedding, None, token_ids)


def token_log_probs(
  hidden: jax.Array,
  unembedding: jax.Array,
  token_ids: jax.Array,
  *,
  chunk_size: int | None = None,
  layout: Layout = Layout(),  # noqa: B008 (frozen)
) -> OwnStatistics:
  """Returns each token's log-probability, and the entropy of its choice.

  Args:
    hidden: shape `[B, T, D]`.
    unembedding: shape `[D, V]`.
    token_ids: shape `[B, T]`.
    chunk_size: columns of time at once; None chooses by memory. Any T works.
    layout: how arrays are sharded.

  Returns:
    Log-probabilities (NaN for an id outside the vocabulary) and entropies,
    nats, float32, `[B, T]` each.
  """
  source = alone(hidden, unembedding, token_ids)
  return source.tiled(chunk_size, layout).statistics()


def _checked(hidden: jax.Array, token_ids: jax.Array) -> jax.Array:
  """Returns the ids as int32, wide enough to be compared with V."""
  chex.assert_rank([hidden, token_ids], [3, 2])
  chex.assert_type([hidden, token_ids], [float, int])
  return token_ids.astype(jnp.int32)


def _teacher_logits(unembeddings, rows):
  """Returns a tile of the teacher's logits and the ids, for `compared`."""
  states = rows["teacher"]
  if "teacher_mask" in rows:
    # A weight of 0 does not undo NaN, which may stand at padding.
    counts = rows["teacher_mask"].astype(bool)[..., None]
    states = tuple(jnp.where(counts, x, 0) for x in states)
  # Several summands are a trust region, which mixes the logits of two networks.
  summands = map(fused_linear.logits, states, unembeddings)
  return functools.reduce(jnp.add, summands), rows["ids"]


def _read_compared(divergence: Divergence, top_k_fn, logits, tile):
  teacher_logits, ids = tile
  found, residuals = statistics_vjp.read(
    logits, teacher_logits, ids, divergence, top_k_fn
  )
  constants = ("cross_entropies", "teacher_entropies", "teacher_log_probs")
  found |= {name: jax.lax.stop_gradient(found[name]) for name in constants}
  return TokenStatistics(**found), residuals


def _vjp_compared(
  divergence: Divergence, logits, tile, residuals, cotangents: TokenStatistics
):
  teacher_logits, ids = tile
  return statistics_vjp.vjp(
    logits,
    teacher_logits,
    ids,
    divergence,
    residuals,
    costs=cotangents.costs,
    log_probs=cotangents.log_probs,
    entropies=cotangents.entropies,
  )


def _read_own(logits, ids):
  found, residuals = statistics_vjp.read_own(logits, ids)
  return OwnStatistics(*found), residuals


def _vjp_own(logits, ids, residuals, cotangents: OwnStatistics):
  return statistics_vjp.own_vjp(logits, ids, residuals, **cotangents._asdict())


def _read_list(
  logits, tile, *, kind: ListKind, tail: bool, vocab_size: int | None
):
  """Returns statistics of a tile for `compared_with_list`, for autodiff."""
  ids, candidates, weights = tile
  known = vocabulary.only_tokens(logits, vocab_size)
  if kind == "samples":
    costs, entropies = _sampled_costs(known, *candidates)
  else:
    costs, entropies = _listed_costs(
      known, *candidates, tail=tail, vocab_size=vocab_size
    )
  if weights is not None:
    costs, entropies = costs * weights, entropies * weights
  log_softmax = jax.nn.log_softmax(logits, axis=-1)
  return TokenStatistics(
    costs=costs,
    cross_entropies=jax.lax.stop_gradient(costs),
    teacher_entropies=jax.lax.stop_gradient(entropies),
    log_probs=vocabulary.pick(log_softmax, ids),
    entropies=divergences.entropy(log_softmax),
    teacher_log_probs=jnp.zeros_like(costs),
  )


def _sampled_costs(
  logits: jax.Array, ids: jax.Array, log_probs: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns −Σ p log π_θ over samples, and 0 for the entropy, not known."""
  log_softmax = jax.nn.log_softmax(logits, axis=-1)
  candidates = jnp.take_along_axis(log_softmax, ids, axis=-1)
  costs = divergences.forward_cross_entropy(candidates, log_probs)
  return costs, jnp.zeros_like(costs)


def _listed_costs(
  logits: jax.Array,
  ids: jax.Array,
  log_probs: jax.Array,
  *,
  tail: bool,
  vocab_size: int | None,
) -> tuple[jax.Array, jax.Array]:
  """Returns cross-entropy and the teacher's entropy on a list's support."""
  # An absent candidate may carry any id, so the logit that stands there must
  # not enter the student's normalisation.
  is_listed = log_probs != -jnp.inf
  kept = jnp.where(
    is_listed, jnp.take_along_axis(logits, ids, axis=-1), -jnp.inf
  )
  if tail:
    # XLA fuses the comparison into its reduction: [..., C, V] is never in
    # memory.
    vocabulary = jnp.arange(logits.shape[-1]).reshape(
      (1,) * log_probs.ndim + (-1,)
    )
    hits = (ids[..., None] == vocabulary) & is_listed[..., None]
    others = ~jnp.any(hits, axis=-2)
    if vocab_size is not None:
      # Padding has no mass, but it would make a bucket that is empty look full.
      others &= vocabulary[0] < vocab_size
    kept = jnp.concatenate([kept, divergences.log_sum(logits, others)], axis=-1)
    mass = jnp.sum(jnp.exp(log_probs), axis=-1, keepdims=True)
    # If the list holds the whole vocabulary, all that is left is rounding.
    has_others = jnp.any(others, axis=-1, keepdims=True)
    rest = jnp.log(jnp.where(has_others, jnp.maximum(1 - mass, 0.0), 0.0))
    log_probs = jnp.concatenate([log_probs, rest], axis=-1)
  student = jax.nn.log_softmax(kept, axis=-1)
  teacher = jax.nn.log_softmax(log_probs, axis=-1)
  return (
    divergences.forward_cross_entropy(student, teacher),
    divergences.entropy(teacher),
  )
