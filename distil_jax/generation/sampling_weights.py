"""Prepares parameters for sampling: casts, splits, merges and moves them."""

from typing import Any

import jax
from flax import nnx

from distil_jax.models import cached_forward, layers, lora
from distil_jax.models.decoder_config import LoRA


def prepare(
  graphdef: nnx.GraphDef,
  params: layers.Params,
  *,
  adapters: LoRA | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> cached_forward.Weights:
  """Returns parameters as they are sampled from.

  Args:
    graphdef: From `decoder.make`, without adapters.
    params: Parameters of the student.
    adapters: Those of the parameters, which are merged; None means that there
      are none.
    mesh: Where the weights go; None leaves them where they are.
  """
  # jit would copy arrays that it returns unchanged, so they are left out.
  unchanged = {k: v for k, v in params.items() if k != "layers"}
  changed = _changed_weights(graphdef, params, adapters=adapters)
  weights = {**unchanged, **changed}
  if mesh is None:
    return weights
  return jax.tree.map(
    _move_to_mesh, weights, cached_forward.shardings(mesh, weights)
  )


def cache_dtype(weights: cached_forward.Weights) -> str:
  """Returns the default type of keys and values."""
  array = weights["embedding"]
  platform = next(iter(array.sharding.device_set)).platform
  return array.dtype.name if platform == "cpu" else "bfloat16"


def _cast_or_split(
  graphdef: nnx.GraphDef, params: layers.Params, *, adapters: LoRA | None
) -> dict[str, Any]:
  """Returns the weights that must be cast, split or merged before decoding."""
  merged = lora.merge(params, adapters)
  return {
    name: value
    for name, value in cached_forward.by_layer(graphdef, merged).items()
    if name == "layers" or value.dtype != params[name].dtype
  }


def _move_to_mesh(
  x: jax.Array, target: jax.sharding.NamedSharding
) -> jax.Array:
  """Lays an array out on another mesh; nothing passes through the host.

  In some versions of JAX, `device_put` between meshes of the same devices
  copies through the host. A program does in none.
  """
  source = x.sharding
  if (
    isinstance(source, jax.sharding.NamedSharding)
    and _device_ids(source) == _device_ids(target)
    # A program would copy an array that is in its place already.
    and not source.is_equivalent_to(target, x.ndim)
  ):
    # A function of the module: jit would compile a new lambda at each call.
    return jax.jit(_identity, out_shardings=target)(x)
  return jax.device_put(x, target)


def _device_ids(sharding: jax.sharding.NamedSharding) -> list[int]:
  devices = sharding.mesh.devices
  assert devices is not None  # only an abstract mesh has none
  return [device.id for device in devices.flat]


def _identity(x: jax.Array) -> jax.Array:
  return x


# Shared by all engines, as their other programs are.
_changed_weights = jax.jit(
  _cast_or_split, static_argnums=0, static_argnames="adapters"
)
