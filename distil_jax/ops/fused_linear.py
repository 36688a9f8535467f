"""The vocabulary a chunk of time at once, with gradients by hand.

Logits of all tokens would be `[B, T, V]`, for student and teacher each. Here
time is cut into chunks; a chunk's logits are a tile that lives while a few
numbers a token are read off it and while its gradient is made. Products of the
unembedding for each token, of student and teacher together:

  `statistics`, value     2
  its gradient            6    logits again, two for hidden states and weights
  `minimise`, gradient    4    as many as with all logits in memory

`minimise` makes the gradient of a tile as soon as it has the tile. It goes
from the end of time to its beginning: the weight that future credit puts on a
token is known once the costs after it are.

Inside a chunk time comes first, `[t, B, ...]`. Products are those of a whole
tile; what is done entry by entry goes through it in blocks of columns that a
cache can hold, so that two tiles are all that is ever there.
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
  """How statistics are read off a tile, and how they pull on it.

  Attributes:
    read: `(logits [..., V], tile) -> (statistics, residuals)`, trees of
      `[...]` or more.
    pull: `(logits, tile, residuals, cotangents) -> slopes [..., V]` of the
      logits; None where there are none.
    prepare: `(constants, rows) -> tile`: what stands beside a tile of logits,
      from what is the same for every tile and a tree of `[t, B, ...]`.
  """

  read: Callable[[jax.Array, Any], tuple[Any, Any]]
  pull: Callable[[jax.Array, Any, Any, Any], jax.Array] | None = None
  prepare: Callable[[Any, Any], Any] = _rows


def differentiated(read: Callable[[jax.Array, Any], Any]) -> Reader:
  """A reader by autodiff, for statistics whose slopes nobody wrote down."""

  def pull(logits, tile, _, cotangents):
    return jax.vjp(lambda x: read(x, tile), logits)[1](cotangents)[0]

  return Reader(lambda logits, tile: (read(logits, tile), None), pull)


def logits(hidden: jax.Array, unembedding: jax.Array) -> jax.Array:
  """Product in the hidden states' dtype, accumulated in float32.

  Args:
    hidden: shape `[..., D]`.
    unembedding: shape `[D, V]`.

  Returns:
    at least float32. Shape `[..., V]`.
  """
  return _product(hidden, unembedding, hidden.ndim - 1, 0)


def statistics(
  reader: Reader,
  hidden: jax.Array,
  unembedding: jax.Array,
  constants: Any,
  rows: Any,
  *,
  size: int | None = None,
  layout: Layout = Layout(),  # noqa: B008 (frozen)
) -> Any:
  """What a reader finds of each token, differentiable.

  Gradients flow to hidden states and unembedding, and to nothing else.

  Args:
    reader: of a tile.
    hidden: shape `[B, T, D]`.
    unembedding: shape `[D, V]`.
    constants, rows: handed to the reader; rows, a tree of `[B, T, ...]`, are
      cut for it.
    size: columns of time at once, about; None chooses by memory.
      Any T works.
    layout: how arrays lie on the devices.

  Returns:
    the statistics, `[B, T]` each.

  Raises:
    ValueError: a size below 1.
  """
  cut = cut_tiles(hidden, unembedding, size, layout, rows)
  return _statistics(reader, cut, hidden, unembedding, constants, rows)


def fused_loss(
  reader: Reader,
  loss: Callable[[Any, Any, Any], tuple[jax.Array, tuple[Any, Any]]],
  hidden: jax.Array,
  unembedding: jax.Array,
  constants: Any,
  rows: Any,
  loss_rows: Any,
  carry: Any,
  *,
  size: int | None = None,
  layout: Layout = Layout(),  # noqa: B008 (frozen)
) -> tuple[jax.Array, Any]:
  """A sum of token losses, differentiable, its gradient made on the way.

  Chunks come in order from the end of time. What the loss of a token hands on
  to earlier ones travels in the carry, and is a constant. Gradients flow to
  hidden states and unembedding, and to nothing else.

  Args:
    reader: of a tile.
    loss: `(carry, statistics, loss_rows) -> (losses, (carry, reports))`, with
      statistics, rows and reports of a chunk, `[B, t, ...]`, and losses
      `[B, t]` as they count in the sum. Columns after the last of T may be
      added, where every row is 0; they must not change the carry. Arrays that
      are not cut belong into the carry too: a loss that closes over them is
      refused inside `jax.jit` and `jax.checkpoint`.
    hidden: shape `[B, T, D]`.
    unembedding: shape `[D, V]`.
    constants, rows: handed to the reader, as for `statistics`.
    loss_rows: a tree of `[B, T, ...]`, cut and handed to the loss.
    carry: before the last chunk.
    size: columns of time at once, about; None chooses by memory.
      Any T works.
    layout: how arrays lie on the devices.

  Returns:
    the sum, and the reports, `[B, T]` each, through which no gradient flows.

  Raises:
    ValueError: a size below 1.
  """
  cut = cut_tiles(hidden, unembedding, size, layout, (rows, loss_rows))
  found: Any = _minimise(
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
  return _statistics(reader, cut, *arguments), arguments


def _statistics_backward(reader, cut, arguments, cotangents):
  hidden, unembedding, constants, rows = arguments
  weights = unembedding.astype(hidden.dtype)

  def one(gradients, start, chunk):
    states, rows, pulls = chunk
    own, tile = logits(states, weights), reader.prepare(constants, rows)
    _, residuals = _read(reader, cut, own, tile)
    slopes = _pull(reader, cut, own, tile, residuals, pulls)
    return _add(gradients, start, states, weights, slopes, cut.layout), None

  gradients, _ = over_time(
    cut,
    one,
    _no_gradients(cut, hidden, unembedding),
    (hidden, rows, cotangents),
  )
  of_hidden, whole = _finished(cut, gradients, hidden, unembedding)
  return of_hidden, whole, None, None


_statistics.defvjp(_statistics_forward, _statistics_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _minimise(reader, loss, cut, hidden, unembedding, constants, *rest):
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

  state = (_no_value(hidden), carry)
  (value, _), reports = over_time(cut, one, state, (hidden, *rows))
  return value, reports


def _minimise_forward(reader, loss, cut, hidden, unembedding, constants, *rest):
  weights = unembedding.astype(hidden.dtype)
  *rows, carry = rest

  def one(state, start, chunk):
    states, rows, loss_rows = chunk
    value, carry, gradients = state
    own, tile = logits(states, weights), reader.prepare(constants, rows)
    found, residuals = _read(reader, cut, own, tile)
    losses, pull_losses, (carry, reports) = jax.vjp(
      lambda found: loss(carry, found, batch_first(loss_rows)),
      batch_first(found),
      has_aux=True,
    )
    total, pull_total = jax.vjp(
      functools.partial(sum_tiles, cut, start), losses
    )
    (pulls,) = pull_losses(*pull_total(jnp.ones_like(total)))
    slopes = _pull(reader, cut, own, tile, residuals, batch_first(pulls))
    gradients = _add(gradients, start, states, weights, slopes, cut.layout)
    value = value + total.astype(value.dtype)
    return (value, carry, gradients), batch_first(reports)

  state = (
    _no_value(hidden),
    carry,
    _no_gradients(cut, hidden, unembedding),
  )
  (value, _, gradients), reports = over_time(cut, one, state, (hidden, *rows))
  return (value, reports), _finished(cut, gradients, hidden, unembedding)


def _minimise_backward(reader, loss, cut, gradients, cotangents):
  scale = cotangents[0]
  of_hidden, of_unembedding = (x * scale.astype(x.dtype) for x in gradients)
  return of_hidden, of_unembedding, None, None, None, None


_minimise.defvjp(_minimise_forward, _minimise_backward)


def _read(reader: Reader, cut: Tiles, own, tile):
  """Statistics and residuals of a chunk, `[t, B, ...]`."""
  if cut.block == own.shape[0]:
    return reader.read(own, tile)

  def read_block(_, start):
    return None, reader.read(*take_block(cut, start, (own, tile)))

  _, found = jax.lax.scan(read_block, None, starts(cut, own))
  length = own.shape[0]
  return jax.tree.map(lambda x: x.reshape(length, *x.shape[2:]), found)


def _pull(reader: Reader, cut: Tiles, own, tile, residuals, pulls):
  """Slopes of a chunk's logits, written over them block by block."""
  pull = reader.pull
  assert pull is not None, "a reader without slopes"
  if cut.block == own.shape[0]:
    return pull(own, tile, residuals, pulls)

  def pull_block(slopes, start):
    block = take_block(cut, start, (slopes, tile, residuals, pulls))
    pulled = pull(*block).astype(slopes.dtype)
    return jax.lax.dynamic_update_slice_in_dim(slopes, pulled, start, 0), None

  return jax.lax.scan(pull_block, own, starts(cut, own))[0]


def _no_value(hidden) -> jax.Array:
  return jnp.zeros((), jnp.promote_types(hidden.dtype, jnp.float32))


def _no_gradients(cut: Tiles, hidden, unembedding):
  """Of hidden states, `[B, T, D]` with what is added to T, and of weights."""
  length = cut.num_chunks * cut.size
  of_hidden = jnp.zeros_like(
    hidden, shape=(hidden.shape[0], length, hidden.shape[2])
  )
  dtype = jnp.promote_types(hidden.dtype, jnp.float32)
  shape = (cut.layout.num_shards, *unembedding.shape)
  return cut.layout.keep(of_hidden), cut.layout.place(jnp.zeros(shape, dtype))


def _add(gradients, start, states, weights, slopes, layout: Layout):
  """Adds what the slopes of a tile make of hidden states and unembedding."""
  of_hidden, sums = gradients
  slopes = slopes.astype(states.dtype)
  pulled = _product(slopes, weights, 2, 1).astype(of_hidden.dtype)
  of_hidden = jax.lax.dynamic_update_slice_in_dim(
    of_hidden, layout.keep(batch_first(pulled)), start, 1
  )
  return of_hidden, layout.place(_add_outer(sums, states, slopes))


def _add_outer(sums: jax.Array, hidden: jax.Array, slopes: jax.Array):
  """sums + hiddenᵀ · slopes, for each part of the batch.

  A block of rows of the sum at once where it is large: the product then takes
  no more memory than the tile that is no longer needed.

  Args:
    sums: shape `[parts, D, V]`.
    hidden: shape `[t, B, D]`.
    slopes: shape `[t, B, V]`.
  """
  num_parts, width, _ = sums.shape

  def product(hidden):
    states, pulls = (
      x.reshape(x.shape[0], num_parts, x.shape[1] // num_parts, x.shape[2])
      for x in (hidden, slopes)
    )
    return jax.lax.dot_general(
      states,
      pulls,
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
  of_hidden, sums = gradients
  whole = jnp.sum(sums, axis=0) if sums.shape[0] > 1 else sums[0]
  return of_hidden[:, : cut.length], whole.astype(unembedding.dtype)


def _product(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int):
  """Over an axis of each, in the first one's dtype, summed in float32."""
  return jax.lax.dot_general(
    a,
    b.astype(a.dtype),
    (((axis_a,), (axis_b,)), ((), ())),
    preferred_element_type=jnp.promote_types(a.dtype, jnp.float32),
  )
