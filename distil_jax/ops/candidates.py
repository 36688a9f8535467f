"""A short list of tokens in place of a distribution over the vocabulary.

As in `unembedding`, the logits of all tokens are never in memory at once.
"""

import chex
import jax
import jax.numpy as jnp

from distil_jax.ops import chunks, sampling


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

  def draw(weights, chunk):
    logits = chunks.logits(chunk[0], weights)
    return jax.vmap(sampling.sample, (None, -1), -1)(logits, chunk[1])

  ids = chunks.over_time(
    draw,
    unembedding,
    (hidden, uniforms),
    vocab_size=unembedding.shape[-1],
    size=chunk_size,
  )
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
    size: C, at least 1 and at most V: a list of all tokens.
    chunk_size: columns of time at once; None chooses by memory.

  Returns:
    ids, and their log-probabilities in the whole vocabulary, nats. Shape
    `[B, T, C]` each.

  Raises:
    ValueError: a size that is not above 0, or more than there are tokens.
  """
  vocab_size = unembedding.shape[-1]
  if size < 1:
    raise ValueError(f"a list of {size} tokens says nothing; ask for 1 or more")
  if size > vocab_size:
    raise ValueError(
      f"a list of {size} tokens was asked for, but the vocabulary has "
      f"{vocab_size}; lower teacher.top_k"
    )

  def choose(weights, chunk):
    log_softmax = jax.nn.log_softmax(chunks.logits(chunk, weights), axis=-1)
    log_probs, ids = jax.lax.top_k(log_softmax, size)
    return ids, log_probs

  return chunks.over_time(
    choose, unembedding, hidden, vocab_size=vocab_size, size=chunk_size
  )
