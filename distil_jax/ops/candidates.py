"""A short list of tokens in place of a distribution over the vocabulary.

As in `unembedding`, time is cut into chunks: the logits of all tokens are
never in memory at once.
"""

import chex
import jax
import jax.numpy as jnp

from distil_jax.ops import sampling

# Entries of one tile of logits: 64 MiB in float32.
_TILE = 2**24


def samples(
  hidden: jax.Array,
  unembedding: jax.Array,
  uniforms: jax.Array,
  *,
  chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """C independent draws from each distribution; a token may come twice.

  Args:
    hidden: shape `[B, T, D]`.
    unembedding: shape `[D, V]`.
    uniforms: in [0, 1), one for each draw. Shape `[B, T, C]`.
    chunk_size: columns of time at once; None chooses by memory.

  Returns:
    ids, and −log C for each: together they are the empirical distribution.
    Shape `[B, T, C]` each.
  """
  chex.assert_equal_shape_prefix([hidden, uniforms], 2)

  def draw(column):
    logits = _logits(column[0], unembedding)
    return jax.vmap(sampling.sample, (None, -1), -1)(logits, column[1])

  ids = _over_time(draw, (hidden, uniforms), unembedding, chunk_size)
  share = -jnp.log(jnp.float32(uniforms.shape[-1]))
  return ids, jnp.full(ids.shape, share)


def most_probable(
  hidden: jax.Array,
  unembedding: jax.Array,
  *,
  size: int,
  chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The C most probable tokens of each distribution.

  Args:
    hidden: shape `[B, T, D]`.
    unembedding: shape `[D, V]`.
    size: C, at most V.
    chunk_size: columns of time at once; None chooses by memory.

  Returns:
    ids, and their log-probabilities in the whole vocabulary, nats. Shape
    `[B, T, C]` each.

  Raises:
    ValueError: there are not so many tokens.
  """
  vocab_size = unembedding.shape[-1]
  if size > vocab_size:
    raise ValueError(
      f"a list of {size} tokens was asked for, but the vocabulary has "
      f"{vocab_size}; lower teacher.top_k"
    )

  def choose(column):
    log_softmax = jax.nn.log_softmax(_logits(column, unembedding), axis=-1)
    log_probs, ids = jax.lax.top_k(log_softmax, size)
    return ids, log_probs

  return _over_time(choose, hidden, unembedding, chunk_size)


def _logits(hidden: jax.Array, unembedding: jax.Array) -> jax.Array:
  """Product in the hidden states' dtype, accumulated in float32."""
  return jnp.einsum(
    "bd,dv->bv",
    hidden,
    unembedding.astype(hidden.dtype),
    preferred_element_type=jnp.promote_types(hidden.dtype, jnp.float32),
  )


def _over_time(function, arrays, unembedding, chunk_size: int | None):
  """Applies a function of columns `[B, ...]` to arrays `[B, T, ...]`."""
  columns = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), arrays)
  num_sequences = jax.tree.leaves(arrays)[0].shape[0]
  if chunk_size is None:
    chunk_size = max(_TILE // (num_sequences * unembedding.shape[-1]), 1)
  made = jax.lax.map(function, columns, batch_size=chunk_size)
  return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), made)
