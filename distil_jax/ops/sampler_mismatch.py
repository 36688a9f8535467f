"""Measures how far the sampler's log-probabilities are from training's.

Both are of the same tokens under the same parameters. They differ by rounding
only, unless one of the two computes something else.
"""

import chex
import jax
import jax.numpy as jnp
from flax import struct

from distil_jax.ops import masking


@struct.dataclass
class Mismatch:
  """Sums over the tokens of a slice; `merge` adds slices of a batch.

    d = log π_training − log π_sampled

  Attributes:
    distance: Σ |d|, nats. Scalar, like the others.
    divergence: Σ (exp d − 1 − d), nats. Each is at least 0, and the mean over
      what was sampled is KL(sampler‖training), see Schulman, "Approximating KL
      divergence", http://joschu.net/blog/kl-approx.html.
    largest: max |d|, nats; 0 without tokens.
    count: number of tokens.
  """

  distance: jax.Array
  divergence: jax.Array
  largest: jax.Array
  count: jax.Array


def measure(
  log_probs: jax.Array, old_log_probs: jax.Array, mask: jax.Array
) -> Mismatch:
  """Returns the mismatch of the tokens that count, without gradient.

  Args:
    log_probs: from the training pass, nats. Shape `[B, T]`.
    old_log_probs: from the sampler, nats. Shape `[B, T]`.
    mask: 1 where the token counts. Shape `[B, T]`.
  """
  chex.assert_rank([log_probs, old_log_probs, mask], 2)
  chex.assert_equal_shape([log_probs, old_log_probs, mask])
  # Masked one by one: the difference of two infinities is NaN.
  now, old = (
    masking.where_counts(jax.lax.stop_gradient(x), mask)
    for x in (log_probs, old_log_probs)
  )
  differences = now - old
  sizes = jnp.abs(differences)
  return Mismatch(
    distance=jnp.sum(sizes),
    # expm1, because exp(d) − 1 would lose all digits of differences as small
    # as rounding.
    divergence=jnp.sum(jnp.expm1(differences) - differences),
    largest=jnp.max(sizes, initial=0.0),
    count=jnp.sum(mask).astype(jnp.float32),
  )


def merge(one: Mismatch, other: Mismatch) -> Mismatch:
  """Returns the mismatch of two slices together."""
  return Mismatch(
    distance=one.distance + other.distance,
    divergence=one.divergence + other.divergence,
    largest=jnp.maximum(one.largest, other.largest),
    count=one.count + other.count,
  )


def metrics(mismatch: Mismatch) -> dict[str, jax.Array]:
  """Returns the metrics to log, nats; 0 without tokens."""
  count = jnp.maximum(mismatch.count, 1.0)
  return {
    "mismatch/mean": mismatch.distance / count,
    "mismatch/max": mismatch.largest,
    "mismatch/kl": mismatch.divergence / count,
  }
