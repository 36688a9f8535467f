"""Updates parameters in bfloat16 without losing what is small to them.

The optimizer is wrapped in one that keeps float32 masters, or whose updates
are rounded at random; `next_params` then applies its updates. For any other
optimizer `next_params` adds them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# Folded into the run's key: rounding must be independent of all sampling.
_ROUNDING_KEY = 2**31 + 3


def _as_float32(params: Any) -> Any:
  # Copied, not shared: see `train_state.init_state`.
  return jax.tree.map(lambda p: jnp.array(p, jnp.float32), params)


class MasterState(NamedTuple):
  """Holds the parameters in float32, and the state of their optimizer.

  Attributes:
    params: the masters; the network has them rounded.
    inner: the state of the optimizer that updates them.
  """

  params: Any
  inner: Any


def with_master_params(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Returns an optimizer that updates float32 copies of rounded parameters.

  Sums of small updates then are not lost. `next_params` returns the rounded
  copies.
  """

  def init(params):
    masters = _as_float32(params)
    return MasterState(masters, optimizer.init(masters))

  def update(updates, state, params=None):
    updates, inner = optimizer.update(updates, state.inner, state.params)
    masters = optax.apply_updates(state.params, updates)
    return updates, MasterState(masters, inner)

  return optax.GradientTransformation(init, update)


class RoundingState(NamedTuple):
  """Holds the key of the next rounding, and the optimizer's state.

  Attributes:
    key: raw key data. uint32.
    inner: the optimizer's state.
  """

  key: Any
  inner: Any


def with_stochastic_rounding(
  optimizer: optax.GradientTransformation, seed: int
) -> optax.GradientTransformation:
  """Returns an optimizer after whose updates `next_params` rounds at random.

  Args:
    optimizer: computes the updates, in float32.
    seed: of the run's key.
  """

  def init(params):
    key = jax.random.fold_in(jax.random.key(seed), _ROUNDING_KEY)
    return RoundingState(
      jax.random.key_data(key), optimizer.init(_as_float32(params))
    )

  def update(updates, state, params=None):
    updates, inner = optimizer.update(updates, state.inner, _as_float32(params))
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), 0)
    return updates, RoundingState(jax.random.key_data(key), inner)

  return optax.GradientTransformation(init, update)


def next_params(params: Any, updates: Any, opt_state: Any) -> Any:
  """Returns the parameters after an update, in the types they have.

  Args:
    params: the parameters before it.
    updates: from the optimizer.
    opt_state: its state after the update.
  """
  if isinstance(opt_state, MasterState):
    # Replaced, not added to: a sum would not always be the rounded master.
    return jax.tree.map(
      lambda p, master: master.astype(p.dtype), params, opt_state.params
    )
  if isinstance(opt_state, RoundingState):
    # The key of the next update is folded from 0, see `update`.
    key = jax.random.fold_in(jax.random.wrap_key_data(opt_state.key), 1)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))
    return jax.tree.map(
      lambda p, u, key: round_at_random(p.astype(jnp.float32) + u, key),
      params,
      updates,
      keys,
    )
  return optax.apply_updates(params, updates)


def full_params(params: Any, opt_state: Any) -> Any:
  """Returns the parameters with all their digits, if the optimizer has them."""
  return opt_state.params if isinstance(opt_state, MasterState) else params


def round_at_random(x: jax.Array, key: jax.Array) -> jax.Array:
  """Rounds float32 to one of the two bfloat16 next to it; its mean is exact.

  Infinity and NaN stay what they are.
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  # A bfloat16 is the upper half of a float32. The lower half is the share of
  # the way to the next bfloat16, and noise carries over that often.
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  upper = (bits + noise) & jnp.uint32(0xFFFF0000)
  rounded = jax.lax.bitcast_convert_type(upper, jnp.float32)
  return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
