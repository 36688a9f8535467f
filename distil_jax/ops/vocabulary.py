"""Looks up one entry of a vocabulary axis that may be cut over devices."""

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
  vocabulary = jax.lax.broadcasted_iota(
    jnp.int32, values.shape, values.ndim - 1
  )
  return vocabulary == ids[..., None]


def is_in_vocabulary(values: jax.Array, ids: jax.Array) -> jax.Array:
  """Returns True for ids that stand for one of the V entries. `[...]`."""
  return (ids >= 0) & (ids < values.shape[-1])
