"""Where every array lives: one mesh, one table of logical axes.

Parameters and activations name their axes by meaning; `RULES` says which mesh
axis carries each. Nothing else in the package mentions a mesh axis.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
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
