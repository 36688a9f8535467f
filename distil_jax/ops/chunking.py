"""How a product with the unembedding is cut into tiles."""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

# Entries of one tile of logits on one device, 256 MiB in float32; half as much
# again where time would otherwise be cut into halves.
TILE = 2**26


# Entries of it that are worked on at once: 8 MiB.
_BLOCK = 2**21


# Rows of a tile, as a part of D, where that is more: every tile adds to the
# gradient of the unembedding, whose traffic few rows would not be worth.
_ROWS = 4


@dataclasses.dataclass(frozen=True)
class Layout:
  """How arrays lie on the devices.

  Attributes:
    num_shards: into so many equal parts the batch axis of logits is cut.
    num_vocab_shards: and the vocabulary.
    place: pins partial sums, `[num_shards, D, V]`, each to where its part of
      the batch is.
    gather: pins a chunk of anything, `[t, B, ...]`, to where its logits are.
    keep: pins hidden states and their gradient, `[B, t, D]`, where they are
      while another chunk's turn it is.
  """

  num_shards: int = 1
  num_vocab_shards: int = 1
  place: Callable[[jax.Array], jax.Array] = lambda sums: sums
  gather: Callable[[jax.Array], jax.Array] = lambda chunk: chunk
  keep: Callable[[jax.Array], jax.Array] = lambda states: states


def default_size(
  batch_size: int, length: int, width: int, vocab_size: int
) -> int:
  """Columns of time whose logits fill a tile; one at least, T at most.

  Args:
    batch_size: of one device.
    length: T.
    width: D.
    vocab_size: V.
  """
  rows = max(TILE // max(vocab_size, 1), width // _ROWS)
  return min(max(rows // max(batch_size, 1), 1), length)


class Tiles(NamedTuple):
  """How time is cut.

  Attributes:
    size: columns of a chunk.
    block: columns of it that are worked on at once; divides the size.
    num_chunks: of which the last may hold columns that are not there.
    length: T.
    layout: how arrays lie on the devices.
  """

  size: int
  block: int
  num_chunks: int
  length: int
  layout: Layout


def cut_tiles(
  hidden, unembedding, size: int | None, layout: Layout, rows
) -> Tiles:
  # A slice that runs over the end would be moved, not refused.
  chex.assert_equal_shape_prefix([hidden, *jax.tree.leaves(rows)], 2)
  batch_size, length, width = hidden.shape
  if batch_size % layout.num_shards:
    # Nothing is gained from parts that are not equal.
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
  columns = max(_BLOCK // max(math.prod(local), 1), 1)
  num_chunks = ceil_div(length, wanted)
  if size is None:
    # Half a tile more in one product is better than two half-empty tiles.
    num_chunks = round(length / max(wanted, 1))
  # As equal as they can be, so that few columns are added that are not there.
  size = ceil_div(length, num_chunks)
  num_blocks = ceil_div(size, columns)
  block = ceil_div(size, num_blocks)
  size = num_blocks * block
  return Tiles(size, block, max(ceil_div(length, size), 1), length, layout)


def ceil_div(a: int, b: int) -> int:
  """Of a by b, upwards; where there is nothing to divide by, by 1."""
  return -(-a // max(b, 1))


def starts(cut: Tiles, own) -> jax.Array:
  return cut.block * jnp.arange(own.shape[0] // cut.block)


def take_block(cut: Tiles, start, tree):
  """A block of `[t, ...]`. XLA would copy tiles that are reshaped to blocks."""
  return jax.tree.map(
    lambda x: jax.lax.dynamic_slice_in_dim(x, start, cut.block), tree
  )


def batch_first(tree):
  """`[t, B, ...]` to `[B, t, ...]`, and back."""
  return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def over_time(cut: Tiles, one, carry, arrays):
  """Scans `one(carry, start, chunk)` over chunks, the last of them first.

  Arrays and results are `[B, T, ...]`; their chunks, in and out, are
  `[t, B, ...]`.
  """
  padding = cut.num_chunks * cut.size - cut.length
  if padding:
    arrays = jax.tree.map(
      lambda x: jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2)),
      arrays,
    )

  def body(carry, start):
    chunk = jax.tree.map(
      lambda x: jax.lax.dynamic_slice_in_dim(x, start, cut.size, 1), arrays
    )
    return one(carry, start, gathered(chunk))

  def gathered(chunk):
    return jax.tree.map(cut.layout.gather, batch_first(chunk))

  if cut.num_chunks == 1:
    carry, found = one(carry, 0, gathered(arrays))
  else:
    starts = cut.size * jnp.arange(cut.num_chunks)
    carry, found = jax.lax.scan(body, carry, starts, reverse=True)
    length = cut.num_chunks * cut.size
    found = jax.tree.map(lambda x: x.reshape(length, *x.shape[2:]), found)
  return carry, jax.tree.map(lambda x: x[:, : cut.length], batch_first(found))


def sum_tiles(cut: Tiles, start, losses: jax.Array) -> jax.Array:
  """Of losses `[B, t]`, without columns that were added after the last of T."""
  columns = start + jnp.arange(cut.size)
  return jnp.sum(jnp.where((columns < cut.length)[None, :], losses, 0))


def block_size(width: int, limit: int) -> int:
  """The largest divisor within the limit; all where that would be small."""
  for count in range(1, 9):
    if width % count == 0 and width // count <= limit:
      return width // count
  return width
