"""What a loss needs of the full vocabulary, without its logits in memory.

Logits of all tokens would be `[B, T, V]`, for student and teacher each. Here
time is cut into chunks; a chunk's logits live only while it is reduced to a
few numbers a token, and are computed again in the backward pass.
"""

import functools

import chex
import jax
import jax.numpy as jnp
from flax import struct

# Entries of one tile of logits: 64 MiB in float32.
_TILE = 2**24


@struct.dataclass
class TokenStatistics:
  """Numbers of each token, nats. Shape `[B, T]` each.

  Attributes:
    costs: cross-entropy of the teacher's distribution under the student's.
    log_probs: the student's log-probability of the token that was sampled.
    entropies: the student's entropy.
    teacher_entropies: the teacher's entropy.
  """

  costs: jax.Array
  log_probs: jax.Array
  entropies: jax.Array
  teacher_entropies: jax.Array


def token_statistics(
  student_hidden: jax.Array,
  student_unembedding: jax.Array,
  teacher_hidden: jax.Array,
  teacher_unembedding: jax.Array,
  token_ids: jax.Array,
  *,
  chunk_size: int | None = None,
) -> TokenStatistics:
  """Exact full-vocabulary statistics, chunk by chunk.

  Differentiable in the student's arguments. Nothing flows to the teacher: its
  distribution is the label.

  Args:
    student_hidden: shape `[B, T, D]`.
    student_unembedding: shape `[D, V]`.
    teacher_hidden: shape `[B, T, E]`.
    teacher_unembedding: shape `[E, V]`.
    token_ids: shape `[B, T]`.
    chunk_size: columns of time at once; None chooses by memory. Any T works.

  Returns:
    float32, shape `[B, T]` each.
  """
  chex.assert_rank([student_hidden, teacher_hidden, token_ids], [3, 3, 2])
  chex.assert_equal_shape_prefix([student_hidden, teacher_hidden, token_ids], 2)
  teacher_hidden, teacher_unembedding = jax.lax.stop_gradient(
    (teacher_hidden, teacher_unembedding)
  )

  def reduce(weights, chunk):
    student, teacher, ids = chunk
    logits = _logits(student, weights[0])
    labels = jax.nn.softmax(_logits(teacher, weights[1]), axis=-1)
    return from_logits(logits, jax.lax.stop_gradient(labels), ids)

  return _by_chunks(
    reduce,
    (_master(student_unembedding), teacher_unembedding),
    (student_hidden, teacher_hidden, token_ids),
    chunk_size or _default_chunk(token_ids, student_unembedding),
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
    log-probabilities and entropies, nats, float32, `[B, T]` each.
  """
  chex.assert_rank([hidden, token_ids], [3, 2])
  chex.assert_equal_shape_prefix([hidden, token_ids], 2)

  def reduce(weights, chunk):
    log_softmax = jax.nn.log_softmax(_logits(chunk[0], weights), axis=-1)
    return _pick(log_softmax, chunk[1]), _entropy(log_softmax)

  return _by_chunks(
    reduce,
    _master(unembedding),
    (hidden, token_ids),
    chunk_size or _default_chunk(token_ids, unembedding),
  )


def from_logits(
  logits: jax.Array, teacher_probs: jax.Array, token_ids: jax.Array
) -> TokenStatistics:
  """The same statistics from logits that fit into memory.

  Args:
    logits: the student's, float32 or wider. Shape `[..., V]`.
    teacher_probs: the labels. Shape `[..., V]`.
    token_ids: shape `[...]`.

  Returns:
    shape `[...]` each.
  """
  log_softmax = jax.nn.log_softmax(logits, axis=-1)
  return TokenStatistics(
    costs=-jnp.sum(_times(teacher_probs, log_softmax), axis=-1),
    log_probs=_pick(log_softmax, token_ids),
    entropies=_entropy(log_softmax),
    teacher_entropies=jnp.sum(jax.scipy.special.entr(teacher_probs), axis=-1),
  )


def _logits(hidden: jax.Array, unembedding: jax.Array) -> jax.Array:
  """Product in the hidden states' dtype, accumulated in float32."""
  return jnp.einsum(
    "btd,dv->btv",
    hidden,
    unembedding.astype(hidden.dtype),
    preferred_element_type=jnp.promote_types(hidden.dtype, jnp.float32),
  )


def _master(unembedding: jax.Array) -> jax.Array:
  """At least float32, in which its gradient is summed over the chunks."""
  dtype = jnp.promote_types(unembedding.dtype, jnp.float32)
  return unembedding.astype(dtype)


def _pick(values: jax.Array, ids: jax.Array) -> jax.Array:
  """values[..., ids] as a masked sum: V may be sharded without a gather."""
  vocabulary = jax.lax.broadcasted_iota(
    jnp.int32, values.shape, values.ndim - 1
  )
  return jnp.sum(jnp.where(vocabulary == ids[..., None], values, 0.0), axis=-1)


def _times(probs: jax.Array, log_probs: jax.Array) -> jax.Array:
  """p · log q with 0 · −inf = 0: an excluded token costs nothing.

  The choice is made before the product, so that 0 · −inf stands nowhere in the
  gradient either, and p = NaN stays NaN.
  """
  return probs * jnp.where(probs == 0, 0.0, log_probs)


def _entropy(log_softmax: jax.Array) -> jax.Array:
  return -jnp.sum(_times(jnp.exp(log_softmax), log_softmax), axis=-1)


def _default_chunk(token_ids: jax.Array, unembedding: jax.Array) -> int:
  batch_size, length = token_ids.shape
  columns = _TILE // (batch_size * unembedding.shape[-1])
  return min(max(columns, 1), length)


def _by_chunks(reduce, weights, arrays, chunk_size: int):
  """Applies `reduce(weights, chunk)` to chunks of time and joins the results.

  Batch stays the leading axis of a chunk, so that sequences sharded over
  devices stay where they are.
  """
  length = arrays[-1].shape[1]
  if chunk_size >= length:
    return reduce(weights, arrays)
  reduce = jax.checkpoint(functools.partial(reduce, weights))
  num_chunks = -(-length // chunk_size)
  padding = num_chunks * chunk_size - length

  def cut(x):
    x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(x.shape[0], num_chunks, chunk_size, *x.shape[2:])
    return jnp.swapaxes(x, 0, 1)

  def join(x):
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(x.shape[0], num_chunks * chunk_size)[:, :length]

  _, results = jax.lax.scan(
    lambda carry, chunk: (carry, reduce(chunk)), None, jax.tree.map(cut, arrays)
  )
  return jax.tree.map(join, results)
