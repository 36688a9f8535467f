"""Reads token statistics from hidden states, without all logits in memory."""

import functools

import chex
import jax
import jax.numpy as jnp

from distil_jax.ops import fused_linear, list_statistics, statistics_vjp
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
    (tuple(teacher.unembedding), teacher.is_used),
    rows,
  )


def compared_with_list(
  hidden: jax.Array,
  unembedding: jax.Array,
  teacher: SparseTeacher,
  token_ids: jax.Array,
  divergence: Divergence,
  mask: jax.Array | None = None,
  weights: jax.Array | None = None,
) -> FusedStatistics:
  """Compares a student with a teacher of whom lists of tokens are known.

  Args:
    hidden, unembedding: the student's. Shape `[B, T, D]` and `[D, V]`.
    teacher: no gradient flows to it.
    token_ids: the student's own tokens. Shape `[B, T]`.
    divergence: the cost. Its support is the list, with one bucket for all
      other tokens if it has a tail.
    mask: 1 where the token counts; elsewhere the lists are not read. None
      means that they are read everywhere. Shape `[B, T]`.
    weights: factors of all that compares with the lists; None means 1. Shape
      `[B, T]`.

  Returns:
    What is read: `TokenStatistics`.

  Raises:
    ValueError: an unknown kind, or a cost that a list does not tell.
  """
  ids, log_probs, kind, token_log_probs = teacher
  list_statistics.check(kind, divergence)
  chex.assert_rank([ids, log_probs], 3)
  chex.assert_equal_shape([ids, log_probs])
  log_probs = log_probs.astype(jnp.float32)
  if mask is not None:
    counts = mask.astype(bool)
    ids = jnp.where(counts[..., None], ids, 0)
    log_probs = jnp.where(counts[..., None], log_probs, 0.0)
    if token_log_probs is not None:
      token_log_probs = jnp.where(counts, token_log_probs, 0.0)
  rows = (
    _checked(hidden, token_ids),
    ids,
    log_probs,
    token_log_probs,
    weights,
  )
  read = functools.partial(_read_list, kind=kind, divergence=divergence)
  return FusedStatistics(
    fused_linear.reader_by_autodiff(read), hidden, unembedding, None, rows
  )


def alone(
  hidden: jax.Array,
  unembedding: jax.Array,
  token_ids: jax.Array,
  vocab_size: int | None = None,
) -> FusedStatistics:
  """Reads a policy by itself, without a teacher.

  Args:
    hidden, unembedding: of the policy. Shape `[B, T, D]` and `[D, V]`.
    token_ids: shape `[B, T]`.
    vocab_size: see `Divergence`.

  Returns:
    What is read: `OwnStatistics`.
  """
  token_ids = _checked(hidden, token_ids)
  reader = Reader(
    functools.partial(_read_own, vocab_size),
    functools.partial(_vjp_own, vocab_size),
  )
  return FusedStatistics(reader, hidden, unembedding, None, token_ids)


def token_log_probs(
  hidden: jax.Array,
  unembedding: jax.Array,
  token_ids: jax.Array,
  *,
  vocab_size: int | None = None,
  chunk_size: int | None = None,
  layout: Layout = Layout(),  # noqa: B008 (frozen)
) -> OwnStatistics:
  """Returns each token's log-probability, and the entropy of its choice.

  Args:
    hidden: shape `[B, T, D]`.
    unembedding: shape `[D, V]`.
    token_ids: shape `[B, T]`.
    vocab_size: see `Divergence`.
    chunk_size: columns of time at once; None chooses by memory. Any T works.
    layout: how arrays are sharded.

  Returns:
    Log-probabilities (NaN for an id outside the vocabulary) and entropies,
    nats, float32, `[B, T]` each.
  """
  source = alone(hidden, unembedding, token_ids, vocab_size)
  return source.tiled(chunk_size, layout).statistics()


def _checked(hidden: jax.Array, token_ids: jax.Array) -> jax.Array:
  """Returns the ids as int32, wide enough to be compared with V."""
  chex.assert_rank([hidden, token_ids], [3, 2])
  chex.assert_type([hidden, token_ids], [float, int])
  return token_ids.astype(jnp.int32)


def _teacher_logits(constants, rows):
  """Returns a tile of the teacher's logits and the ids, for `compared`."""
  (unembeddings, is_used), states = constants, rows["teacher"]
  if "teacher_mask" in rows:
    # A weight of 0 does not undo NaN, which may stand at padding.
    counts = rows["teacher_mask"].astype(bool)[..., None]
    states = tuple(jnp.where(counts, x, 0) for x in states)
  # Several summands are a trust region, which mixes the logits of two networks,
  # or several teachers, of which each row has one.
  if is_used is None:
    summands = map(fused_linear.logits, states, unembeddings)
  else:
    summands = map(_logits_if, is_used, states, unembeddings)
  return functools.reduce(jnp.add, summands), rows["ids"]


def _logits_if(is_used, states, unembedding):
  """Returns logits; 0, without the product, unless they are used."""
  shape = jax.eval_shape(fused_linear.logits, states, unembedding)
  return jax.lax.cond(
    is_used,
    fused_linear.logits,
    lambda *_: jnp.zeros(shape.shape, shape.dtype),
    states,
    unembedding,
  )


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


def _read_own(vocab_size, logits, ids):
  found, residuals = statistics_vjp.read_own(logits, ids, vocab_size)
  return OwnStatistics(*found), residuals


def _vjp_own(vocab_size, logits, ids, residuals, cotangents: OwnStatistics):
  return statistics_vjp.own_vjp(
    logits, ids, residuals, vocab_size, **cotangents._asdict()
  )


def _read_list(logits, tile, *, kind: ListKind, divergence: Divergence):
  return TokenStatistics(
    **list_statistics.read(logits, tile, kind=kind, divergence=divergence)
  )
