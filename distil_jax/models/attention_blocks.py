"""Masks and blocks of attention over whole sequences, for plain XLA."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# The largest block of rows of the logits that is held at once.
LARGEST_BLOCK = 512


def scale_of(scale: float | None, head_size: int) -> float:
  """Returns the factor of the logits; None means H^-0.5."""
  return head_size**-0.5 if scale is None else scale


def is_readable(
  first, count: int, length: int, window: int | None = None
) -> jax.Array:
  """Returns the causal mask of `count` queries from column `first` on.

  Args:
    first: Column of the first query.
    count: Number of queries.
    length: Number of keys.
    window: Number of tokens that each reads; None means all.

  Returns:
    True where the query may read the key. Shape `[count, length]`.
  """
  columns = jnp.arange(count)[:, None] + first
  keys = jnp.arange(length)[None]
  if window is None:
    return columns >= keys
  return (columns >= keys) & (columns - keys < window)


def over_blocks(block: Callable[..., jax.Array], query: jax.Array) -> jax.Array:
  """Returns `block(start, queries)` of all queries, one block after another.

  Args:
    block: Attention of some queries, given the column of the first.
    query: Shape `[B, S, N, H]`.
  """
  batch_size, length = query.shape[:2]
  if length <= LARGEST_BLOCK:
    return block(0, query)
  num_blocks = -(-length // LARGEST_BLOCK)
  added = num_blocks * LARGEST_BLOCK - length
  blocks = jnp.pad(query, ((0, 0), (0, added), (0, 0), (0, 0)))
  blocks = blocks.reshape(
    batch_size, num_blocks, LARGEST_BLOCK, *query.shape[2:]
  )
  starts = jnp.arange(num_blocks) * LARGEST_BLOCK
  # The backward pass recomputes the logits of a block, so that those of all
  # blocks are not kept for it.
  attended = jax.lax.map(
    jax.checkpoint(lambda inputs: block(*inputs)),
    (starts, jnp.moveaxis(blocks, 1, 0)),
  )
  attended = jnp.moveaxis(attended, 0, 1)
  return attended.reshape(batch_size, -1, *query.shape[2:])[:, :length]
