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

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

# Entries of one tile of logits on one device, 256 MiB in float32; half as much
# again where time would otherwise be cut into halves.
_TILE = 2**26
# Entries of it that are worked on at once: 8 MiB.
_BLOCK = 2**21
# Rows of a tile, as a part of D, where that is more: every tile adds to the
# gradient of the unembedding, whose traffic few rows would not be worth.
_ROWS = 4


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
  rows = max(_TILE // max(vocab_size, 1), width // _ROWS)
  return min(max(rows // max(batch_size, 1), 1), length)


def statistics(
  reader: Reader,
  hidden: jax.Array,
  unembedding: jax.Array,
  constants: Any,
  rows: Any,
  *,
  size: int | None = None,
  layout: Layout = Layout(),
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
  cut = _cut(hidden, unembedding, size, layout, rows)
  return _statistics(reader, cut, hidden, unembedding, constants, rows)


def minimise(
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
  layout: Layout = Layout(),
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
  cut = _cut(hidden, unembedding, size, layout, (rows, loss_rows))
  found: Any = _minimise(
    reader, loss, cut, hidden, unembedding, constants, rows, loss_rows, carry
  )
  value, reports = found
  return value, jax.lax.stop_gradient(reports)


class _Cut(NamedTuple):
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


def _cut(hidden, unembedding, size: int | None, layout: Layout, rows) -> _Cut:
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
  num_chunks = _ceil_div(length, wanted)
  if size is None:
    # Half a tile more in one product is better than two half-empty tiles.
    num_chunks = round(length / max(wanted, 1))
  # As equal as they can be, so that few columns are added that are not there.
  size = _ceil_div(length, num_chunks)
  num_blocks = _ceil_div(size, columns)
  block = _ceil_div(size, num_blocks)
  size = num_blocks * block
  return _Cut(size, block, max(_ceil_div(length, size), 1), length, layout)


def _ceil_div(a: int, b: int) -> int:
  """Of a by b, upwards; where there is nothing to divide by, by 1."""
  return -(-a // max(b, 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _statistics(reader, cut, hidden, unembedding, constants, rows):
  weights = unembedding.astype(hidden.dtype)

  def one(carry, _, chunk):
    states, rows = chunk
    tile = reader.prepare(constants, rows)
    found, _ = _read(reader, cut, logits(states, weights), tile)
    return carry, found

  return _over_time(cut, one, None, (hidden, rows))[1]


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

  gradients, _ = _over_time(
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
    losses, (carry, reports) = loss(carry, *_batch_first((found, loss_rows)))
    value = value + _total(cut, start, losses).astype(value.dtype)
    return (value, carry), _batch_first(reports)

  state = (_no_value(hidden), carry)
  (value, _), reports = _over_time(cut, one, state, (hidden, *rows))
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
      lambda found: loss(carry, found, _batch_first(loss_rows)),
      _batch_first(found),
      has_aux=True,
    )
    total, pull_total = jax.vjp(functools.partial(_total, cut, start), losses)
    (pulls,) = pull_losses(*pull_total(jnp.ones_like(total)))
    slopes = _pull(reader, cut, own, tile, residuals, _batch_first(pulls))
    gradients = _add(gradients, start, states, weights, slopes, cut.layout)
    value = value + total.astype(value.dtype)
    return (value, carry, gradients), _batch_first(reports)

  state = (
    _no_value(hidden),
    carry,
    _no_gradients(cut, hidden, unembedding),
  )
  (value, _, gradients), reports = _over_time(cut, one, state, (hidden, *rows))
  return (value, reports), _finished(cut, gradients, hidden, unembedding)


def _minimise_backward(reader, loss, cut, gradients, cotangents):
  scale = cotangents[0]
  of_hidden, of_unembedding = (x * scale.astype(x.dtype) for x in gradients)
  return of_hidden, of_unembedding, None, None, None, None


_minimise.defvjp(_minimise_forward, _minimise_backward)


def _read(reader: Reader, cut: _Cut, own, tile):
  """Statistics and residuals of a chunk, `[t, B, ...]`."""
  if cut.block == own.shape[0]:
    return reader.read(own, tile)

  def read_block(_, start):
    return None, reader.read(*_block(cut, start, (own, tile)))

  _, found = jax.lax.scan(read_block, None, _starts(cut, own))
  length = own.shape[0]
  return jax.tree.map(lambda x: x.reshape(length, *x.shape[2:]), found)


def _pull(reader: Reader, cut: _Cut, own, tile, residuals, pulls):
  """Slopes of a chunk's logits, written over them block by block."""
  pull = reader.pull
  assert pull is not None, "a reader without slopes"
  if cut.block == own.shape[0]:
    return pull(own, tile, residuals, pulls)

  def pull_block(slopes, start):
    block = _block(cut, start, (slopes, tile, residuals, pulls))
    pulled = pull(*block).astype(slopes.dtype)
    return jax.lax.dynamic_update_slice_in_dim(slopes, pulled, start, 0), None

  return jax.lax.scan(pull_block, own, _starts(cut, own))[0]


def _starts(cut: _Cut, own) -> jax.Array:
  return cut.block * jnp.arange(own.shape[0] // cut.block)


def _block(cut: _Cut, start, tree):
  """A block of `[t, ...]`. XLA would copy tiles that are reshaped to blocks."""
  return jax.tree.map(
    lambda x: jax.lax.dynamic_slice_in_dim(x, start, cut.block), tree
  )


def _batch_first(tree):
  """`[t, B, ...]` to `[B, t, ...]`, and back."""
  return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def _over_time(cut: _Cut, one, carry, arrays):
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
    return jax.tree.map(cut.layout.gather, _batch_first(chunk))

  if cut.num_chunks == 1:
    carry, found = one(carry, 0, gathered(arrays))
  else:
    starts = cut.size * jnp.arange(cut.num_chunks)
    carry, found = jax.lax.scan(body, carry, starts, reverse=True)
    length = cut.num_chunks * cut.size
    found = jax.tree.map(lambda x: x.reshape(length, *x.shape[2:]), found)
  return carry, jax.tree.map(lambda x: x[:, : cut.length], _batch_first(found))


def _total(cut: _Cut, start, losses: jax.Array) -> jax.Array:
  """Of losses `[B, t]`, without columns that were added after the last of T."""
  columns = start + jnp.arange(cut.size)
  return jnp.sum(jnp.where((columns < cut.length)[None, :], losses, 0))


def _no_value(hidden) -> jax.Array:
  return jnp.zeros((), jnp.promote_types(hidden.dtype, jnp.float32))


def _no_gradients(cut: _Cut, hidden, unembedding):
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
    of_hidden, layout.keep(_batch_first(pulled)), start, 1
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
  block = _block_size(width, 2 * rows)
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


def _block_size(width: int, limit: int) -> int:
  """The largest divisor within the limit; all where that would be small."""
  for count in range(1, 9):
    if width % count == 0 and width // count <= limit:
      return width // count
  return width


def _finished(cut: _Cut, gradients, hidden, unembedding):
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
