"""Attention over whole sequences: XLA, cuDNN and splash."""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as pallas_splash
from jax.extend import backend

from distil_jax.models import sharding

Implementation = Literal["auto", "xla", "cudnn", "splash"]


# (query, key, value) -> what is attended to.
_Kernel = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


# Head sizes of the GPU kernel, on every GPU that has it.
_CUDNN_STEP, _CUDNN_MOST = 8, 128


# The TPU kernel's lanes, and the most rows and columns of one of its blocks.
LANES, _LARGEST_BLOCK = 128, 512


# Tokens of a row whose logits plain XLA holds all at once.
_LARGEST_WHOLE = 2048


def has_cudnn() -> bool:
  """Whether this process computes on a CUDA GPU."""
  return "cuda" in backend.get_backend().platform_version


def check(
  implementation: Implementation,
  *,
  head_size: int,
  dtype: jax.typing.DTypeLike,
) -> None:
  """Refuses an implementation that head size or type do not suit.

  Raises:
    ValueError: with both values and the cure.
  """
  problem = find_problem(implementation, head_size, dtype)
  if problem is not None:
    raise ValueError(
      f"attention={implementation} {problem}; use attention=auto or xla"
    )


def check_platform(implementation: Implementation, platform: str) -> None:
  """Refuses an implementation that does not run on `cpu`, `gpu` or `tpu`.

  Raises:
    ValueError: with both values and the cure.
  """
  needed = {"cudnn": "gpu", "splash": "tpu"}.get(implementation, platform)
  if platform != needed:
    raise ValueError(
      f"attention={implementation} runs on a {needed}, and this is a "
      f"{platform}; use attention=auto or xla"
    )


def find_problem(
  implementation: Implementation, head_size: int, dtype: jax.typing.DTypeLike
) -> str | None:
  """Why head size or type do not suit; None where they do."""
  name = jnp.dtype(dtype).name
  types, sizes, is_right = ((), "", True)
  match implementation:
    case "cudnn":
      types = ("bfloat16", "float16")
      sizes = f"a multiple of {_CUDNN_STEP}, at most {_CUDNN_MOST}"
      is_right = head_size % _CUDNN_STEP == 0 and head_size <= _CUDNN_MOST
    case "splash":
      types = ("bfloat16", "float32")
      sizes = f"a multiple of {LANES}"
      is_right = head_size % LANES == 0
    case _:
      return None
  if not is_right:
    return f"needs a head size that is {sizes}, got head_size={head_size}"
  if name not in types:
    return f"computes in {' or '.join(types)}, got compute_dtype={name}"
  return None


def select_kernel() -> Mapping[str, _Kernel]:
  return {"xla": xla, "cudnn": cudnn, "splash": splash}


def xla(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """On every platform; of long rows for some queries at a time."""
  if _num_parts(query) > 1:
    # Left to itself XLA would gather the logits.
    return _on_devices(_xla_from, query, key, value)
  if query.shape[1] > _LARGEST_WHOLE:
    return _xla_from(query, key, value, 0)
  return jax.nn.dot_product_attention(
    query, key, value, is_causal=True, implementation="xla"
  )


def cudnn(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """On CUDA GPUs, block by block; not where devices share a sequence."""
  if not has_cudnn():
    check_platform("cudnn", jax.default_backend())
  if _num_parts(query) > 1:
    # The kernel's queries begin where its keys do.
    return xla(query, key, value)
  return jax.nn.dot_product_attention(
    query, key, value, is_causal=True, implementation="cudnn"
  )


def splash(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  interpret: bool = False,
) -> jax.Array:
  """On TPUs, block by block.

  Args:
    query, key, value: as for `causal`.
    interpret: runs the kernel step by step on any platform, slowly.
  """
  length, head_size = query.shape[1], query.shape[-1]
  count = _num_parts(query)
  added = -length % (count * LANES)
  if added:
    query, key, value = (
      jnp.pad(x, ((0, 0), (0, added), (0, 0), (0, 0)))
      for x in (query, key, value)
    )
  query = query * jnp.asarray(head_size**-0.5, query.dtype)
  shared = sharding.num_shards("heads")
  kernel = _splash_kernel(
    length + added, query.shape[2] // shared, count, interpret=interpret
  )

  def attend(kernel, query, key, value):
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    attended = jax.vmap(lambda *x: kernel(*x))(*heads_first)
    return jnp.swapaxes(jnp.asarray(attended), 1, 2)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return attend(kernel, query, key, value)[:, :length]
  # A kernel is a closed box to XLA: it would gather whole arrays for it.
  queries, keys = _places(query)
  if count > 1:
    key, value = _exchanged(key), _exchanged(value)
  of_kernel = sharding.partition_spec((None, "sequence"))
  attended = jax.shard_map(
    attend,
    in_specs=(
      kernel.manual_sharding_spec(jax.sharding.NamedSharding(mesh, of_kernel)),
      queries,
      keys,
      keys,
    ),
    out_specs=queries,
    check_vma=False,  # a kernel does not say over which axes it varies
  )(kernel, query, key, value)
  return attended[:, :length]


def _splash_kernel(length, num_heads: int, count: int, *, interpret: bool):
  """Of one device's heads and 1 / count of the queries."""
  part = length // count
  block = max(
    size
    for size in range(LANES, min(part, _LARGEST_BLOCK) + 1, LANES)
    if part % size == 0
  )
  mask = pallas_splash.CausalMask((length, length))
  return pallas_splash.make_splash_mha(
    pallas_splash.MultiHeadMask([mask] * num_heads),
    block_sizes=_blocks(block),
    head_shards=1,
    q_seq_shards=count,
    interpret=interpret,
  )


def _num_parts(query: jax.Array) -> int:
  """Into how many parts devices cut the queries; 1 where it is not even."""
  count = sharding.num_shards("sequence")
  return count if query.shape[1] % count == 0 else 1


def _places(query: jax.Array):
  """Of queries, and of keys and values, which are whole along time."""
  batch = None if len(query) % sharding.num_shards("batch") else "batch"
  sequence = None if _num_parts(query) == 1 else "sequence"
  return (
    sharding.partition_spec((batch, sequence, "heads", "head_size")),
    sharding.partition_spec((batch, None, "kv_heads", "head_size")),
  )


def _exchanged(x: jax.Array) -> jax.Array:
  """Keys or values for all devices that share a sequence.

  Each makes those of its own part: XLA would rather exchange what they are
  made from, and have each device make all of them.
  """
  batch = None if len(x) % sharding.num_shards("batch") else "batch"
  return sharding.constrain(x, batch, "sequence", "kv_heads", None)


def _on_devices(attend, query, key, value):
  """Each device's queries, to all keys of their sequences.

  Args:
    attend: `(query, key, value, first)`, where the first query stands.
    query, key, value: as for `causal`.
  """
  queries, keys = _places(query)

  def of_device(query, key, value):
    place = jax.lax.axis_index(sharding.RULES["sequence"])
    return attend(query, key, value, place * query.shape[1])

  return jax.shard_map(
    of_device, in_specs=(queries, keys, keys), out_specs=queries
  )(query, _exchanged(key), _exchanged(value))


def _xla_from(query, key, value, first):
  """Queries from some column on; logits of a block of them at a time."""

  def block(start, queries):
    earlier = is_earlier(first + start, queries.shape[1], key.shape[1])
    return jax.nn.dot_product_attention(
      queries, key, value, mask=earlier[None, None], implementation="xla"
    )

  return _over_blocks(block, query)


def is_earlier(first, count: int, length: int) -> jax.Array:
  """Which of the columns each of some queries sees. Shape `[count, length]`."""
  columns = jnp.arange(count)[:, None] + first
  return columns >= jnp.arange(length)[None]


def _over_blocks(block, query: jax.Array) -> jax.Array:
  """`block(start, queries)` of all queries, `[B, S, N, H]`, in turn.

  The logits of a block are made again in the backward pass, not kept.
  """
  batch_size, length = query.shape[:2]
  if length <= _LARGEST_BLOCK:
    return block(0, query)
  num_blocks = -(-length // _LARGEST_BLOCK)
  added = num_blocks * _LARGEST_BLOCK - length
  blocks = jnp.pad(query, ((0, 0), (0, added), (0, 0), (0, 0)))
  blocks = blocks.reshape(
    batch_size, num_blocks, _LARGEST_BLOCK, *query.shape[2:]
  )
  starts = jnp.arange(num_blocks) * _LARGEST_BLOCK
  attended = jax.lax.map(
    jax.checkpoint(lambda inputs: block(*inputs)),
    (starts, jnp.moveaxis(blocks, 1, 0)),
  )
  attended = jnp.moveaxis(attended, 0, 1)
  return attended.reshape(batch_size, -1, *query.shape[2:])[:, :length]


def _blocks(size: int) -> pallas_splash.BlockSizes:
  """Squares, in the forward pass and in both backward passes."""
  return pallas_splash.BlockSizes(
    block_q=size,
    block_kv=size,
    block_q_dkv=size,
    block_kv_dkv=size,
    block_q_dq=size,
    block_kv_dq=size,
  )
