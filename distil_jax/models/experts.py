"""A mixture of experts: a router sends each token to a few of many MLPs.

No token is dropped. The rows of all tokens are sorted by expert, so that each
expert's rows are one matrix product. Experts are cut along the `tensor` axis of
the mesh: each device runs its own experts on all tokens of its part of the
batch, and the results are summed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from distil_jax.models import sharding


@struct.dataclass
class Weights:
  """Holds the MLPs of all E experts.

  Attributes:
    gate, up: Shape `[E, D, F]`.
    down: Shape `[E, F, D]`.
  """

  gate: jax.Array
  up: jax.Array
  down: jax.Array


@struct.dataclass
class Loads:
  """Says how a router spreads tokens over its experts, as sums.

  Attributes:
    counts: Tokens that each expert was chosen for, float32. Shape `[..., E]`.
    entropies: Sum over tokens of the router's entropy, nats. Shape `[...]`.
    num_tokens: Shape `[...]`.
  """

  counts: jax.Array
  entropies: jax.Array
  num_tokens: jax.Array


def loads(
  x: jax.Array, router: jax.Array, num_chosen: int, mask: jax.Array
) -> Loads:
  """Returns how the router spreads these tokens, as a constant.

  XLA shares the router's product with that of `mix`.

  Args:
    x: Shape `[B, S, D]`.
    router: Shape `[D, E]`.
    num_chosen: k, experts of each token.
    mask: 1 where the token counts. Shape `[B, S]`.
  """
  x, router = jax.lax.stop_gradient((x, router))
  log_probs = jax.nn.log_softmax(_logits(x, router))
  _, chosen = route(x, router, num_chosen, normalizes=False)
  mask = mask.astype(jnp.float32)
  return Loads(
    counts=jnp.bincount(
      chosen.reshape(-1),
      weights=jnp.repeat(mask.reshape(-1), num_chosen),
      length=router.shape[-1],
    ),
    entropies=-jnp.sum(jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1) * mask),
    num_tokens=jnp.sum(mask),
  )


def load_metrics(found: Loads) -> dict[str, jax.Array]:
  """Returns scalars to log, each a mean over the layers.

  Args:
    found: Of all layers and tokens. Counts of shape `[L, E]`.
  """
  mean = jnp.maximum(jnp.mean(found.counts, axis=-1), 1e-6)
  return {
    "experts/load": jnp.mean(jnp.max(found.counts, axis=-1) / mean),
    "experts/unused": jnp.mean(found.counts == 0, dtype=jnp.float32),
    "experts/entropy": jnp.mean(
      found.entropies / jnp.maximum(found.num_tokens, 1.0)
    ),
  }


def mix(
  x: jax.Array,
  router: jax.Array,
  weights: Weights,
  *,
  num_chosen: int,
  normalizes: bool,
  activation: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """Returns the weighted sum of each token's experts.

  Args:
    x: Shape `[B, S, D]`.
    router: Shape `[D, E]`.
    weights: The experts.
    num_chosen: k, experts of each token.
    normalizes: True if the weights of the chosen experts sum to 1.
    activation: Applied to the gate.

  Returns:
    Shape `[B, S, D]`.
  """
  shares, chosen = route(x, router, num_chosen, normalizes=normalizes)

  def mix_locally(x, shares, chosen, weights, first):
    rows = _run_experts(
      x.reshape(-1, x.shape[-1]),
      shares.reshape(-1, num_chosen),
      chosen.reshape(-1, num_chosen) - first,
      weights,
      activation,
    )
    return rows.reshape(x.shape)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return mix_locally(x, shares, chosen, weights, 0)
  tokens = sharding.partition_spec(_token_axes(x))
  of_experts = sharding.partition_spec(("experts", None, None))

  def mix_on_device(x, shares, chosen, weights):
    axis = sharding.RULES["experts"]
    first = jax.lax.axis_index(axis) * len(weights.gate)
    mixed = mix_locally(x, shares, chosen, weights, first)
    return jax.lax.psum(mixed, axis)

  # XLA cannot partition products whose rows belong to different experts, so
  # each device is given its own by hand.
  return jax.shard_map(
    mix_on_device,
    in_specs=(tokens, tokens, tokens, of_experts),
    out_specs=tokens,
    # With the check, JAX (0.10 to 0.12) leaves out sums over devices in the
    # gradients of
    # `x` and `shares`.
    check_vma=False,
  )(x, shares, chosen, weights)


def route(
  x: jax.Array, router: jax.Array, num_chosen: int, *, normalizes: bool
) -> tuple[jax.Array, jax.Array]:
  """Returns each token's experts and their weights.

  Computed in float32 whatever the type of `x`: rounding would send tokens to
  other experts in the sampler than in the training step.

  Args:
    x: Shape `[..., D]`.
    router: Shape `[D, E]`.
    num_chosen: k, experts of each token.
    normalizes: True if the weights of the chosen experts sum to 1.

  Returns:
    Weights, float32, and experts, of shape `[..., k]` each.
  """
  probs = jax.nn.softmax(_logits(x, router))
  shares, chosen = jax.lax.top_k(probs, num_chosen)
  if normalizes:
    shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
  return shares, chosen


def _logits(x: jax.Array, router: jax.Array) -> jax.Array:
  return x.astype(jnp.float32) @ router.astype(jnp.float32)


def _token_axes(x: jax.Array) -> sharding.LogicalAxes:
  """Returns the logical axes along which tokens are cut evenly."""
  axes = ("batch", "sequence")
  return (
    *(
      axis if size % sharding.num_shards(axis) == 0 else None
      for axis, size in zip(axes, x.shape, strict=False)
    ),
    None,
  )


def _run_experts(x, shares, chosen, weights: Weights, activation):
  """Returns the weighted sum over those experts that are here.

  Args:
    x: Shape `[n, D]`.
    shares: Weights of the chosen experts. Shape `[n, k]`.
    chosen: Their numbers, from 0 to E - 1 for those that are here. `[n, k]`.
    weights: The E experts that are here.
    activation: Applied to the gate.
  """
  num_experts = len(weights.gate)
  num_chosen = chosen.shape[1]
  expert = chosen.reshape(-1)
  is_here = (expert >= 0) & (expert < num_experts)
  # Rows of experts on other devices go last, into no group.
  expert = jnp.where(is_here, expert, num_experts)
  order = jnp.argsort(expert, stable=True)
  sizes = jnp.bincount(expert, length=num_experts + 1)[:num_experts]
  rows = x[order // num_chosen]
  is_in_group = is_here[order][:, None]

  def product(rows, weight):
    # Neither the product of a row without a group nor the gradient of such a
    # row is defined: the first `where` clears the gradient, the second the
    # product.
    rows = jnp.where(is_in_group, rows, 0)
    found = jax.lax.ragged_dot(rows, weight, sizes)
    return jnp.where(is_in_group, found, 0)

  gate, up = product(rows, weights.gate), product(rows, weights.up)
  mixed = product(activation(gate) * up, weights.down)
  mixed = mixed * shares.reshape(-1)[order][:, None].astype(mixed.dtype)
  # Each row goes back to its token's place, where the k rows are summed: a
  # gather and a sum in a fixed order, where a scatter would add in any.
  back = jnp.argsort(order)
  return jnp.sum(mixed[back].reshape(*chosen.shape, -1), axis=1)
