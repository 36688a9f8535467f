"""Low-rank adapters beside frozen weights.

The parameters of an adapter stand in the tree of the network beside the matrix
that they change. `split` and `join` part the two, so that the optimizer, the
teacher and the checkpoints hold the adapter alone.

See "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685).
"""

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from distil_jax.models.decoder_config import LoRA

# Names of the matrices in PEFT, and here.
TARGETS = {
  "q_proj": "query",
  "k_proj": "key",
  "v_proj": "value",
  "o_proj": "output",
  "gate_proj": "gate",
  "up_proj": "up",
  "down_proj": "down",
}
# Those of an MLP, which experts do not have.
MLP = ("gate", "up", "down")
_A, _B = "_lora_a", "_lora_b"


def names(target: str) -> tuple[str, str]:
  """Returns the names of A and B of a matrix."""
  return target + _A, target + _B


def is_adapter(name: str) -> bool:
  """Returns True if a parameter of this name belongs to an adapter."""
  return name.endswith((_A, _B))


def split(params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the parameters without adapters, and the adapters alone."""
  layers = params["layers"]
  base = {k: v for k, v in layers.items() if not is_adapter(k)}
  adapter = {k: v for k, v in layers.items() if is_adapter(k)}
  return {**params, "layers": base}, {"layers": adapter}


def join(base: dict[str, Any] | None, params: dict[str, Any]) -> dict[str, Any]:
  """Returns the parameters of the network; undoes `split`.

  Args:
    base: Frozen parameters; None means that `params` are all of them.
    params: The adapters.
  """
  if base is None:
    return params
  return {**base, "layers": {**base["layers"], **params["layers"]}}


def init(template: dict[str, Any], key: jax.Array) -> dict[str, Any]:
  """Returns new adapters, whose product is 0.

  A is uniform with the variance of PEFT's, and B is 0.

  Args:
    template: Shapes of the adapters, as from `split`.
    key: Random key.
  """

  def draw(path, leaf):
    name = path[-1].key
    if name.endswith(_B):
      return jnp.zeros(leaf.shape, leaf.dtype)
    # Each matrix has a key by its name: others do not change it.
    own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    bound = math.prod(leaf.shape[1:-1]) ** -0.5
    return jax.random.uniform(
      own_key, leaf.shape, leaf.dtype, minval=-bound, maxval=bound
    )

  return jax.tree_util.tree_map_with_path(draw, template)


def merge(
  params: dict[str, Any], lora: LoRA | None, dtype: Any = None
) -> dict[str, Any]:
  """Returns parameters of the network without adapters that compute the same.

  Args:
    params: Weights and adapters.
    lora: Describes the adapters; None means that there are none.
    dtype: Type of the sums, which are taken in float32; None means that of the
      weights.
  """
  if lora is None:
    return params
  base, adapter = split(params)
  merged = dict(base["layers"])
  for target in lora.targets:
    weight = merged[target]
    a, b = (
      adapter["layers"][name].astype(jnp.float32) for name in names(target)
    )
    num_layers, rank = len(weight), lora.rank
    product = jnp.matmul(
      a.reshape(num_layers, -1, rank),
      b.reshape(num_layers, rank, -1),
      preferred_element_type=jnp.float32,
    )
    total = weight.astype(jnp.float32) + lora.scale * product.reshape(
      weight.shape
    )
    merged[target] = total.astype(dtype or weight.dtype)
  return {**base, "layers": merged}
