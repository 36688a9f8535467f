"""Looks up and leaves out entries of a vocabulary that devices may share."""

import jax
import jax.numpy as jnp


def pick(values: jax.Array, ids: jax.Array) -> jax.Array:
  """Returns values[..., ids] as a masked sum.

  A gather would bring a vocabulary that is sharded onto every device; a sum
  over it leaves each part where it is.

  Args:
    values: shape `[..., V]`.
    ids: shape `[...]`.

  Returns:
    Shape `[...]`; NaN for an id outside the vocabulary, because the empty sum,
    0, would be a log-probability like any other.
  """
  picked = jnp.sum(jnp.where(is_token(values, ids), values, 0.0), axis=-1)
  return jnp.where(is_in_vocabulary(values, ids), picked, jnp.nan)


def is_token(values: jax.Array, ids: jax.Array) -> jax.Array:
  """Returns True at the entry of each id. Shape `[..., V]`."""
  return _positions(values) == ids[..., None]


def is_in_vocabulary(values: jax.Array, ids: jax.Array) -> jax.Array:
  """Returns True for ids that stand for one of the V entries. `[...]`."""
  return (ids >= 0) & (ids < values.shape[-1])


def only_tokens(logits: jax.Array, vocab_size: int | None) -> jax.Array:
  """Returns logits with −inf where an entry stands for no token.

  Networks pad their vocabulary. A mask leaves the axis as it is cut over
  devices, and a slice to an odd size would not.

  Args:
    logits: shape `[..., V]`.
    vocab_size: the number of tokens; None, or V, means that all entries are.

  Returns:
    Shape `[..., V]`.
  """
  if vocab_size is None or vocab_size >= logits.shape[-1]:
    return logits
  return jnp.where(_positions(logits) < vocab_size, logits, -jnp.inf)


def _positions(values: jax.Array) -> jax.Array:
  return jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
