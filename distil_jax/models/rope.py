"""Rotary position embeddings and their scalings to longer contexts."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.models.decoder_config import RopeScaling


def inverse_frequencies(
  head_size: int, theta: float, scaling: RopeScaling
) -> np.ndarray:
  """Returns the radians by which each pair turns a position.

  Args:
    head_size: H.
    theta: Base of the wavelengths.
    scaling: How they are stretched.

  Returns:
    float32, shape `[H / 2]`.
  """
  exponents = np.arange(0, head_size, 2, dtype=np.float32) / head_size
  plain = np.float32(1) / np.float32(theta) ** exponents
  match scaling.kind:
    case "linear":
      return plain / np.float32(scaling.factor)
    case "llama3":
      share = _llama3_share(plain, scaling)
    case "yarn":
      share = _yarn_share(head_size, theta, scaling)
  stretched = plain / scaling.factor
  return ((1 - share) * stretched + share * plain).astype(np.float32)


def _llama3_share(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
  """Returns the share of the unstretched frequency in each pair's."""
  turns = scaling.original_max_positions * plain / (2 * math.pi)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  return np.clip((turns - low) / (high - low), 0, 1)


def _yarn_share(
  head_size: int, theta: float, scaling: RopeScaling
) -> np.ndarray:
  """Returns the share of the unstretched frequency in each pair's."""

  def pair_that_turns(times: float) -> float:
    length = scaling.original_max_positions / (times * 2 * math.pi)
    return head_size * math.log(length) / (2 * math.log(theta))

  low = pair_that_turns(scaling.beta_fast)
  high = pair_that_turns(scaling.beta_slow)
  if scaling.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, head_size - 1)
  if low == high:
    high += 0.001  # the ramp would divide by 0
  pairs = np.arange(head_size // 2, dtype=np.float32)
  return 1 - np.clip((pairs - low) / (high - low), 0, 1)


def yarn_attention_factor(
  factor: float, mscale: float | None, mscale_all_dim: float | None
) -> float:
  """Returns the factor of cosine and sine that YaRN proposes.

  Args:
    factor: Factor by which wavelengths are stretched.
    mscale, mscale_all_dim: Weights of its logarithm in numerator and
      denominator; None or 0 for either means 1 and no denominator.
  """

  def grown(weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1

  if mscale and mscale_all_dim:
    return grown(mscale) / grown(mscale_all_dim)
  return grown(1)


def rope_angles(
  positions: jax.Array,
  head_size: int,
  theta: float,
  scaling: RopeScaling | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns cosine and sine of the rotary angles.

  Args:
    positions: Position of each token. Shape `[...]`.
    head_size: H.
    theta: Base of the wavelengths.
    scaling: How the wavelengths are stretched; None means not at all.

  Returns:
    Two float32 arrays of shape `[..., 1, H / 2]`.
  """
  leading = range(positions.ndim)
  positions = positions[..., None].astype(jnp.float32)
  if scaling is None:
    exponents = jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size
    angles = positions / jnp.expand_dims(theta**exponents, leading)
  else:
    # Computed by NumPy while tracing: the result is a constant of the program.
    frequencies = inverse_frequencies(head_size, theta, scaling)
    angles = positions * jnp.expand_dims(frequencies, leading)
  cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
  if scaling is None or scaling.attention_factor == 1:
    return cos, sin
  return cos * scaling.attention_factor, sin * scaling.attention_factor


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Applies the rotary embedding to `x`, of shape `[..., N, H]`.

  As in Hugging Face's models, the first half of H is paired with the second.
  """
  cos, sin = angles
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
