"""Samples tokens from logits, with temperature and truncation.

Letters: a row is one sequence; the vocabulary is split into blocks, each of so
many tokens.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import struct

# Tokens in a block of the vocabulary. A smaller size is taken if it divides the
# vocabulary and this one does not: padding the last block copies the logits.
_BLOCK = 256
_SMALLER = (128, 64)


@struct.dataclass
class SamplingArrays:
  """Holds how the rows' tokens are chosen.

  Arrays that broadcast to the rows, `[...]`, so that other values need no other
  program. The caller checks their ranges.

  Attributes:
    temperature: Divides the logits; 0 takes the most probable token, the first
      of equal ones.
    top_k: Keeps the k most probable tokens; 0, or V and more, keeps all. int32.
    top_p: Mass to keep, in (0, 1]; 1 keeps all tokens.
    min_p: Keeps tokens whose probability is at least this share of the largest,
      in [0, 1]; 0 keeps all.
  """

  temperature: jax.Array | float = 1.0
  top_k: jax.Array | int = 0
  top_p: jax.Array | float = 1.0
  min_p: jax.Array | float = 0.0


def choose(
  logits: jax.Array,
  uniforms: jax.Array,
  settings: SamplingArrays,
  *,
  num_vocab_shards: int = 1,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Samples a token of each row by the row's own settings.

  Temperature comes first, then top-k, then top-p among the tokens that top-k
  kept, then min-p. Tokens as probable as the last one kept are kept too, so the
  result does not depend on their order. The most probable token always stays.

  No row is sorted. The kept tokens are those that reach a threshold, which is
  found by bisection with one pass over the vocabulary for each bit; no pass is
  needed if no row truncates. Top-k is exact. Top-p is as exact as a float32 sum
  over the vocabulary: if the mass of a set is within about 1e-6 of `top_p`, it
  or the next larger set may be kept. top_p = 1 loses nothing.

  Args:
    logits: −inf excludes a token; a row needs one finite entry. `[..., V]`.
    uniforms: Random numbers in [0, 1). Shape `[...]`.
    settings: Settings of the rows.
    num_vocab_shards: Number of equal parts into which the devices cut the
      vocabulary, so that the logits stay on their devices.

  Returns:
    Token ids, int32; their log-probabilities under the policy itself, before
    temperature and truncation, nats; and those under the distribution that they
    were drawn from, which at temperature 0 is one token. Shape `[...]` each.
  """
  rows = logits.shape[:-1]
  chex.assert_shape(uniforms, rows)
  blocks, to_id = _in_blocks(logits, num_vocab_shards)
  peaks = jnp.max(blocks, axis=-1)
  top = jnp.max(peaks, axis=-1)
  temperature = jnp.broadcast_to(settings.temperature, rows)
  # A smaller temperature has no finite inverse in float32.
  is_greedy = temperature < jnp.finfo(jnp.float32).tiny
  # Greedy rows share the arrays with rows that are drawn, so they need a
  # divisor that is harmless.
  temperature = jnp.where(is_greedy, 1.0, temperature).astype(jnp.float32)

  def greedy():
    block = jnp.argmax(peaks, axis=-1)
    return block, jnp.argmax(_take(blocks, block), axis=-1)

  def only_greedy():
    ones = jnp.ones_like(top)
    return *greedy(), jnp.sum(_weights(blocks, top), (-2, -1)), ones

  def any_drawn():
    floor = _floor(blocks, peaks, top, temperature, is_greedy, settings)
    is_plain = (floor == -jnp.inf) & (temperature == 1)

    def plain():
      totals = jnp.sum(_weights(blocks, top), axis=-1)
      return totals, jnp.sum(totals, axis=-1)

    def changed():
      weights = _weights(blocks, top, temperature, floor)
      mass = jnp.sum(jnp.sum(_weights(blocks, top), axis=-1), axis=-1)
      return jnp.sum(weights, axis=-1), mass

    # A cond, not a where: if no row truncates, a step saves these passes.
    totals, mass = jax.lax.cond(jnp.all(is_plain), plain, changed)
    # Weights are made again for the drawn blocks alone, so that those of the
    # whole vocabulary need not be written to memory.
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
    # Rows without temperature and truncation get the same bits in both sums,
    # so that both log-probabilities agree exactly.
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

  This takes one uniform number a row and two short searches (for the block of
  the vocabulary, and for the token within it), where the Gumbel trick takes a
  random number for every token of the vocabulary.

  Args:
    logits: −inf excludes a token; a row needs one finite entry. `[..., V]`.
    uniforms: Random numbers in [0, 1). Shape `[...]`.

  Returns:
    Token ids, int32. Shape `[...]`.
  """
  chex.assert_shape(uniforms, logits.shape[:-1])
  blocks, to_id = _in_blocks(logits)
  top = jnp.max(blocks, axis=(-2, -1))
  totals = jnp.sum(_weights(blocks, top), axis=-1)
  return to_id(*_draw(blocks, totals, lambda x: _weights(x, top), uniforms))


def _in_blocks(logits: jax.Array, num_parts: int = 1):
  """Splits the vocabulary into blocks.

  No block spans two parts, so each block stays on one device.

  Args:
    logits: Shape `[..., V]`.
    num_parts: Number of parts into which the devices cut the vocabulary.

  Returns:
    Logits in float32, −inf after the end of a part, of shape
    `[..., blocks, tokens]`; and a function `(block, token) -> id`.
  """
  vocab_size = logits.shape[-1]
  if vocab_size % num_parts:
    num_parts = 1  # the devices cut evenly or not at all
  length = vocab_size // num_parts
  size = next((b for b in (_BLOCK, *_SMALLER) if length % b == 0), _BLOCK)
  rows = logits.shape[:-1]
  parts = logits.astype(jnp.float32).reshape(*rows, num_parts, length)
  padding = [(0, 0)] * (parts.ndim - 1) + [(0, -length % size)]
  parts = jnp.pad(parts, padding, constant_values=-jnp.inf)
  of_part = parts.shape[-1] // size

  def to_id(block, token):
    within = block % of_part * size + token
    # With NaN logits the search may end in the padding: return a valid id all
    # the same.
    within = jnp.minimum(within, length - 1)
    return (block // of_part * length + within).astype(jnp.int32)

  return parts.reshape(*rows, -1, size), to_id


def _take(blocks: jax.Array, block: jax.Array) -> jax.Array:
  """Returns one block of each row. Shape `[..., tokens]`."""
  found = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)
  return found[..., 0, :]


def _weights(logits, top, temperature=None, floor=None) -> jax.Array:
  """Returns exp((z − top) / temperature), in [0, 1]; 0 below the floor.

  Args:
    logits: Shape `[..., *]`, with any number of axes after those of the rows.
    top, temperature, floor: Shape `[...]`.
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


def _floor(
  blocks, peaks, top, temperature, is_greedy, settings: SamplingArrays
):
  """Returns the smallest logit that truncation keeps; −inf if it keeps all.

  Args:
    blocks: Logits. Shape `[..., blocks, tokens]`.
    peaks: Largest logit of each block. Shape `[..., blocks]`.
    top: Largest logit of each row. Shape `[...]`.
    temperature: Shape `[...]`.
    is_greedy: True for rows that need no truncation. Shape `[...]`.
    settings: Settings of the rows.

  Returns:
    Shape `[...]`.
  """
  rows = top.shape
  vocab_size = blocks.shape[-2] * blocks.shape[-1]
  top_k, top_p, min_p = (
    jnp.broadcast_to(jnp.where(is_greedy, off, x), rows)
    for x, off in (
      (settings.top_k, 0),
      (settings.top_p, 1),
      (settings.min_p, 0),
    )
  )
  has_top_k = (top_k > 0) & (top_k < vocab_size)
  nothing = jnp.full_like(top, -jnp.inf)

  def by_count():
    def count(x, threshold):
      axes = tuple(range(len(rows), x.ndim))
      reaches = x >= jnp.expand_dims(threshold, axes)
      # Floats are summed faster than integers, and exactly up to 2²⁴.
      return jnp.sum(jnp.where(reaches, 1.0, 0.0), axes)

    # The k-th largest peak bounds the k-th largest logit from below, because k
    # blocks have a token of that size. Peaks are few, so this is cheap and
    # leaves little of the whole vocabulary's range to search.
    above = jnp.where(has_top_k, _key(top), _key(nothing)) + 1
    lowest = _bisect(
      lambda x: count(peaks, x), top_k, _key(nothing), above, is_count=True
    )
    return _float(
      _bisect(lambda x: count(blocks, x), top_k, lowest, above, is_count=True)
    )

  floor = jax.lax.cond(jnp.any(has_top_k), by_count, lambda: nothing)

  def by_mass():
    # The weights are compared again after the search. The barrier keeps XLA
    # from recomputing them in another way, which could differ in the last bit.
    weights = jax.lax.optimization_barrier(
      _weights(blocks, top, temperature, floor)
    )

    def mass(threshold):
      reaches = weights >= threshold[..., None, None]
      # Two short sums round less than a long one. The order of the summands is
      # fixed and none is negative, so more tokens never weigh less, and the
      # measure falls with the threshold as the bisection needs.
      columns = jnp.sum(jnp.where(reaches, weights, 0.0), axis=-2)
      return jnp.sum(columns, axis=-1)

    def search():
      zero, one = jnp.zeros_like(top), jnp.ones_like(top)
      above = jnp.where(top_p < 1, _key(one), _key(zero)) + 1
      return _float(_bisect(mass, top_p * mass(zero), _key(zero), above))

    least = jax.lax.cond(
      jnp.any(top_p < 1), search, lambda: jnp.zeros_like(top)
    )
    least = jnp.maximum(least, min_p)[..., None, None]
    # The result is a logit, not a weight, because logits compare exactly.
    return jnp.min(jnp.where(weights >= least, blocks, jnp.inf), (-2, -1))

  is_weighed = (top_p < 1) | (min_p > 0)
  lightest = jax.lax.cond(jnp.any(is_weighed), by_mass, lambda: nothing)
  # Whatever rounding did to the mass, the most probable token stays.
  return jnp.where(is_weighed, jnp.clip(lightest, floor, top), floor)


def _bisect(
  measure: Callable[[jax.Array], jax.Array],
  wanted: jax.Array,
  low: jax.Array,
  high: jax.Array,
  *,
  is_count: bool = False,
) -> jax.Array:
  """Returns the largest threshold with at least the wanted measure.

  Args:
    measure: A function of thresholds that never rises with them.
    wanted: Shape `[...]`.
    low: Integer key (see `_key`) of a threshold that is low enough.
    high: Key of one that is too high.
    is_count: True if the measure is exact. The search then ends once it equals
      `wanted`, because all thresholds between two tokens keep the same tokens.

  Returns:
    The key of the threshold.
  """

  def is_open(bounds):
    low, high = bounds
    return jnp.any(low + 1 < high)

  def halve(bounds):
    low, high = bounds
    # The mean without the sum, which may overflow; rounded down.
    middle = (low & high) + ((low ^ high) >> 1)
    found = measure(_float(middle))
    low = jnp.where(found >= wanted, middle, low)
    high = jnp.where(found >= wanted, high, middle)
    if is_count:
      high = jnp.where(found == wanted, low + 1, high)
    return low, high

  return jax.lax.while_loop(is_open, halve, (low, high))[0]


def _key(x: jax.Array) -> jax.Array:
  """Maps float32 numbers to int32 numbers in the same order, one to one."""
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  # Bits of negative floats, read as integers, run against the floats' order.
  # Flipping all but the sign turns them round.
  return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _float(key: jax.Array) -> jax.Array:
  """Undoes `_key`."""
  bits = key ^ ((key >> 31) & 0x7FFFFFFF)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _draw(blocks, totals, weigh, uniforms) -> tuple[jax.Array, jax.Array]:
  """Draws a block, and a token within it.

  Args:
    blocks: Logits. Shape `[..., blocks, tokens]`.
    totals: Weight of each block. Shape `[..., blocks]`.
    weigh: Returns the weights of one block's logits, `[..., tokens]`.
    uniforms: Random numbers in [0, 1). Shape `[...]`.

  Returns:
    Block and token within it. Shape `[...]` each.
  """
  # The target is scaled to the weights, which saves dividing all of them.
  block, target = _search(totals, uniforms * jnp.sum(totals, axis=-1))
  token, _ = _search(weigh(_take(blocks, block)), target)
  return block, token


def _search(lengths, target):
  """Returns the interval that contains the target, and the target within it.

  Args:
    lengths: Lengths of consecutive intervals from 0 on. Shape `[..., n]`.
    target: Shape `[...]`.

  Returns:
    Index of the interval, and the distance from its start. Shape `[...]` each.
  """
  # Accelerators sum in parallel, and such cumulative sums are neither monotone
  # to the last bit nor the same in every order. An empty interval is therefore
  # excluded by its length, not because it ends where the one before it does;
  # and the target is kept below the last end.
  ends = jnp.where(lengths > 0, jnp.cumsum(lengths, axis=-1), 0.0)
  target = jnp.minimum(target, jnp.nextafter(jnp.max(ends, axis=-1), 0.0))
  target = jnp.maximum(target, 0.0)
  index = jnp.argmax(ends > target[..., None], axis=-1)
  start = jnp.take_along_axis(ends - lengths, index[..., None], axis=-1)
  return index, target - start[..., 0]
