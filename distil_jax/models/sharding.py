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

# Neighbours along the last axes talk most. Context stands beside fsdp, so that
# the two can be taken together: by parameters, and by `without_context`.
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
    data: copies of the parameters; each has its part of a batch.
    fsdp: cuts parameters, and batches too.
    tensor: cuts heads, MLP and vocabulary.
    context: cuts parameters, and sequences along time.
    devices: None: all there are.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
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
  """The same devices with context joined to fsdp, for what has no long rows.

  Every parameter stays where it is.
  """
  data, fsdp, context, tensor = (mesh.shape[axis] for axis in AXES)
  devices = mesh.devices.reshape(data, fsdp * context, 1, tensor)
  return Mesh(devices, AXES, axis_types=_AXIS_TYPES)


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
  return 1 if mesh.empty else _size(mesh, axis)


def _size(mesh, axis: str | None) -> int:
  """Devices of a mesh along a logical axis."""
  return math.prod(mesh.shape[name] for name in _mesh_axes(axis))


def _mesh_axes(axis: str | None) -> tuple[str, ...]:
  names = (RULES[axis] if axis else None) or ()
  return (names,) if isinstance(names, str) else names


def for_logits(
  batch_size: int, length: int, vocab_size: int
) -> tuple[str, str]:
  """How logits of whole sequences are cut: by the batch, and the vocabulary.

  Devices that share a sequence along time share its logits by vocabulary. So
  do those that share parameters where fewer numbers move so: hidden states of
  all tokens in place of all rows of the unembedding.

  Args:
    batch_size: B.
    length: T.
    vocab_size: V.

  Returns:
    logical axes of batch and vocabulary.
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
  """`jax.lax.top_k` of logits that may be cut along the vocabulary.

  Each device takes the largest of its own part, and only these are exchanged;
  left to itself XLA gathers the logits.

  Args:
    x: shape `[t, B, V]`.
    k: at most V.
    batch, vocab: logical axes, as from `for_logits`.

  Returns:
    values, and their indices in V; of equal ones, those with the lower come
    first. Shape `[t, B, k]` each.
  """
  batch_size, vocab_size = x.shape[1:]
  parts = num_shards(vocab)
  if parts == 1 and num_shards(batch) == 1:
    return jax.lax.top_k(x, k)
  # What is not cut evenly is on every device.
  rows = None if batch_size % num_shards(batch) else batch
  columns = None if vocab_size % parts else vocab

  def of_part(x):
    values, indices = jax.lax.top_k(x, min(k, x.shape[-1]))
    if columns is None:
      return values, indices
    axis = RULES[vocab]
    indices = indices + jax.lax.axis_index(axis) * x.shape[-1]
    values, indices = (
      jax.lax.all_gather(found, axis, axis=2, tiled=True)
      for found in (values, indices)
    )
    values, places = jax.lax.top_k(values, k)
    return values, jnp.take_along_axis(indices, places, axis=-1)

  place = partition_spec((None, rows, None))
  return jax.shard_map(
    of_part,
    in_specs=partition_spec((None, rows, columns)),
    out_specs=(place, place),
    check_vma=False,  # the same on all devices that share the batch's part
  )(x)


def batch_size_multiple(
  mesh: Mesh, axes: Sequence[str] = ("data", "fsdp")
) -> int:
  """What the leading axis of a batch must be a multiple of.

  Args:
    mesh: any.
    axes: that cut the batch.
  """
  return math.prod(mesh.shape[axis] for axis in axes)


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
