"""From logits to a token."""

import numbers

import chex
import jax
import jax.numpy as jnp

_BLOCK = 256


def truncate(
  logits: jax.Array, *, top_k: int | None = None, top_p: float | None = None
) -> jax.Array:
  """Excludes (−inf) what top-k and then top-p leave out.

  Top-p is taken among what top-k kept: the smallest set of most probable
  tokens whose mass reaches `top_p`. Tokens as probable as the last one kept
  are kept too, so the result does not depend on their order.

  Args:
    logits: shape `[..., V]`.
    top_k: keep the k largest; None, or V and more, keeps all.
    top_p: mass to keep, in (0, 1]; None keeps all.

  Returns:
    Shape `[..., V]`.

  Raises:
    ValueError: a top_k that is no whole number above 0, or a top_p outside
      (0, 1].
  """
  if top_k is not None and (
    not isinstance(top_k, numbers.Integral) or top_k < 1
  ):
    raise ValueError(
      f"top_k={top_k} must be at least 1, a whole number; None keeps all"
    )
  if top_p is not None and not 0 < top_p <= 1:
    raise ValueError(f"top_p={top_p} is outside (0, 1]; None keeps all")
  if top_k is not None and top_k < logits.shape[-1]:
    # Reduced, not sliced at the last: XLA takes a top-k of which only a slice
    # is used for a sort of the whole vocabulary.
    largest, _ = jax.lax.top_k(logits, top_k)
    smallest = jnp.min(largest, axis=-1, keepdims=True)
    logits = jnp.where(logits >= smallest, logits, -jnp.inf)
  if top_p is not None and top_p < 1.0:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    mass = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
    # A token is needed while the mass before it falls short of top_p.
    before = jnp.pad(mass, [(0, 0)] * (mass.ndim - 1) + [(1, 0)])[..., :-1]
    needed = (before < top_p).at[..., 0].set(True)
    smallest = jnp.min(
      jnp.where(needed, ordered, jnp.inf), axis=-1, keepdims=True
    )
    logits = jnp.where(logits >= smallest, logits, -jnp.inf)
  return logits


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
  logits = logits.astype(jnp.float32)
  weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  padding = -weights.shape[-1] % _BLOCK
  weights = jnp.pad(weights, [(0, 0)] * uniforms.ndim + [(0, padding)])
  blocks = weights.reshape(*uniforms.shape, -1, _BLOCK)
  totals = jnp.sum(blocks, axis=-1)
  block, target = _search(totals, uniforms * jnp.sum(totals, axis=-1))
  chosen = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)
  token, _ = _search(chosen[..., 0, :], target)
  return (block * _BLOCK + token).astype(jnp.int32)


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
