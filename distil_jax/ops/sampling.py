"""From logits to a token."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import struct

# Vocabulary is looked at in blocks of this many tokens; in smaller ones where
# those, unlike these, need no copy of the logits to fill up the last.
_BLOCK = 256
_SMALLER = (128, 64)


@struct.dataclass
class SamplingArrays:
  """How rows choose their token.

  Arrays that broadcast to the rows, `[...]`: other values need no other
  program. What they may be is for the caller to check.

  Attributes:
    temperature: logits are divided by it; 0 takes the most probable token, of
      equal ones the first.
    top_k: keep the k largest; 0, or V and more, keeps all. int32.
    top_p: mass to keep, in (0, 1]; 1 keeps all.
    min_p: keep what is at least this part as probable as the most probable
      token, in [0, 1]; 0 keeps all.
  """

  temperature: jax.Array | float = 1.0
  top_k: jax.Array | int = 0
  top_p: jax.Array | float = 1.0
  min_p: jax.Array | float = 0.0


def choose(
  logits: jax.Array,
  uniforms: jax.Array,
  choice: SamplingArrays,
  *,
  num_vocab_shards: int = 1,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Draws a token of each row, as the row wants it.

  Temperature comes first, then top-k, then top-p among what top-k kept, then
  min-p. Tokens as probable as the last one kept are kept too, so the result
  does not depend on their order; the most probable token always stays.

  No row is sorted. What truncation keeps is what reaches some threshold, which
  is found by bisection, with one look at the vocabulary a bit; where no row
  truncates, none is taken. Top-k is exact. Top-p is as exact
  as a float32 sum over the vocabulary: where the mass of a set is `top_p`
  within about 1e-6, it or the next may be kept; top_p = 1 loses nothing.

  Args:
    logits: −inf excludes a token; a row needs one finite entry. `[..., V]`.
    uniforms: in [0, 1). Shape `[...]`.
    choice: by row.
    num_vocab_shards: into so many equal parts the vocabulary is cut on the
      devices. The logits then stay where they are.

  Returns:
    token ids, int32; their log-probabilities in the policy itself, before
    temperature and truncation, nats; and those in the distribution that they
    were drawn from, which is one token at temperature 0. Shape `[...]` each.
  """
  rows = logits.shape[:-1]
  chex.assert_shape(uniforms, rows)
  blocks, to_id = _in_blocks(logits, num_vocab_shards)
  peaks = jnp.max(blocks, axis=-1)
  top = jnp.max(peaks, axis=-1)
  temperature = jnp.broadcast_to(choice.temperature, rows)
  # Its inverse must be finite.
  is_greedy = temperature < jnp.finfo(jnp.float32).tiny
  temperature = jnp.where(is_greedy, 1.0, temperature).astype(jnp.float32)

  def greedy():
    block = jnp.argmax(peaks, axis=-1)
    return block, jnp.argmax(_take(blocks, block), axis=-1)

  def only_greedy():
    ones = jnp.ones_like(top)
    return *greedy(), jnp.sum(_weights(blocks, top), (-2, -1)), ones

  def any_drawn():
    floor = _floor(blocks, peaks, top, temperature, is_greedy, choice)
    is_plain = (floor == -jnp.inf) & (temperature == 1)

    def plain():
      totals = jnp.sum(_weights(blocks, top), axis=-1)
      return totals, jnp.sum(totals, axis=-1)

    def changed():
      weights = _weights(blocks, top, temperature, floor)
      mass = jnp.sum(jnp.sum(_weights(blocks, top), axis=-1), axis=-1)
      return jnp.sum(weights, axis=-1), mass

    totals, mass = jax.lax.cond(jnp.all(is_plain), plain, changed)
    drawn = _draw(
      blocks,
      totals,
      lambda block: _weights(block, top, temperature, floor),
      uniforms,
    )

    def mixed():
      pairs = zip(greedy(), drawn, strict=True)
      return tuple(jnp.where(is_greedy, *pair) for pair in pairs)

    block, token = jax.lax.cond(jnp.any(is_greedy), mixed, lambda: drawn)
    # To the last bit the same where nothing is changed.
    drawn_mass = jnp.where(is_plain, mass, jnp.sum(totals, axis=-1))
    return block, token, mass, drawn_mass

  block, token, mass, drawn_mass = jax.lax.cond(
    jnp.all(is_greedy), only_greedy, any_drawn
  )
  chosen = jnp.take_along_axis(_take(blocks, block), token[..., None], axis=-1)
  below = chosen[..., 0] - top
  log_probs = below - jnp.log(mass)
  drawn_log_probs = below / temperature - jnp.log(drawn_mass)
  return (
    to_id(block, token),
    log_probs,
    jnp.where(is_greedy, 0.0, drawn_log_probs),
  )


def sample(logits: jax.Array, uniforms: jax.Array) -> jax.Array:
  """Draws a token by inverting the cumulative distribution.

  One uniform number a row and two short searches (which block of the
  vocabulary, which token within it) in place of one Gumbel number for every
  vocabulary entry.

  Args:
    logits: −inf excludes a token; a row needs one finite entry. `[..., V]`.
    uniforms: in [0, 1). Shape `[...]`.

  Returns:
    token ids, int32. Shape `[...]`.
  """
  chex.assert_shape(uniforms, logits.shape[:-1])
  blocks, to_id = _in_blocks(logits)
  top = jnp.max(blocks, axis=(-2, -1))
  totals = jnp.sum(_weights(blocks, top), axis=-1)
  return to_id(*_draw(blocks, totals, lambda x: _weights(x, top), uniforms))


def _in_blocks(logits: jax.Array, num_parts: int = 1):
  """The vocabulary in blocks, and where a place in them is in it.

  No block is in two parts: what is cut so stays on its device.

  Returns:
    float32, −inf after the end of a part, shape `[..., blocks, tokens]`, and
    `(block, token) -> id`.
  """
  vocab_size = logits.shape[-1]
  if vocab_size % num_parts:
    num_parts = 1  # not cut
  length = vocab_size // num_parts
  size = next((b for b in (_BLOCK, *_SMALLER) if length % b == 0), _BLOCK)
  rows = logits.shape[:-1]
  parts = logits.astype(jnp.float32).reshape(*rows, num_parts, length)
  padding = [(0, 0)] * (parts.ndim - 1) + [(0, -length % size)]
  parts = jnp.pad(parts, padding, constant_values=-jnp.inf)
  of_part = parts.shape[-1] // size

  def to_id(block, token):
    within = block % of_part * size + token
    # Of NaN nothing is to be had, but a place in the padding is no token.
    within = jnp.minimum(within, length - 1)
    return (block // of_part * length + within).astype(jnp.int32)

  return parts.reshape(*rows, -1, size), to_id


def _take(blocks: jax.Array, block: jax.Array) -> jax.Array:
  found = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)
  return found[..., 0, :]


def _weights(logits, top, temperature=None, floor=None) -> jax.Array:
  """exp((z − top) / temperature), in [0, 1]; 0 below the floor.

  Args:
    logits: shape `[..., *]` with any number of axes after those of the rows.
    top, temperature, floor: shape `[...]`.
  """

  def each(x):
    return x.reshape(*x.shape, *[1] * (logits.ndim - x.ndim))

  below = logits - each(top)
  if temperature is not None:
    below = below / each(temperature)
  weights = jnp.exp(below)
  if floor is not None:
    weights = jnp.where(logits >= each(floor), weights, 0.0)
  return weights


def _floor(blocks, peaks, top, temperature, is_greedy, choice: SamplingArrays):
  """The smallest logit that truncation keeps; −inf where it keeps all.

  Returns:
    shape `[...]`.
  """
  rows = top.shape
  vocab_size = blocks.shape[-2] * blocks.shape[-1]
  top_k, top_p, min_p = (
    jnp.broadcast_to(jnp.where(is_greedy, off, x), rows)
    for x, off in ((choice.top_k, 0), (choice.top_p, 1), (choice.min_p, 0))
  )
  has_top_k = (top_k > 0) & (top_k < vocab_size)
  nothing = jnp.full_like(top, -jnp.inf)

  def by_count():
    def count(x, threshold):
      axes = tuple(range(len(rows), x.ndim))
      reaches = x >= jnp.expand_dims(threshold, axes)
      # Of floats, which are summed faster, and exactly up to 2²⁴.
      return jnp.sum(jnp.where(reaches, 1.0, 0.0), axes)

    # k blocks have a peak there, so that at least k tokens are; little is left
    # to be searched.
    above = jnp.where(has_top_k, _key(top), _key(nothing)) + 1
    lowest = _bisect(
      lambda x: count(peaks, x), top_k, _key(nothing), above, is_count=True
    )
    return _float(
      _bisect(lambda x: count(blocks, x), top_k, lowest, above, is_count=True)
    )

  floor = jax.lax.cond(jnp.any(has_top_k), by_count, lambda: nothing)

  def by_mass():
    # Compared again after the search: not to be made twice, lest it differ.
    weights = jax.lax.optimization_barrier(
      _weights(blocks, top, temperature, floor)
    )

    def mass(threshold):
      reaches = weights >= threshold[..., None, None]
      # Lane by lane, then over the lanes: short sums, that round little. Of
      # non-negative numbers in one order, so more tokens never weigh less.
      lanes = jnp.sum(jnp.where(reaches, weights, 0.0), axis=-2)
      return jnp.sum(lanes, axis=-1)

    def search():
      zero, one = jnp.zeros_like(top), jnp.ones_like(top)
      above = jnp.where(top_p < 1, _key(one), _key(zero)) + 1
      return _float(_bisect(mass, top_p * mass(zero), _key(zero), above))

    least = jax.lax.cond(
      jnp.any(top_p < 1), search, lambda: jnp.zeros_like(top)
    )
    least = jnp.maximum(least, min_p)[..., None, None]
    return jnp.min(jnp.where(weights >= least, blocks, jnp.inf), (-2, -1))

  is_weighed = (top_p < 1) | (min_p > 0)
  lightest = jax.lax.cond(jnp.any(is_weighed), by_mass, lambda: nothing)
  return jnp.where(is_weighed, jnp.clip(lightest, floor, top), floor)


def _bisect(
  measure: Callable[[jax.Array], jax.Array],
  wanted: jax.Array,
  low: jax.Array,
  high: jax.Array,
  *,
  is_count: bool = False,
) -> jax.Array:
  """The largest threshold at which a falling measure is as large as wanted.

  Args:
    measure: of thresholds.
    wanted: shape `[...]`.
    low: the key of a threshold that is low enough.
    high: the key of one that is too high.
    is_count: the measure is exact. Once it is as wanted the search ends: which
      of the thresholds between two tokens it is does not matter.

  Returns:
    its key.
  """

  def is_open(bounds):
    low, high = bounds
    return jnp.any(low + 1 < high)

  def halve(bounds):
    low, high = bounds
    # The mean, of numbers whose sum may be too large; `low` where it is that.
    middle = (low & high) + ((low ^ high) >> 1)
    found = measure(_float(middle))
    low = jnp.where(found >= wanted, middle, low)
    high = jnp.where(found >= wanted, high, middle)
    if is_count:
      high = jnp.where(found == wanted, low + 1, high)
    return low, high

  return jax.lax.while_loop(is_open, halve, (low, high))[0]


def _key(x: jax.Array) -> jax.Array:
  """Whole numbers in the order of the float32 numbers, each of its own."""
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _float(key: jax.Array) -> jax.Array:
  """Undoes `_key`."""
  bits = key ^ ((key >> 31) & 0x7FFFFFFF)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _draw(blocks, totals, weigh, uniforms) -> tuple[jax.Array, jax.Array]:
  """Which block, and which token of it.

  Args:
    blocks: logits, shape `[..., blocks, tokens]`.
    totals: weights of whole blocks.
    weigh: the weights of one block's logits, `[..., tokens]`.
    uniforms: shape `[...]`.
  """
  block, target = _search(totals, uniforms * jnp.sum(totals, axis=-1))
  token, _ = _search(weigh(_take(blocks, block)), target)
  return block, token


def _search(lengths, target):
  """The first interval that ends beyond the target, and what is left of it.

  Accelerators sum in parallel, and such cumulative sums are neither monotone
  to the last bit nor the same in every order. So an empty interval is left out
  by its length, not because it ends where the one before it does; and the
  target is kept below the last end.
  """
  ends = jnp.where(lengths > 0, jnp.cumsum(lengths, axis=-1), 0.0)
  target = jnp.minimum(target, jnp.nextafter(jnp.max(ends, axis=-1), 0.0))
  target = jnp.maximum(target, 0.0)
  index = jnp.argmax(ends > target[..., None], axis=-1)
  start = jnp.take_along_axis(ends - lengths, index[..., None], axis=-1)
  return index, target - start[..., 0]
