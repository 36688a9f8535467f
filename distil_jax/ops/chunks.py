"""Logits a chunk of time at once, never those of all tokens.

Logits of all tokens would be `[B, T, V]`, for student and teacher each. Here
time is cut into chunks; a chunk's logits live only while it is reduced to a
few numbers a token, and are computed again in the backward pass.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Entries of one tile of logits: 64 MiB in float32.
_TILE = 2**24


def logits(hidden: jax.Array, unembedding: jax.Array) -> jax.Array:
  """Product in the hidden states' dtype, accumulated in float32.

  Args:
    hidden: shape `[B, T, D]`.
    unembedding: shape `[D, V]`.

  Returns:
    at least float32. Shape `[B, T, V]`.
  """
  return jnp.einsum(
    "btd,dv->btv",
    hidden,
    unembedding.astype(hidden.dtype),
    preferred_element_type=jnp.promote_types(hidden.dtype, jnp.float32),
  )


def default_size(batch_size: int, length: int, vocab_size: int) -> int:
  """Columns of time whose logits fill a tile; one at least, T at most."""
  columns = _TILE // max(batch_size * vocab_size, 1)
  return min(max(columns, 1), length)


def over_time(
  reduce: Callable[[Any, Any], Any],
  weights: Any,
  arrays: Any,
  *,
  vocab_size: int,
  size: int | None = None,
) -> Any:
  """Applies `reduce(weights, chunk)` to chunks of time and joins the results.

  Batch stays the leading axis of a chunk, so that sequences sharded over
  devices stay where they are.

  Args:
    reduce: maps a chunk of the arrays, `[B, t, ...]`, to results `[B, t, ...]`.
    weights: the same for every chunk; their gradient is summed over them.
    arrays: shape `[B, T, ...]` each.
    vocab_size: V, by which the size is chosen.
    size: columns of time at once; None chooses by memory. Any T works.

  Returns:
    the results, `[B, T, ...]` each.

  Raises:
    ValueError: a size below 1.
  """
  batch_size, length = jax.tree.leaves(arrays)[0].shape[:2]
  if size is None:
    size = default_size(batch_size, length, vocab_size)
  elif size < 1:
    raise ValueError(
      f"chunk_size={size} must be at least 1; None chooses by memory"
    )
  if size >= length:
    return reduce(weights, arrays)
  reduce_chunk = jax.checkpoint(functools.partial(reduce, weights))
  num_chunks = -(-length // size)
  padding = num_chunks * size - length

  def cut(x):
    x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(x.shape[0], num_chunks, size, *x.shape[2:])
    return jnp.swapaxes(x, 0, 1)

  def join(x):
    x = jnp.swapaxes(x, 0, 1)
    x = x.reshape(x.shape[0], num_chunks * size, *x.shape[3:])
    return x[:, :length]

  _, results = jax.lax.scan(
    lambda carry, chunk: (carry, reduce_chunk(chunk)),
    None,
    jax.tree.map(cut, arrays),
  )
  return jax.tree.map(join, results)
