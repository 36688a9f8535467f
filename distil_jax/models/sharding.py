"""Where every array lives: one mesh, one table of logical axes.

Parameters and activations name their axes by meaning; `RULES` says which mesh
axis carries each. Nothing else in the package mentions a mesh axis.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

RULES: Mapping[str, str | tuple[str, ...] | None] = {
  "batch": ("data", "fsdp"),
  "layers": None,
  "embed": "fsdp",
  "vocab": "tensor",
  "heads": "tensor",
  "kv_heads": "tensor",
  "head_size": None,
  "mlp": "tensor",
}

LogicalAxes = tuple[str | None, ...]


def make_mesh(
  data: int = 1,
  fsdp: int = -1,
  tensor: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """Builds the mesh; an axis of -1 takes the devices that the others leave.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  count = len(devices) if devices is not None else jax.device_count()
  sizes = [data, fsdp, tensor]
  fixed = math.prod(size for size in sizes if size != -1)
  if -1 in sizes and count % fixed == 0:
    sizes[sizes.index(-1)] = count // fixed
  if math.prod(sizes) != count:
    named = ", ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True))
    raise ValueError(
      f"mesh {named} does not fit {count} devices: the sizes must multiply to "
      f"{count}; set one of them to -1 to take the rest"
    )
  return jax.make_mesh(
    tuple(sizes),
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
    devices=devices,
  )


def partition_spec(axes: LogicalAxes) -> PartitionSpec:
  """Translates logical axes; None stays unsharded."""
  return PartitionSpec(*(None if a is None else RULES[a] for a in axes))


def sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
  return NamedSharding(mesh, partition_spec(axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Pins an activation to its place on the mesh in use, if there is one."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def num_shards(axis: str) -> int:
  """Into how many parts the mesh in use cuts a logical axis; 1 without one."""
  mesh = jax.sharding.get_abstract_mesh()
  names = RULES[axis]
  if mesh.empty or names is None:
    return 1
  names = (names,) if isinstance(names, str) else names
  return math.prod(mesh.shape[name] for name in names)


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """`jax.lax.top_k` of logits that may be cut along the vocabulary.

  Each device takes the largest of its own part, and only these are exchanged;
  left to itself XLA gathers the logits.

  Args:
    x: shape `[t, B, V]`.
    k: at most V.

  Returns:
    values, and their indices in V; of equal ones, those with the lower come
    first. Shape `[t, B, k]` each.
  """
  batch_size, vocab_size = x.shape[1:]
  parts = num_shards("vocab")
  if parts == 1 and num_shards("batch") == 1:
    return jax.lax.top_k(x, k)
  # What is not cut evenly is on every device.
  batch = None if batch_size % num_shards("batch") else "batch"
  vocab = None if vocab_size % parts else "vocab"

  def of_part(x):
    values, indices = jax.lax.top_k(x, min(k, x.shape[-1]))
    if vocab is None:
      return values, indices
    axis = RULES["vocab"]
    indices = indices + jax.lax.axis_index(axis) * x.shape[-1]
    values, indices = (
      jax.lax.all_gather(found, axis, axis=2, tiled=True)
      for found in (values, indices)
    )
    values, places = jax.lax.top_k(values, k)
    return values, jnp.take_along_axis(indices, places, axis=-1)

  place = partition_spec((None, batch, None))
  return jax.shard_map(
    of_part,
    in_specs=partition_spec((None, batch, vocab)),
    out_specs=(place, place),
    check_vma=False,  # the same on all devices that share the batch's part
  )(x)


def batch_size_multiple(mesh: Mesh) -> int:
  """What the leading axis of a batch must be a multiple of."""
  return math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))


def check_divisible(mesh: Mesh, shapes: Any, axes) -> None:
  """Refuses parameters that the mesh cannot cut evenly.

  Args:
    mesh: the mesh in use.
    shapes: parameters, or anything with their shapes.
    axes: `LogicalAxes` of each parameter, same tree.

  Raises:
    ValueError: names each parameter, its axis, both numbers and the cure.
  """
  problems = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    names = axes
    for entry in path:
      names = names[entry.key]
    for name, size in zip(names, leaf.shape, strict=True):
      mesh_axis = RULES[name] if name else None
      if mesh_axis and size % mesh.shape[mesh_axis]:
        where = "/".join(str(entry.key) for entry in path)
        problems.append(
          f"{where}: {name} of size {size} over mesh.{mesh_axis}="
          f"{mesh.shape[mesh_axis]}; choose a divisor of {size}"
        )
  if problems:
    raise ValueError(
      "the mesh does not divide these parameters:\n  " + "\n  ".join(problems)
    )


def put_batch(mesh: Mesh, tree: Any) -> Any:
  """Host arrays to the mesh, leading axis over the batch axes.

  Each process passes its own rows; together they make the global array.
  """
  place = sharding(mesh, "batch")
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(place, np.asarray(x)),
    tree,
  )


def local_rows(x: jax.Array) -> np.ndarray:
  """This process's rows of a batch, on the host; undoes `put_batch`."""
  shards = {(s.index[0].start or 0): s.data for s in x.addressable_shards}
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
