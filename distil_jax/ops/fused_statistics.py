"""What a loss needs of the vocabulary, without its logits in memory."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from distil_jax.ops import divergences, fused_linear, statistics_vjp
from distil_jax.ops.chunking import Layout
from distil_jax.ops.divergences import Divergence, Kind, TopKFn
from distil_jax.ops.fused_linear import Reader
from distil_jax.ops.token_statistics import (
  Expert,
  ListKind,
  OwnStatistics,
  SparseTeacher,
  TokenStatistics,
)


class FusedStatistics(NamedTuple):
  """The student's states, and how statistics are read from them.

  Attributes:
    reader: of a tile of the student's logits.
    hidden: shape `[B, T, D]`.
    unembedding: shape `[D, V]`.
    constants, rows: what the reader takes besides; no gradient flows to them.
  """

  reader: Reader
  hidden: jax.Array
  unembedding: jax.Array
  constants: Any
  rows: Any

  def statistics(
    self,
    *,
    chunk_size: int | None = None,
    layout: Layout = Layout(),  # noqa: B008 (frozen)
  ) -> Any:
    """`TokenStatistics` or `OwnStatistics`, see `chunks.statistics`."""
    return fused_linear.statistics(*self, size=chunk_size, layout=layout)

  def minimise(
    self,
    loss: Callable[[Any, Any, Any], tuple[jax.Array, tuple[Any, Any]]],
    rows: Any,
    carry: Any = None,
    *,
    chunk_size: int | None = None,
    layout: Layout = Layout(),  # noqa: B008 (frozen)
  ) -> tuple[jax.Array, Any]:
    """The sum of losses made of the statistics, see `chunks.minimise`.

    Args:
      loss: `(carry, statistics, rows) -> (losses, (carry, reports))`.
      rows: what the loss takes besides, a tree of `[B, T, ...]`.
      carry: before the last chunk.
      chunk_size, layout: as for `token_statistics`.
    """
    return fused_linear.fused_loss(
      self.reader,
      loss,
      *self[1:],
      rows,
      carry,
      size=chunk_size,
      layout=layout,
    )


def compared(
  hidden: jax.Array,
  unembedding: jax.Array,
  teacher: Expert,
  token_ids: jax.Array,
  divergence: Divergence,
  mask: jax.Array | None = None,
  *,
  top_k_fn: TopKFn = jax.lax.top_k,
) -> FusedStatistics:
  """A student beside a teacher that tells its distribution.

  Args:
    hidden, unembedding: the student's.
    teacher: no gradient flows to it: its distribution is the label.
    token_ids: the student's own tokens. Shape `[B, T]`.
    divergence: the cost, and what it is taken on.
    mask: 1 where the teacher counts; elsewhere its hidden states are not read,
      and what compares with it means nothing. None: it counts everywhere.
      Shape `[B, T]`.
    top_k_fn: finds the largest logits, `[t, B, V]`, where only these are kept.
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
    rows["told"] = mask
  return FusedStatistics(
    Reader(
      functools.partial(_read_compared, divergence, top_k_fn),
      functools.partial(_pull_compared, divergence),
      _teachers_logits,
    ),
    hidden,
    unembedding,
    tuple(teacher.unembedding),
    rows,
  )


def listed(
  hidden: jax.Array,
  unembedding: jax.Array,
  teacher: SparseTeacher,
  token_ids: jax.Array,
  mask: jax.Array | None = None,
) -> FusedStatistics:
  """A student beside a teacher that gives lists.

  Args:
    hidden, unembedding: the student's.
    teacher: no gradient flows to it.
    token_ids: the student's own tokens. Shape `[B, T]`.
    mask: 1 where the token counts; elsewhere the lists are not read. None:
      they are read everywhere. Shape `[B, T]`.

  Raises:
    ValueError: an unknown kind, or samples with a tail.
  """
  ids, log_probs, kind, tail = teacher
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
  rows = (_checked(hidden, token_ids), (ids, log_probs))
  read = functools.partial(_read_listed, kind=kind, tail=tail)
  return FusedStatistics(
    fused_linear.differentiated(read), hidden, unembedding, None, rows
  )


def alone(
  hidden: jax.Array, unembedding: jax.Array, token_ids: jax.Array
) -> FusedStatistics:
  """A policy without a teacher; its statistics are `OwnStatistics`.

  Args:
    hidden, unembedding: of the policy.
    token_ids: shape `[B, T]`.
  """
  token_ids = _checked(hidden, token_ids)
  reader = Reader(_read_own, _pull_own)
  return FusedStatistics(reader, hidden, unembedding, None, token_ids)


def token_statistics(
  student_hidden: jax.Array,
  student_unembedding: jax.Array,
  teacher_hidden: jax.Array,
  teacher_unembedding: jax.Array,
  token_ids: jax.Array,
  *,
  divergence: Divergence | Kind = "forward_cross_entropy",
  temperature: float | None = None,
  mask: jax.Array | None = None,
  chunk_size: int | None = None,
  layout: Layout = Layout(),  # noqa: B008 (frozen)
) -> TokenStatistics:
  """Statistics of student and teacher, chunk by chunk.

  Differentiable in the student's arguments, in closed form. Nothing flows to
  the teacher: its distribution is the label.

  Args:
    student_hidden: shape `[B, T, D]`, or `[N, D]` for tokens in a row.
    student_unembedding: shape `[D, V]`.
    teacher_hidden: shape `[B, T, E]` or `[N, E]`.
    teacher_unembedding: shape `[E, V]`.
    token_ids: shape `[B, T]` or `[N]`.
    divergence: the cost, and what it is taken on; or its kind, on the whole
      vocabulary.
    temperature: by which the logits of both are divided in the cost; None: the
      divergence's own, which is 1 for a kind.
    mask: 1 where the teacher counts; elsewhere its hidden states are not read,
      and what compares with it means nothing. None: it counts everywhere.
      Shape `[B, T]` or `[N]`.
    chunk_size: columns of time (or tokens, of `[N, D]`) at once; None chooses
      by memory. Any T works.
    layout: how arrays lie on the devices.

  Returns:
    float32, shape `[B, T]` or `[N]` each.
  """
  divergence = _divergence(divergence, temperature)
  arrays = (student_hidden, teacher_hidden, token_ids)
  if student_hidden.ndim == 2:
    arrays = tuple(x[None] for x in arrays)
    mask = None if mask is None else mask[None]
  student, teacher, ids = arrays
  source = compared(
    student,
    student_unembedding,
    Expert((teacher,), (teacher_unembedding,)),
    ids,
    divergence,
    mask,
  )
  found = source.statistics(chunk_size=chunk_size, layout=layout)
  if student_hidden.ndim == 2:
    found = jax.tree.map(lambda x: x[0], found)
  return found


def token_log_probs(
  hidden: jax.Array,
  unembedding: jax.Array,
  token_ids: jax.Array,
  *,
  chunk_size: int | None = None,
  layout: Layout = Layout(),  # noqa: B008 (frozen)
) -> OwnStatistics:
  """Log-probability of each token, and the entropy where it was chosen.

  Args:
    hidden: shape `[B, T, D]`.
    unembedding: shape `[D, V]`.
    token_ids: shape `[B, T]`.
    chunk_size: columns of time at once; None chooses by memory. Any T works.
    layout: how arrays lie on the devices.

  Returns:
    log-probabilities (NaN for an id outside the vocabulary) and entropies,
    nats, float32, `[B, T]` each.
  """
  return alone(hidden, unembedding, token_ids).statistics(
    chunk_size=chunk_size, layout=layout
  )


def _divergence(
  divergence: Divergence | Kind, temperature: float | None
) -> Divergence:
  if divergence in ("sdpo", "opsd"):
    raise ValueError(
      f"divergence={divergence!r} needs a weight; pass "
      f"Divergence({divergence!r}, weight=...)"
    )
  if isinstance(divergence, str):
    divergence = Divergence(divergence)
  if temperature is None:
    return divergence
  return dataclasses.replace(divergence, temperature=temperature)


def _checked(hidden: jax.Array, token_ids: jax.Array) -> jax.Array:
  """The ids; wide enough to be compared with V."""
  chex.assert_rank([hidden, token_ids], [3, 2])
  chex.assert_type([hidden, token_ids], [float, int])
  return token_ids.astype(jnp.int32)


def _teachers_logits(unembeddings, rows):
  """Ids, and a tile of the teacher's logits, for `compared`."""
  states = rows["teacher"]
  if "told" in rows:
    # What a weight of 0 does not undo is NaN.
    counts = rows["told"].astype(bool)[..., None]
    states = tuple(jnp.where(counts, x, 0) for x in states)
  of_teacher = map(fused_linear.logits, states, unembeddings)
  return functools.reduce(jnp.add, of_teacher), rows["ids"]


def _read_compared(divergence: Divergence, top_k_fn, logits, tile):
  of_teacher, ids = tile
  found, residuals = statistics_vjp.read(
    logits, of_teacher, ids, divergence, top_k_fn
  )
  constants = ("cross_entropies", "teacher_entropies", "teacher_log_probs")
  found |= {name: jax.lax.stop_gradient(found[name]) for name in constants}
  return TokenStatistics(**found), residuals


def _pull_compared(
  divergence: Divergence, logits, tile, residuals, slopes: TokenStatistics
):
  of_teacher, ids = tile
  return statistics_vjp.vjp(
    logits,
    of_teacher,
    ids,
    divergence,
    residuals,
    costs=slopes.costs,
    log_probs=slopes.log_probs,
    entropies=slopes.entropies,
  )


def _read_own(logits, ids):
  found, residuals = statistics_vjp.read_own(logits, ids)
  return OwnStatistics(*found), residuals


def _pull_own(logits, ids, residuals, slopes: OwnStatistics):
  return statistics_vjp.own_vjp(logits, ids, residuals, **slopes._asdict())


def _read_listed(logits, tile, *, kind: ListKind, tail: bool):
  """Reader of `listed`, for autodiff."""
  ids, candidates = tile
  if kind == "samples":
    costs, entropies = _sampled_costs(logits, *candidates)
  else:
    costs, entropies = _listed_costs(logits, *candidates, tail=tail)
  log_softmax = jax.nn.log_softmax(logits, axis=-1)
  return TokenStatistics(
    costs=costs,
    cross_entropies=jax.lax.stop_gradient(costs),
    teacher_entropies=jax.lax.stop_gradient(entropies),
    log_probs=statistics_vjp.pick(log_softmax, ids),
    entropies=divergences.entropy(log_softmax),
    teacher_log_probs=jnp.zeros_like(costs),
  )


def _sampled_costs(
  logits: jax.Array, ids: jax.Array, log_probs: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """−Σ p log π_θ over samples, and the unknown entropy, 0."""
  log_softmax = jax.nn.log_softmax(logits, axis=-1)
  candidates = jnp.take_along_axis(log_softmax, ids, axis=-1)
  costs = divergences.forward_cross_entropy(candidates, log_probs)
  return costs, jnp.zeros_like(costs)


def _listed_costs(
  logits: jax.Array, ids: jax.Array, log_probs: jax.Array, *, tail: bool
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy on the list's support, and the teacher's entropy there."""
  is_listed = log_probs != -jnp.inf
  kept = jnp.where(
    is_listed, jnp.take_along_axis(logits, ids, axis=-1), -jnp.inf
  )
  if tail:
    # The comparison is reduced at once and stands nowhere as [.., C, V].
    vocabulary = jnp.arange(logits.shape[-1]).reshape(
      (1,) * log_probs.ndim + (-1,)
    )
    hits = (ids[..., None] == vocabulary) & is_listed[..., None]
    others = ~jnp.any(hits, axis=-2)
    kept = jnp.concatenate([kept, divergences.log_sum(logits, others)], axis=-1)
    mass = jnp.sum(jnp.exp(log_probs), axis=-1, keepdims=True)
    # A list of the whole vocabulary leaves nothing but what rounding has.
    has_others = jnp.any(others, axis=-1, keepdims=True)
    rest = jnp.log(jnp.where(has_others, jnp.maximum(1 - mass, 0.0), 0.0))
    log_probs = jnp.concatenate([log_probs, rest], axis=-1)
  student = jax.nn.log_softmax(kept, axis=-1)
  teacher = jax.nn.log_softmax(log_probs, axis=-1)
  return (
    divergences.forward_cross_entropy(student, teacher),
    divergences.entropy(teacher),
  )
