"""Masks, averages and groups, over the tokens and sequences that count."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

Aggregation = Literal["token_mean", "sequence_mean"]


def counted_tokens(mask: jax.Array, sample_mask: jax.Array | None) -> jax.Array:
  """Returns 1 at the tokens that count of the sequences that count.

  Args:
    mask: 1 where the token counts. Shape `[B, T]`.
    sample_mask: 1 where the sequence counts; None means all. Shape `[B]`.

  Returns:
    In the mask's dtype. Shape `[B, T]`.
  """
  if sample_mask is None:
    return mask
  chex.assert_rank([mask, sample_mask], [2, 1])
  chex.assert_equal_shape_prefix([mask, sample_mask], 1)
  return mask * sample_mask[:, None].astype(mask.dtype)


def aggregation_weights(
  mask: jax.Array, sample_mask: jax.Array | None, *, aggregation: Aggregation
) -> jax.Array:
  """Returns weights w with which Σ w·loss is the average over a batch.

  The weights are known before any loss is, so a batch can be cut into
  micro-batches or over devices without changing the sum.

    token_mean      w = m / Σ m                    m = mask · sample_mask
    sequence_mean   w = m / (B · tokens of the sequence)

  Under `sequence_mean` a sequence without signal counts as a loss of 0.

  Args:
    mask: 1 where the token counts. Shape `[B, T]`.
    sample_mask: 1 where the sequence counts; None means all. Shape `[B]`.
    aggregation: which average.

  Returns:
    Shape `[B, T]`, float32; all 0 where nothing counts.
  """
  mask = counted_tokens(mask.astype(jnp.float32), sample_mask)
  if aggregation == "token_mean":
    # A batch in which nothing counts has weights 0, not 0 / 0.
    return mask / jnp.maximum(jnp.sum(mask), 1.0)
  if aggregation == "sequence_mean":
    lengths = jnp.sum(mask, axis=1, keepdims=True)
    # Over all sequences, those without signal too, as published runs average.
    return mask / jnp.maximum(lengths, 1.0) / mask.shape[0]
  raise ValueError(
    f"aggregation={aggregation!r} is neither 'token_mean' nor 'sequence_mean'"
  )


def where_counts(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns `x` where the token counts, else 0, even if `x` is not finite.

  A product with the mask would let NaN at padding through. The result is
  float32, or wider if `x` is.
  """
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return jnp.where(mask.astype(bool), x, 0.0)


def split_groups(values: jax.Array, group_size: int) -> jax.Array:
  """Splits a batch into its groups.

  Args:
    values: the members of a group in a row. Shape `[B, ...]`.
    group_size: G; must divide B.

  Returns:
    Shape `[P, G, ...]`.

  Raises:
    ValueError: a group size that is not above 0, or does not divide the batch.
  """
  size = values.shape[0]
  if not group_size > 0:
    raise ValueError(
      f"group_size={group_size} must be at least 1, the number of samples of "
      f"each problem; it must divide the batch of {size} sequences"
    )
  if size % group_size:
    raise ValueError(
      f"group_size={group_size} does not divide the batch of {size} sequences"
    )
  return values.reshape(size // group_size, group_size, *values.shape[1:])
