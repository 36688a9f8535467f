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
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Entries of one tile of logits on one device: 192 MiB in float32.
_TILE = 3 * 2**24
# Rows of a tile, as a part of D, where that is more: every tile adds to the
# gradient of the unembedding, whose traffic few rows would not be worth.
_ROWS = 4


class Reader(NamedTuple):
  """How statistics are read off a tile, and how they pull on it.

  Attributes:
    read: `(logits [R, V], constants, rows) -> (statistics, residuals)`:
      statistics and rows are trees of `[R, ...]`; constants are the same for
      every tile.
    pull: `(residuals, cotangents) -> slopes [R, V]` of the logits; None where
      there are none.
  """

  read: Callable[[jax.Array, Any, Any], tuple[Any, Any]]
  pull: Callable[[Any, Any], jax.Array] | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
  """How arrays lie on the devices.

  Attributes:
    num_shards: into so many equal parts the batch axis is cut.
    num_vocab_shards: and the vocabulary.
    place: pins partial sums, `[num_shards, D, V]`, each to where its part of
      the batch is.
  """

  num_shards: int = 1
  num_vocab_shards: int = 1
  place: Callable[[jax.Array], jax.Array] = lambda sums: sums


def differentiated(read: Callable[[jax.Array, Any, Any], Any]) -> Reader:
  """A reader by autodiff, for statistics whose slopes nobody wrote down."""

  def both(logits, constants, rows):
    return jax.vjp(lambda x: read(x, constants, rows), logits)

  return Reader(both, lambda pull, cotangents: pull(cotangents)[0])


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
    constants: handed to the reader.
    rows: a tree of `[B, T, ...]`, cut and handed to the reader.
    size: columns of time at once; None chooses by memory. Any T works.
    layout: how arrays lie on the devices.

  Returns:
    the statistics, `[B, T]` each.

  Raises:
    ValueError: a size below 1.
  """
  cut = _cut(hidden, unembedding, size, layout)
  return _statistics(reader, cut, hidden, unembedding, constants, rows)


def minimise(
  reader: Reader,
  loss: Callable[[Any, Any, Any, Any], tuple[jax.Array, tuple[Any, Any]]],
  hidden: jax.Array,
  unembedding: jax.Array,
  constants: Any,
  rows: Any,
  carry: Any,
  *,
  size: int | None = None,
  layout: Layout = Layout(),
) -> tuple[jax.Array, Any]:
  """A sum of token losses, differentiable, its gradient made on the way.

  Chunks come in order from the end of time. What the loss of a token hands on
  to earlier ones travels in the carry, and is a constant.

  Args:
    reader: of a tile.
    loss: `(carry, statistics, constants, rows) -> (losses, (carry, reports))`,
      with statistics, rows and reports of a chunk, `[B, t, ...]`, and losses
      `[B, t]` as they count in the sum. Columns after the last of T may be
      added, where every row is 0; they must not change the carry.
    hidden: shape `[B, T, D]`.
    unembedding: shape `[D, V]`.
    constants: handed to reader and loss.
    rows: a tree of `[B, T, ...]`, cut and handed to both.
    carry: before the last chunk.
    size: columns of time at once; None chooses by memory. Any T works.
    layout: how arrays lie on the devices.

  Returns:
    the sum, and the reports, `[B, T]` each, through which no gradient flows.

  Raises:
    ValueError: a size below 1.
  """
  cut = _cut(hidden, unembedding, size, layout)
  value, reports = _minimise(
    reader, loss, cut, hidden, unembedding, constants, rows, carry
  )
  return value, jax.lax.stop_gradient(reports)


class _Cut(NamedTuple):
  """A chunk's number of columns, how many there are, and where they lie."""

  size: int
  num_chunks: int
  length: int
  layout: Layout


def _cut(hidden, unembedding, size: int | None, layout: Layout) -> _Cut:
  batch_size, length, width = hidden.shape
  if batch_size % layout.num_shards:
    layout = Layout()  # nothing to be gained from parts that are not equal
  if size is None:
    size = default_size(
      batch_size // layout.num_shards,
      length,
      width,
      unembedding.shape[-1] // layout.num_vocab_shards,
    )
  elif size < 1:
    raise ValueError(
      f"chunk_size={size} must be at least 1; None chooses by memory"
    )
  num_chunks = max(-(-length // max(size, 1)), 1)
  # As equal as they can be, so that little is added to the last.
  return _Cut(-(-length // num_chunks), num_chunks, length, layout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _statistics(reader, cut, hidden, unembedding, constants, rows):
  unembedding = unembedding.astype(hidden.dtype)

  def one(carry, _, chunk):
    states, chunk_rows = chunk
    found, _ = _read(reader, states, unembedding, constants, chunk_rows)
    return carry, found

  return _over_time(cut, one, None, (hidden, rows))[1]


def _statistics_forward(reader, cut, *arguments):
  return _statistics(reader, cut, *arguments), arguments


def _statistics_backward(reader, cut, arguments, cotangents):
  hidden, unembedding, constants, rows = arguments
  weights = unembedding.astype(hidden.dtype)

  def one(gradients, start, chunk):
    states, chunk_rows, pulls = chunk
    _, residuals = _read(reader, states, weights, constants, chunk_rows)
    slopes = reader.pull(residuals, _flat(pulls))
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
def _minimise(
  reader, loss, cut, hidden, unembedding, constants, rows, carry
) -> tuple[jax.Array, Any]:
  weights = unembedding.astype(hidden.dtype)

  def one(state, _, chunk):
    states, chunk_rows = chunk
    value, carry = state
    found, _ = _read(reader, states, weights, constants, chunk_rows)
    losses, (carry, reports) = loss(carry, found, constants, chunk_rows)
    return (value + jnp.sum(losses), carry), reports

  state = (_no_value(hidden), carry)
  (value, _), reports = _over_time(cut, one, state, (hidden, rows))
  return value, reports


def _minimise_forward(
  reader, loss, cut, hidden, unembedding, constants, rows, carry
):
  weights = unembedding.astype(hidden.dtype)

  def one(state, start, chunk):
    states, chunk_rows = chunk
    value, carry, gradients = state
    found, residuals = _read(reader, states, weights, constants, chunk_rows)
    losses, pull_losses, (carry, reports) = jax.vjp(
      lambda found: loss(carry, found, constants, chunk_rows),
      found,
      has_aux=True,
    )
    (pulls,) = pull_losses(jnp.ones_like(losses))
    slopes = reader.pull(residuals, _flat(pulls))
    gradients = _add(gradients, start, states, weights, slopes, cut.layout)
    return (value + jnp.sum(losses), carry, gradients), reports

  state = (
    _no_value(hidden),
    carry,
    _no_gradients(cut, hidden, unembedding),
  )
  (value, _, gradients), reports = _over_time(cut, one, state, (hidden, rows))
  return (value, reports), _finished(cut, gradients, hidden, unembedding)


def _minimise_backward(reader, loss, cut, gradients, cotangents):
  scale = cotangents[0]
  of_hidden, of_unembedding = (x * scale.astype(x.dtype) for x in gradients)
  return of_hidden, of_unembedding, None, None, None


_minimise.defvjp(_minimise_forward, _minimise_backward)


def _read(reader: Reader, states, weights, constants, rows):
  """Statistics `[B, t]` and residuals of a chunk."""
  found, residuals = reader.read(
    logits(_flat(states), weights), constants, _flat(rows)
  )
  shape = states.shape[:2]
  return jax.tree.map(
    lambda x: x.reshape(*shape, *x.shape[1:]), found
  ), residuals


def _flat(tree):
  """`[B, t, ...]` to the rows of a tile, `[R, ...]`."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _over_time(cut: _Cut, one, carry, arrays):
  """Scans `one(carry, start, chunk)` over chunks, the last of them first."""
  if cut.num_chunks == 1:
    return one(carry, 0, arrays)
  padding = cut.num_chunks * cut.size - cut.length
  if padding:
    arrays = jax.tree.map(
      lambda x: jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2)),
      arrays,
    )

  def body(carry, index):
    start = index * cut.size
    chunk = jax.tree.map(
      lambda x: jax.lax.dynamic_slice_in_dim(x, start, cut.size, 1), arrays
    )
    return one(carry, start, chunk)

  carry, found = jax.lax.scan(
    body, carry, jnp.arange(cut.num_chunks), reverse=True
  )

  def join(x):
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, : cut.length]

  return carry, jax.tree.map(join, found)


def _no_value(hidden) -> jax.Array:
  return jnp.zeros((), jnp.promote_types(hidden.dtype, jnp.float32))


def _no_gradients(cut: _Cut, hidden, unembedding):
  """Of hidden states, chunks added, and partial sums of the unembedding's."""
  length = cut.num_chunks * cut.size
  of_hidden = jnp.zeros_like(
    hidden, shape=(hidden.shape[0], length, hidden.shape[2])
  )
  dtype = jnp.promote_types(hidden.dtype, jnp.float32)
  shape = (cut.layout.num_shards, *unembedding.shape)
  return of_hidden, cut.layout.place(jnp.zeros(shape, dtype))


def _add(gradients, start, states, weights, slopes, layout: Layout):
  """Adds what the slopes of a tile make of hidden states and unembedding."""
  of_hidden, sums = gradients
  slopes = slopes.astype(states.dtype)
  pulled = _product(slopes, weights, 1, 1).astype(of_hidden.dtype)
  of_hidden = jax.lax.dynamic_update_slice_in_dim(
    of_hidden, pulled.reshape(states.shape), start, 1
  )
  return of_hidden, layout.place(_add_outer(sums, _flat(states), slopes))


def _add_outer(sums: jax.Array, hidden: jax.Array, slopes: jax.Array):
  """sums + hiddenᵀ · slopes, for each part of the batch.

  A block of rows of the sum at once where it is large: the product then takes
  no more memory than the tile that is no longer needed.

  Args:
    sums: shape `[parts, D, V]`.
    hidden: shape `[R, D]`.
    slopes: shape `[R, V]`.
  """
  num_parts, width, _ = sums.shape
  hidden = hidden.reshape(num_parts, -1, width)
  slopes = slopes.reshape(num_parts, hidden.shape[1], -1)

  def product(hidden):
    return jax.lax.dot_general(
      hidden,
      slopes,
      (((1,), (1,)), ((0,), (0,))),
      preferred_element_type=sums.dtype,
    )

  block = _block_size(width, 2 * hidden.shape[1])
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
