"""What a loss needs of the vocabulary, without its logits in memory."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from flax import struct

from distil_jax.ops import chunks, divergences
from distil_jax.ops.divergences import Divergence


@struct.dataclass
class TokenStatistics:
  """Numbers of each token, nats. Shape `[B, T]` each.

  Gradients flow through `costs`, `log_probs` and `entropies`; the others are
  numbers to compare with or to carry as credit, and constants.

  Attributes:
    costs: by the divergence.
    cross_entropies: of the teacher's distribution under the student's, on the
      divergence's support and at its temperature.
    teacher_entropies: the teacher's entropy there.
    log_probs: the student's log-probability of the token that was sampled, in
      the whole vocabulary at temperature 1; NaN for an id that is outside it,
      which can be no sample of the student's.
    entropies: the student's entropy, likewise.
    teacher_log_probs: the teacher's log-probability of that token, likewise.
  """

  costs: jax.Array
  cross_entropies: jax.Array
  teacher_entropies: jax.Array
  log_probs: jax.Array
  entropies: jax.Array
  teacher_log_probs: jax.Array


def token_statistics(
  student_hidden: jax.Array,
  student_unembedding: jax.Array,
  teacher_hidden: jax.Array,
  teacher_unembedding: jax.Array,
  token_ids: jax.Array,
  *,
  divergence: Divergence = Divergence(),  # noqa: B008 (frozen)
  mask: jax.Array | None = None,
  chunk_size: int | None = None,
) -> TokenStatistics:
  """Statistics of student and teacher, chunk by chunk.

  Differentiable in the student's arguments. Nothing flows to the teacher: its
  distribution is the label.

  Args:
    student_hidden: shape `[B, T, D]`.
    student_unembedding: shape `[D, V]`.
    teacher_hidden: shape `[B, T, E]`.
    teacher_unembedding: shape `[E, V]`.
    token_ids: shape `[B, T]`.
    divergence: the cost, and what it is taken on.
    mask: 1 where the teacher counts; elsewhere its hidden states are not read,
      and what compares with it means nothing. None: it counts everywhere.
      Shape `[B, T]`.
    chunk_size: columns of time at once; None chooses by memory. Any T works.

  Returns:
    float32, shape `[B, T]` each.
  """
  chex.assert_rank([student_hidden, teacher_hidden, token_ids], [3, 3, 2])
  chex.assert_equal_shape_prefix([student_hidden, teacher_hidden, token_ids], 2)
  teacher_hidden, teacher_unembedding = jax.lax.stop_gradient(
    (teacher_hidden, teacher_unembedding)
  )
  if mask is not None:
    # Before the softmax: its gradient at NaN is NaN, whatever its weight.
    teacher_hidden = jnp.where(mask.astype(bool)[..., None], teacher_hidden, 0)

  def reduce(weights, chunk):
    student, teacher, ids = chunk
    return from_logits(
      chunks.logits(student, weights[0]),
      chunks.logits(teacher, weights[1]),
      ids,
      divergence,
    )

  return chunks.over_time(
    reduce,
    (_master(student_unembedding), teacher_unembedding),
    (student_hidden, teacher_hidden, token_ids),
    vocab_size=student_unembedding.shape[-1],
    size=chunk_size,
  )


def sparse_token_statistics(
  student_hidden: jax.Array,
  student_unembedding: jax.Array,
  candidate_ids: jax.Array,
  candidate_log_probs: jax.Array,
  token_ids: jax.Array,
  *,
  kind: Literal["samples", "top_k"],
  tail: bool = False,
  mask: jax.Array | None = None,
  chunk_size: int | None = None,
) -> TokenStatistics:
  """Statistics where the teacher is a short list of tokens at each state.

    samples   a₁ … a_C ~ π_T, of log-probability −log C each; duplicates are
              allowed. Cost −Σ p_c log π_θ(a_c), in the student's whole
              vocabulary: unbiased for the cross-entropy and its gradient.
    top_k     distinct tokens with the teacher's own log-probabilities. With a
              tail, one bucket on each side for all other tokens; without,
              both sides are renormalised over the list.

  A candidate of log-probability −inf is absent, whatever its id, so that lists
  may differ in length.

  A list does not say everything. `teacher_log_probs` is 0, and so is
  `teacher_entropies` of samples: costs and returns there are cross-entropies.
  The teacher's tail is 1 less the mass of the list, and 0 where rounding has
  taken that mass past 1.

  Args:
    student_hidden: shape `[B, T, D]`.
    student_unembedding: shape `[D, V]`.
    candidate_ids: shape `[B, T, C]`.
    candidate_log_probs: nats; no gradient flows to them. Shape `[B, T, C]`.
    token_ids: the student's own tokens. Shape `[B, T]`.
    kind: what the list is.
    tail: of `top_k`; samples have none.
    mask: 1 where the token counts; elsewhere the lists are not read. None:
      they are read everywhere. Shape `[B, T]`.
    chunk_size: columns of time at once; None chooses by memory. Any T works.

  Returns:
    float32, shape `[B, T]` each. Without a tail, costs are NaN where a list is
    empty.

  Raises:
    ValueError: an unknown kind, or samples with a tail.
  """
  chex.assert_rank([candidate_ids, candidate_log_probs], 3)
  chex.assert_equal_shape([candidate_ids, candidate_log_probs])
  chex.assert_rank([student_hidden, token_ids], [3, 2])
  chex.assert_equal_shape_prefix([student_hidden, candidate_ids, token_ids], 2)
  if kind not in ("samples", "top_k"):
    raise ValueError(f"kind={kind!r} is neither 'samples' nor 'top_k'")
  if kind == "samples" and tail:
    raise ValueError("kind='samples' has no tail; set tail=False")
  candidate_log_probs = jax.lax.stop_gradient(
    candidate_log_probs.astype(jnp.float32)
  )
  if mask is not None:
    counts = mask.astype(bool)[..., None]
    candidate_ids = jnp.where(counts, candidate_ids, 0)
    candidate_log_probs = jnp.where(counts, candidate_log_probs, 0.0)

  def reduce(weights, chunk):
    hidden, *candidates, ids = chunk
    logits = chunks.logits(hidden, weights)
    if kind == "samples":
      costs, entropies = _sampled_costs(logits, *candidates)
    else:
      costs, entropies = _listed_costs(logits, *candidates, tail=tail)
    log_softmax = jax.nn.log_softmax(logits, axis=-1)
    return TokenStatistics(
      costs=costs,
      cross_entropies=jax.lax.stop_gradient(costs),
      teacher_entropies=entropies,
      log_probs=_pick(log_softmax, ids),
      entropies=divergences.entropy(log_softmax),
      teacher_log_probs=jnp.zeros_like(costs),
    )

  return chunks.over_time(
    reduce,
    _master(student_unembedding),
    (student_hidden, candidate_ids, candidate_log_probs, token_ids),
    vocab_size=student_unembedding.shape[-1],
    size=chunk_size,
  )


def token_log_probs(
  hidden: jax.Array,
  unembedding: jax.Array,
  token_ids: jax.Array,
  *,
  chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Log-probability of each token, and the entropy where it was chosen.

  Args:
    hidden: shape `[B, T, D]`.
    unembedding: shape `[D, V]`.
    token_ids: shape `[B, T]`.
    chunk_size: columns of time at once; None chooses by memory. Any T works.

  Returns:
    log-probabilities (NaN for an id outside the vocabulary) and entropies,
    nats, float32, `[B, T]` each.
  """
  chex.assert_rank([hidden, token_ids], [3, 2])
  chex.assert_equal_shape_prefix([hidden, token_ids], 2)

  def reduce(weights, chunk):
    log_softmax = jax.nn.log_softmax(chunks.logits(chunk[0], weights), axis=-1)
    return _pick(log_softmax, chunk[1]), divergences.entropy(log_softmax)

  return chunks.over_time(
    reduce,
    _master(unembedding),
    (hidden, token_ids),
    vocab_size=unembedding.shape[-1],
    size=chunk_size,
  )


def from_logits(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  token_ids: jax.Array,
  divergence: Divergence = Divergence(),  # noqa: B008 (frozen)
) -> TokenStatistics:
  """The same statistics from logits that fit into memory.

  Args:
    student_logits: float32 or wider. Shape `[..., V]`.
    teacher_logits: no gradient flows to them. Shape `[..., V]`.
    token_ids: shape `[...]`.
    divergence: the cost, and what it is taken on.

  Returns:
    shape `[...]` each.
  """
  teacher_logits = jax.lax.stop_gradient(teacher_logits)
  student, teacher = divergences.log_probs_on_support(
    student_logits, teacher_logits, divergence
  )
  log_softmax = jax.nn.log_softmax(student_logits, axis=-1)
  return TokenStatistics(
    costs=divergences.cost(student, teacher, divergence),
    # Carried as credit, which is a constant weight of the score function.
    cross_entropies=jax.lax.stop_gradient(
      divergences.forward_cross_entropy(student, teacher)
    ),
    teacher_entropies=divergences.entropy(teacher),
    log_probs=_pick(log_softmax, token_ids),
    entropies=divergences.entropy(log_softmax),
    teacher_log_probs=_pick(jax.nn.log_softmax(teacher_logits), token_ids),
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


def _master(unembedding: jax.Array) -> jax.Array:
  """At least float32, in which its gradient is summed over the chunks."""
  dtype = jnp.promote_types(unembedding.dtype, jnp.float32)
  return unembedding.astype(dtype)


def _pick(values: jax.Array, ids: jax.Array) -> jax.Array:
  """values[..., ids] as a masked sum: V may be sharded without a gather.

  NaN for an id outside the vocabulary: the empty sum would be a probability
  of 1.
  """
  vocabulary = jax.lax.broadcasted_iota(
    jnp.int32, values.shape, values.ndim - 1
  )
  hits = vocabulary == ids[..., None]
  picked = jnp.sum(jnp.where(hits, values, 0.0), axis=-1)
  is_word = (ids >= 0) & (ids < values.shape[-1])
  return jnp.where(is_word, picked, jnp.nan)
