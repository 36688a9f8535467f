"""Fuses the product with the unembedding and a loss, one chunk of time at once.

The logits of all tokens would be `[B, T, V]`, for student and teacher each.
Here time is cut into chunks. A chunk's logits are a tile that lives only while
a few numbers a token are read from it and while its gradient is made. Products
with an unembedding for each token, of student and teacher together:

  `statistics`, value       2
  its gradient              6  logits again, and the products for the gradients
                               of hidden states and weights
  `fused_loss` and gradient 4  as many as with all logits in memory

`fused_loss` makes the gradient of a tile as soon as it has the tile. It goes
from the end of time to its beginning, because the weight that future credit
puts on a token is known once the costs after it are.

Inside a chunk time comes first, `[t, B, ...]`. A product is that of a whole
tile. What is done entry by entry goes through the tile in blocks of columns
that a cache can hold, so that there are never more than two tiles.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distil_jax.ops.chunking import (
  Layout,
  Tiles,
  batch_first,
  block_size,
  cut_tiles,
  over_time,
  starts,
  sum_tiles,
  take_block,
)


def _rows(constants: Any, rows: Any) -> Any:
  return rows


class Reader(NamedTuple):
  """Reads statistics from a tile, and computes their vector-Jacobian product.

  Attributes:
    read: `(logits [..., V], tile) -> (statistics, residuals)`, trees of
      `[...]` or more.
    vjp: `(logits, tile, residuals, cotangents) -> gradient [..., V]` of the
      logits; None if the statistics are constants.
    prepare: `(constants, rows) -> tile`: makes what is read beside a tile of
      logits, from arrays that are the same for every tile and a tree of
      `[t, B, ...]`.
  """

  read: Callable[[jax.Array, Any], tuple[Any, Any]]
  vjp: Callable[[jax.Array, Any, Any, Any], jax.Array] | None = None
  prepare: Callable[[Any, Any], Any] = _rows


def reader_by_autodiff(read: Callable[[jax.Array, Any], Any]) -> Reader:
  """Returns a reader that leaves its vjp to autodiff.

  `read` is `(logits, tile) -> statistics`. This is for statistics whose
  gradient is not worth writing by hand.
  """

  def vjp(logits, tile, _, cotangents):
    return jax.vjp(lambda x: read(x, tile), logits)[1](cotangents)[0]

  return Reader(lambda logits, tile: (read(logits, tile), None), vjp)


def logits(hidden: jax.Array, unembedding: jax.Array) -> jax.Array:
  """Returns hidden · unembedding, in their dtype, accumulated in float32.

  Args:
    hidden: shape `[..., D]`.
    unembedding: shape `[D, V]`.

  Returns:
    At least float32. Shape `[..., V]`.
  """
  return _product(hidden, unembedding, hidden.ndim - 1, 0)


class FusedStatistics(NamedTuple):
  """Hidden states, and how statistics are read from their logits.

  Gradients flow to hidden states and unembedding, and to nothing else.

  Attributes:
    reader: reads a tile of logits.
    hidden: shape `[B, T, D]`.
    unembedding: shape `[D, V]`.
    constants: handed to the reader with every tile.
    rows: a tree of `[B, T, ...]`, cut and handed to the reader.
    chunk_size: columns of time at once, about; None chooses by memory. Any T
      works.
    layout: how arrays are sharded.
    loads: what the pass that made the hidden states says of its experts.
  """

  reader: Reader
  hidden: jax.Array
  unembedding: jax.Array
  constants: Any = None
  rows: Any = None
  chunk_size: int | None = None
  layout: Layout = Layout()
  loads: Any = None

  def tiled(
    self, chunk_size: int | None = None, layout: Layout | None = None
  ) -> "FusedStatistics":
    """Returns the same with another size of chunks, and another layout."""
    return self._replace(
      chunk_size=chunk_size, layout=self.layout if layout is None else layout
    )

  def statistics(self) -> Any:
    """Returns what the reader finds of each token, differentiable.

    Returns:
      `TokenStatistics` or `OwnStatistics`, `[B, T]` each.

    Raises:
      ValueError: a chunk size below 1.
    """
    reader, hidden, unembedding, constants, rows, size, layout, _ = self
    cut = cut_tiles(hidden, unembedding, size, layout, rows)
    return _statistics(reader, cut, hidden, unembedding, constants, rows)

  def fused_loss(
    self,
    loss: Callable[[Any, Any, Any], tuple[jax.Array, tuple[Any, Any]]],
    loss_rows: Any,
    carry: Any = None,
  ) -> tuple[jax.Array, Any]:
    """Returns a sum of token losses, its gradient made in the forward pass.

    Chunks come in order from the end of time. What the loss of a token hands
    on to earlier ones travels in the carry, and is a constant.

    Args:
      loss: `(carry, statistics, loss_rows) -> (losses, (carry, reports))`,
        with statistics, rows and reports of a chunk, `[B, t, ...]`, and losses
        `[B, t]` as they count in the sum. Columns padded after T may be added,
        where every row is 0; they must not change the carry. Arrays that are
        not cut belong into the carry too: a loss that closes over them is
        refused inside `jax.jit` and `jax.checkpoint`.
      loss_rows: a tree of `[B, T, ...]`, cut and handed to the loss.
      carry: before the last chunk.

    Returns:
      The sum, and the reports, `[B, T]` each, through which no gradient flows.

    Raises:
      ValueError: a chunk size below 1.
    """
    reader, hidden, unembedding, constants, rows, size, layout, _ = self
    cut = cut_tiles(hidden, unembedding, size, layout, (rows, loss_rows))
    found: Any = _fused_loss(
      reader, loss, cut, hidden, unembedding, constants, rows, loss_rows, carry
    )
    value, reports = found
    return value, jax.lax.stop_gradient(reports)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _statistics(reader, cut, hidden, unembedding, constants, rows):
  weights = unembedding.astype(hidden.dtype)

  def one(carry, _, chunk):
    states, rows = chunk
    tile = reader.prepare(constants, rows)
    found, _ = _read(reader, cut, logits(states, weights), tile)
    return carry, found

  return over_time(cut, one, None, (hidden, rows))[1]


def _statistics_forward(reader, cut, *arguments):
  # Only the inputs are kept: tiles that are kept would be all the logits.
  return _statistics(reader, cut, *arguments), arguments


def _statistics_backward(reader, cut, arguments, cotangents):
  hidden, unembedding, constants, rows = arguments
  weights = unembedding.astype(hidden.dtype)

  def one(gradients, start, chunk):
    states, rows, cotangents = chunk
    own, tile = logits(states, weights), reader.prepare(constants, rows)
    _, residuals = _read(reader, cut, own, tile)
    gradient = _vjp(reader, cut, own, tile, residuals, cotangents)
    return _add(gradients, start, states, weights, gradient, cut.layout), None

  gradients, _ = over_time(
    cut,
    one,
    _zero_gradients(cut, hidden, unembedding),
    (hidden, rows, cotangents),
  )
  hidden_gradient, whole = _finished(cut, gradients, hidden, unembedding)
  return hidden_gradient, whole, None, None


_statistics.defvjp(_statistics_forward, _statistics_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _fused_loss(reader, loss, cut, hidden, unembedding, constants, *rest):
  weights = unembedding.astype(hidden.dtype)
  *rows, carry = rest

  def one(state, start, chunk):
    states, rows, loss_rows = chunk
    value, carry = state
    tile = reader.prepare(constants, rows)
    found, _ = _read(reader, cut, logits(states, weights), tile)
    losses, (carry, reports) = loss(carry, *batch_first((found, loss_rows)))
    value = value + sum_tiles(cut, start, losses).astype(value.dtype)
    return (value, carry), batch_first(reports)

  state = (_zero_value(hidden), carry)
  (value, _), reports = over_time(cut, one, state, (hidden, *rows))
  return value, reports


def _fused_loss_forward(
  reader, loss, cut, hidden, unembedding, constants, *rest
):
  weights = unembedding.astype(hidden.dtype)
  *rows, carry = rest

  def one(state, start, chunk):
    states, rows, loss_rows = chunk
    value, carry, gradients = state
    own, tile = logits(states, weights), reader.prepare(constants, rows)
    found, residuals = _read(reader, cut, own, tile)
    # The tile lives for this chunk only, so its gradient is made here.
    losses, losses_vjp, (carry, reports) = jax.vjp(
      lambda found: loss(carry, found, batch_first(loss_rows)),
      batch_first(found),
      has_aux=True,
    )
    total, total_vjp = jax.vjp(functools.partial(sum_tiles, cut, start), losses)
    (cotangents,) = losses_vjp(*total_vjp(jnp.ones_like(total)))
    gradient = _vjp(reader, cut, own, tile, residuals, batch_first(cotangents))
    gradients = _add(gradients, start, states, weights, gradient, cut.layout)
    value = value + total.astype(value.dtype)
    return (value, carry, gradients), batch_first(reports)

  state = (
    _zero_value(hidden),
    carry,
    _zero_gradients(cut, hidden, unembedding),
  )
  (value, _, gradients), reports = over_time(cut, one, state, (hidden, *rows))
  return (value, reports), _finished(cut, gradients, hidden, unembedding)


def _fused_loss_backward(reader, loss, cut, gradients, cotangents):
  # The value is one number, so the gradients need scaling and nothing else.
  scale = cotangents[0]
  hidden_gradient, unembedding_gradient = (
    x * scale.astype(x.dtype) for x in gradients
  )
  return hidden_gradient, unembedding_gradient, None, None, None, None


_fused_loss.defvjp(_fused_loss_forward, _fused_loss_backward)


def _read(reader: Reader, cut: Tiles, own, tile):
  """Returns statistics and residuals of a chunk, `[t, B, ...]`."""
  if cut.block == own.shape[0]:
    return reader.read(own, tile)

  def read_block(_, start):
    return None, reader.read(*take_block(cut, start, (own, tile)))

  _, found = jax.lax.scan(read_block, None, starts(cut, own))
  # Blocks are stacked in the order of time, so flattening puts it together.
  length = own.shape[0]
  return jax.tree.map(lambda x: x.reshape(length, *x.shape[2:]), found)


def _vjp(reader: Reader, cut: Tiles, own, tile, residuals, cotangents):
  """Returns the gradient of a chunk's logits.

  Block by block it is written over the logits, so that no second tile lives.
  """
  vjp = reader.vjp
  assert vjp is not None, "the reader has no vjp: its statistics are constants"
  if cut.block == own.shape[0]:
    return vjp(own, tile, residuals, cotangents)

  def vjp_block(gradient, start):
    block = take_block(cut, start, (gradient, tile, residuals, cotangents))
    part = vjp(*block).astype(gradient.dtype)
    return jax.lax.dynamic_update_slice_in_dim(gradient, part, start, 0), None

  return jax.lax.scan(vjp_block, own, starts(cut, own))[0]


def _zero_value(hidden) -> jax.Array:
  """Returns the sum of losses before the first chunk."""
  return jnp.zeros((), jnp.promote_types(hidden.dtype, jnp.float32))


def _zero_gradients(cut: Tiles, hidden, unembedding):
  """Returns zeros for hidden states, T padded to whole chunks, and weights.

  The weights' are at least float32, and one sum for each part of the batch, so
  that devices need not exchange them before the last chunk.
  """
  length = cut.num_chunks * cut.size
  hidden_gradient = jnp.zeros_like(
    hidden, shape=(hidden.shape[0], length, hidden.shape[2])
  )
  shape = (cut.layout.num_shards, *unembedding.shape)
  return cut.layout.shard_states(hidden_gradient), cut.layout.shard_sums(
    jnp.zeros(shape, _zero_value(hidden).dtype)
  )


def _add(gradients, start, states, weights, gradient, layout: Layout):
  """Adds a tile's part of the gradients of hidden states and unembedding."""
  hidden_gradient, sums = gradients
  # Matrix units are fast in the states' dtype; what is summed is float32.
  gradient = gradient.astype(states.dtype)
  part = _product(gradient, weights, 2, 1).astype(hidden_gradient.dtype)
  hidden_gradient = jax.lax.dynamic_update_slice_in_dim(
    hidden_gradient, layout.shard_states(batch_first(part)), start, 1
  )
  return hidden_gradient, layout.shard_sums(_add_outer(sums, states, gradient))


def _add_outer(sums: jax.Array, hidden: jax.Array, gradient: jax.Array):
  """Returns sums + hiddenᵀ · gradient for each part of the batch.

  A large sum is updated a block of rows at once: the product then takes no
  more memory than the tile that is no longer needed.

  Args:
    sums: shape `[parts, D, V]`.
    hidden: shape `[t, B, D]`.
    gradient: shape `[t, B, V]`.
  """
  num_parts, width, _ = sums.shape

  def product(hidden):
    states, gradients = (
      x.reshape(x.shape[0], num_parts, x.shape[1] // num_parts, x.shape[2])
      for x in (hidden, gradient)
    )
    return jax.lax.dot_general(
      states,
      gradients,
      (((0, 2), (0, 2)), ((1,), (1,))),
      preferred_element_type=sums.dtype,
    )

  rows = hidden.shape[0] * hidden.shape[1] // num_parts
  block = block_size(width, 2 * rows)
  if block == width:
    return sums + product(hidden)

  def add(index, sums):
    start = index * block
    rows = jax.lax.dynamic_slice_in_dim(sums, start, block, 1)
    part = jax.lax.dynamic_slice_in_dim(hidden, start, block, 2)
    return jax.lax.dynamic_update_slice_in_dim(
      sums, rows + product(part), start, 1
    )

  return jax.lax.fori_loop(0, width // block, add, sums)


def _finished(cut: Tiles, gradients, hidden, unembedding):
  """Returns the gradients without padding, in the dtypes of their arrays."""
  # XLA would fold tied weights' transposition into a product its CPUs lack.
  hidden_gradient, sums = jax.lax.optimization_barrier(gradients)
  whole = jnp.sum(sums, axis=0) if sums.shape[0] > 1 else sums[0]
  return hidden_gradient[:, : cut.length], whole.astype(unembedding.dtype)


def _product(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int):
  """Contracts an axis of each, in a's dtype, accumulated in float32."""
  return jax.lax.dot_general(
    a,
    b.astype(a.dtype),
    (((axis_a,), (axis_b,)), ((), ())),
    preferred_element_type=jnp.promote_types(a.dtype, jnp.float32),
  )
