"""Cuts a product with the unembedding into tiles that fit into memory."""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

# Entries of one tile of logits on one device, 256 MiB in float32; half as much
# again if time would otherwise be cut into two half-empty tiles.
TILE = 2**26
# Entries of a tile that are worked on at once, 8 MiB: what a cache can hold.
_BLOCK = 2**21
# A tile has at least D / 4 rows. Every tile reads and writes the gradient of
# the unembedding, `[D, V]`, and fewer rows would not be worth that traffic.
_ROWS = 4


@dataclasses.dataclass(frozen=True)
class Layout:
  """Says how arrays are sharded over the devices.

  Attributes:
    num_shards: equal parts into which the batch axis of logits is cut.
    num_vocab_shards: equal parts into which the vocabulary is cut.
    shard_sums: constrains partial sums, `[num_shards, D, V]`, each to the
      devices that hold its part of the batch.
    shard_chunk: constrains a chunk of anything, `[t, B, ...]`, to the devices
      of its logits.
    shard_states: constrains hidden states and their gradient, `[B, t, D]`, to
      the sharding they have while other chunks are worked on.
  """

  num_shards: int = 1
  num_vocab_shards: int = 1
  shard_sums: Callable[[jax.Array], jax.Array] = lambda sums: sums
  shard_chunk: Callable[[jax.Array], jax.Array] = lambda chunk: chunk
  shard_states: Callable[[jax.Array], jax.Array] = lambda states: states


def default_size(
  batch_size: int, length: int, width: int, vocab_size: int
) -> int:
  """Returns how many columns of time fill a tile; at least 1, at most T.

  Args:
    batch_size: sequences on one device.
    length: T.
    width: D.
    vocab_size: entries of the vocabulary on one device.
  """
  rows = max(TILE // max(vocab_size, 1), width // _ROWS)
  return min(max(rows // max(batch_size, 1), 1), length)


class Tiles(NamedTuple):
  """Says how time is cut into chunks, and chunks into blocks.

  Attributes:
    size: columns of time in a chunk.
    block: columns that are worked on at once; divides the size.
    num_chunks: number of chunks; the last may be padded with columns after T.
    length: T.
    layout: how arrays are sharded.
  """

  size: int
  block: int
  num_chunks: int
  length: int
  layout: Layout


def cut_tiles(
  hidden, unembedding, size: int | None, layout: Layout, rows
) -> Tiles:
  """Chooses tiles for hidden states `[B, T, D]`.

  Args:
    hidden: shape `[B, T, D]`.
    unembedding: shape `[D, V]`.
    size: columns of a chunk, about; None chooses by memory.
    layout: how arrays are sharded.
    rows: a tree of `[B, T, ...]` that will be cut in the same way.

  Raises:
    ValueError: a size below 1.
  """
  # A slice that runs over the end would be moved, not refused.
  chex.assert_equal_shape_prefix([hidden, *jax.tree.leaves(rows)], 2)
  batch_size, length, width = hidden.shape
  if batch_size % layout.num_shards:
    # Parts that are not equal would be padded by XLA: one sum for all devices
    # is cheaper then.
    layout = Layout(num_vocab_shards=layout.num_vocab_shards)
  local = (
    batch_size // layout.num_shards,
    unembedding.shape[-1] // layout.num_vocab_shards,
  )
  if size is not None and not (
    isinstance(size, numbers.Integral) and size >= 1
  ):
    raise ValueError(
      f"chunk_size={size} must be at least 1, a whole number; None chooses by "
      "memory"
    )
  wanted = size or default_size(local[0], length, width, local[1])
  # One column at least, even if a column of this batch is larger than a block.
  columns = max(_BLOCK // max(math.prod(local), 1), 1)
  num_chunks = ceil_div(length, wanted)
  if size is None:
    # Half a tile more in one product is better than two half-empty tiles.
    num_chunks = round(length / max(wanted, 1))
  # As equal as they can be, so that few columns are added that are not there.
  size = ceil_div(length, num_chunks)
  # Blocks of a chunk are equal, because one compiled body serves all of them.
  # The chunk grows by a few columns if the blocks do not divide it.
  num_blocks = ceil_div(size, columns)
  block = ceil_div(size, num_blocks)
  size = num_blocks * block
  return Tiles(size, block, max(ceil_div(length, size), 1), length, layout)


def ceil_div(a: int, b: int) -> int:
  """Returns a / b rounded up; by 1 if b is 0, as for an empty batch."""
  return -(-a // max(b, 1))


def starts(cut: Tiles, own) -> jax.Array:
  """Returns the first column of each block of a chunk `[t, ...]`."""
  return cut.block * jnp.arange(own.shape[0] // cut.block)


def take_block(cut: Tiles, start, tree):
  """Returns a block of each `[t, ...]`.

  It is sliced because XLA would copy a tile that is reshaped to blocks.
  """
  return jax.tree.map(
    lambda x: jax.lax.dynamic_slice_in_dim(x, start, cut.block), tree
  )


def batch_first(tree):
  """Swaps the first two axes: `[t, B, ...]` to `[B, t, ...]`, and back."""
  return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def over_time(cut: Tiles, one, carry, arrays):
  """Scans `one(carry, start, chunk)` over chunks, from the last to the first.

  Args:
    cut: how time is cut.
    one: `(carry, start, chunk) -> (carry, results)` with chunks and results
      `[t, B, ...]`.
    carry: before the last chunk.
    arrays: a tree of `[B, T, ...]`.

  Returns:
    The last carry, and the results `[B, T, ...]`.
  """
  # `dynamic_slice` moves a slice back that would run over the end, so the last
  # chunk would read some columns twice if time were not padded.
  padding = cut.num_chunks * cut.size - cut.length
  if padding:
    arrays = jax.tree.map(
      lambda x: jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2)),
      arrays,
    )

  def body(carry, start):
    # Cut first and transposed then: all of time is never laid out a second
    # time.
    chunk = jax.tree.map(
      lambda x: jax.lax.dynamic_slice_in_dim(x, start, cut.size, 1), arrays
    )
    return one(carry, start, gathered(chunk))

  def gathered(chunk):
    return jax.tree.map(cut.layout.shard_chunk, batch_first(chunk))

  if cut.num_chunks == 1:
    carry, found = one(carry, 0, gathered(arrays))
  else:
    starts = cut.size * jnp.arange(cut.num_chunks)
    carry, found = jax.lax.scan(body, carry, starts, reverse=True)
    length = cut.num_chunks * cut.size
    # The scan ran backwards but stacks its results in the order of the chunks,
    # so flattening the first two axes gives time.
    found = jax.tree.map(lambda x: x.reshape(length, *x.shape[2:]), found)
  return carry, jax.tree.map(lambda x: x[:, : cut.length], batch_first(found))


def sum_tiles(cut: Tiles, start, losses: jax.Array) -> jax.Array:
  """Returns the sum of losses `[B, t]` without the columns padded after T."""
  # Chosen, not multiplied: a loss at padding may be NaN, and 0 · NaN is NaN.
  columns = start + jnp.arange(cut.size)
  return jnp.sum(jnp.where((columns < cut.length)[None, :], losses, 0))


def block_size(width: int, limit: int) -> int:
  """Returns the largest of width / 1 ... width / 8 that is within the limit.

  If there is none it returns the width: smaller blocks would be slow.
  """
  for count in range(1, 9):
    if width % count == 0 and width // count <= limit:
      return width // count
  return width
