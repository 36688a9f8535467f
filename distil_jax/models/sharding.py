"""Shardings of all arrays: one mesh and one table of logical axes.

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

# Devices next to each other along the last axes communicate most. Context is
# next to fsdp, so that both can act as one axis: for parameters, and in
# `without_context`.
AXES = ("data", "fsdp", "context", "tensor")

RULES: Mapping[str, str | tuple[str, ...] | None] = {
  "batch": ("data", "fsdp"),
  "sequence": "context",
  "copies": "data",
  "layers": None,
  "embed": ("fsdp", "context"),
  "embed_by_context": "context",
  "vocab": "tensor",
  "vocab_by_context": ("tensor", "context"),
  "vocab_by_all": ("tensor", "context", "fsdp"),
  "heads": "tensor",
  "kv_heads": "tensor",
  "head_size": None,
  "mlp": "tensor",
  "experts": "tensor",
}

LogicalAxes = tuple[str | None, ...]
_AXIS_TYPES = (AxisType.Auto,) * len(AXES)


def make_mesh(
  data: int = 1,
  fsdp: int = -1,
  tensor: int = 1,
  context: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """Builds the mesh; an axis of -1 takes the devices that the others leave.

  Args:
    data: Replicas of the parameters; each has its part of a batch.
    fsdp: Cuts parameters, and batches too.
    tensor: Cuts heads, MLP and vocabulary.
    context: Cuts parameters, and sequences along time.
    devices: None means all devices.

  Raises:
    ValueError: The sizes do not multiply to the number of devices.
  """
  count = len(devices) if devices is not None else jax.device_count()
  sizes = [data, fsdp, context, tensor]
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
    tuple(sizes), AXES, axis_types=_AXIS_TYPES, devices=devices
  )


def without_context(mesh: Mesh) -> Mesh:
  """Returns a mesh of the same devices with context merged into fsdp.

  It serves work without long rows. Every parameter stays on its device.
  """
  data, fsdp, context, tensor = (mesh.shape[axis] for axis in AXES)
  devices = mesh.devices.reshape(data, fsdp * context, 1, tensor)
  return Mesh(devices, AXES, axis_types=_AXIS_TYPES)


def partition_spec(axes: LogicalAxes) -> PartitionSpec:
  """Translates logical axes into a spec; None stays unsharded."""
  return PartitionSpec(*(None if a is None else RULES[a] for a in axes))


def sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
  """Returns the sharding of an array with these logical axes."""
  return NamedSharding(mesh, partition_spec(axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Constrains an array's sharding on the mesh in use, if there is one."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def num_shards(axis: str) -> int:
  """Returns the parts into which the mesh in use cuts a logical axis.

  1 without a mesh.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else _size(mesh, axis)


def _size(mesh, axis: str | None) -> int:
  """Returns the number of devices along a logical axis."""
  return math.prod(mesh.shape[name] for name in _mesh_axes(axis))


def _mesh_axes(axis: str | None) -> tuple[str, ...]:
  """Returns the mesh axes that carry a logical axis."""
  names = (RULES[axis] if axis else None) or ()
  return (names,) if isinstance(names, str) else names


def for_logits(
  batch_size: int, length: int, vocab_size: int
) -> tuple[str, str]:
  """Returns the logical axes along which logits of whole sequences are cut.

  Devices that share a sequence along time share its logits by vocabulary. So
  do devices that share parameters, if it is cheaper to move the hidden states
  of all tokens than all rows of the unembedding.

  Args:
    batch_size: B.
    length: T.
    vocab_size: V.

  Returns:
    Logical axes of batch and vocabulary.
  """
  num_rows = batch_size * length // num_shards("copies")
  if num_shards("vocab_by_all") == num_shards("vocab"):
    return "batch", "vocab"
  if num_rows < vocab_size // num_shards("vocab") and not (
    vocab_size % num_shards("vocab_by_all")
  ):
    return "copies", "vocab_by_all"
  if vocab_size % num_shards("vocab_by_context"):
    return "batch", "vocab"
  return "batch", "vocab_by_context"


def top_k(
  x: jax.Array, k: int, *, batch: str = "batch", vocab: str = "vocab"
) -> tuple[jax.Array, jax.Array]:
  """Returns `jax.lax.top_k` of logits that may be cut along the vocabulary.

  Each device takes the largest logits of its own part, and only these are
  exchanged. Left to its own partitioning, XLA would gather the logits.

  Args:
    x: Shape `[t, B, V]`.
    k: At most V.
    batch, vocab: Logical axes, as from `for_logits`.

  Returns:
    Values, and their indices in V; equal values are ordered by index. Shape
    `[t, B, k]` each.
  """
  batch_size, vocab_size = x.shape[1:]
  parts = num_shards(vocab)
  if parts == 1 and num_shards(batch) == 1:
    return jax.lax.top_k(x, k)
  # An axis that the devices do not cut evenly is replicated.
  rows = None if batch_size % num_shards(batch) else batch
  columns = None if vocab_size % parts else vocab

  def local_top_k(x):
    values, indices = jax.lax.top_k(x, min(k, x.shape[-1]))
    if columns is None:
      return values, indices
    axis = RULES[vocab]
    indices = indices + jax.lax.axis_index(axis) * x.shape[-1]
    values, indices = (
      jax.lax.all_gather(found, axis, axis=2, tiled=True)
      for found in (values, indices)
    )
    values, order = jax.lax.top_k(values, k)
    return values, jnp.take_along_axis(indices, order, axis=-1)

  spec = partition_spec((None, rows, None))
  return jax.shard_map(
    local_top_k,
    in_specs=partition_spec((None, rows, columns)),
    out_specs=(spec, spec),
    # All devices that share a part of the batch have the same result, but JAX
    # cannot see that.
    check_vma=False,
  )(x)


def batch_size_multiple(
  mesh: Mesh, axes: Sequence[str] = ("data", "fsdp")
) -> int:
  """Returns the number that the size of a batch must be a multiple of.

  Args:
    mesh: Any mesh.
    axes: Mesh axes that cut the batch.
  """
  return math.prod(mesh.shape[axis] for axis in axes)


def check_divisible(mesh: Mesh, shapes: Any, axes) -> None:
  """Refuses parameters that the mesh cannot cut evenly.

  Args:
    mesh: The mesh in use.
    shapes: Parameters, or anything with their shapes.
    axes: `LogicalAxes` of each parameter, in the same tree.

  Raises:
    ValueError: Names each parameter, its axis, both numbers and the cure.
  """
  problems = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    names = axes
    for entry in path:
      names = names[entry.key]
    for name, size in zip(names, leaf.shape, strict=True):
      if size % _size(mesh, name):
        where = "/".join(str(entry.key) for entry in path)
        over = " times ".join(
          f"mesh.{axis}={mesh.shape[axis]}"
          for axis in _mesh_axes(name)
          if mesh.shape[axis] > 1
        )
        problems.append(
          f"{where}: {name} of size {size} over {over}; choose a divisor of "
          f"{size}"
        )
  if problems:
    raise ValueError(
      "the mesh does not divide these parameters:\n  " + "\n  ".join(problems)
    )


def put_batch(mesh: Mesh, tree: Any) -> Any:
  """Puts host arrays onto the mesh, the leading axis over the batch axes.

  Each process passes its own rows; together they make the global array.
  """
  batch_sharding = sharding(mesh, "batch")
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(
      batch_sharding, np.asarray(x)
    ),
    tree,
  )


def rows_of_process(x: jax.Array, process: int) -> np.ndarray:
  """Returns the numbers of a process's rows of a batch, in its own order.

  A mesh may have the devices in another order than the processes.
  """
  places = x.sharding.devices_indices_map(x.shape).items()
  parts = {
    index[0].indices(len(x))
    for device, index in places
    if device.process_index == process
  }
  return np.concatenate([np.arange(*part) for part in sorted(parts)])


def local_rows(x: jax.Array) -> np.ndarray:
  """Returns this process's rows of a batch on the host; undoes `put_batch`."""
  # Several devices may hold the same rows; one copy of each is enough.
  shards = {(s.index[0].start or 0): s.data for s in x.addressable_shards}
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
