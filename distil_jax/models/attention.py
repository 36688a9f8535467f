"""Attention of whole sequences, by the kernel that suits the platform.

Rows are packed: a row's tokens stand in front, padding after them. So being
causal is mask enough, and kernels that know no other mask are right.

Where devices share a sequence each has a part of the queries, and all keys and
values of its sequences: with few KV heads these are the smaller part, and they
are exchanged once a layer. The later a part the more its queries see; all wait
for the last.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
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
_LANES, _LARGEST_BLOCK = 128, 512
# Tokens of a row whose logits plain XLA holds all at once.
_LARGEST_WHOLE = 2048


def causal(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  implementation: Implementation = "auto",
) -> jax.Array:
  """Each token attends to itself and to those before it.

  Args:
    query: shape `[B, S, N, H]`.
    key, value: N / K heads share one. Shape `[B, S, K, H]`.
    implementation: `auto` takes the platform's kernel where head size and
      type suit it, and `xla` elsewhere.

  Returns:
    Shape `[B, S, N, H]`.

  Raises:
    ValueError: the named implementation cannot run.
  """
  head_size, dtype = query.shape[-1], query.dtype
  if implementation != "auto":
    check(implementation, head_size=head_size, dtype=dtype)
    return _kernels()[implementation](query, key, value)
  kernels = {
    platform: _kernels()[name]
    for platform, name in by_platform(
      head_size=head_size, dtype=dtype, has_cudnn=has_cudnn()
    ).items()
  }
  if not kernels:
    return xla(query, key, value)
  # Known only when the program is lowered: a machine with CPUs alone may
  # compile for another one.
  return jax.lax.platform_dependent(query, key, value, default=xla, **kernels)


def after_shared(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  shared_key: jax.Array,
  shared_value: jax.Array,
  lengths: jax.Array,
) -> jax.Array:
  """Attends to what n = B / P rows share, and then causally to the own row.

  In plain XLA on every platform, for so many queries at a time that the logits
  of a long row are never all in memory.

  Args:
    query: rows that share stand in a row. Shape `[B, S, N, H]`.
    key, value: shape `[B, S, K, H]`.
    shared_key, shared_value: stand before the rows; they are read in place.
      Shape `[P, S0, K, H]`.
    lengths: how many columns of these count; may be 0. Shape `[P]`.

  Returns:
    Shape `[B, S, N, H]`.
  """
  batch_size, length = query.shape[:2]
  counted = jnp.arange(shared_key.shape[1])[None] < lengths[:, None]

  def block(first, queries):
    earlier = _earlier(first, queries.shape[1], length)
    own = _part(queries, key, value, earlier[None])
    # All queries to what they share, as if of one long row.
    by_prefix = queries.reshape(len(lengths), -1, *queries.shape[2:])
    shared = _part(by_prefix, shared_key, shared_value, counted[:, None])
    shared = (x.reshape(batch_size, -1, *x.shape[2:]) for x in shared)
    merged = merge_parts(*zip(own, shared, strict=True))
    return merged.astype(query.dtype)

  return _over_blocks(block, query)


def padding(length: int) -> int:
  """Columns to add so that devices along a sequence have equal parts of it.

  Parts that suit the TPU's kernel where that costs little.
  """
  count = sharding.num_shards("sequence")
  step = count
  if count > 1 and length >= 8 * count * _LANES:
    step = count * _LANES
  return -length % step


def merge_parts(
  attended: Sequence[jax.Array], log_sums: Sequence[jax.Array]
) -> jax.Array:
  """Attention over several sets of keys, from that over each of them.

  Args:
    attended: what was read from each set. Shape `[..., H]` each.
    log_sums: log Σ exp of the set's logits. Shape `[...]` each.

  Returns:
    Shape `[..., H]`, at least float32.
  """
  shares = jax.nn.softmax(jnp.stack(log_sums), axis=0)
  return jnp.sum(shares[..., None] * jnp.stack(attended), axis=0)


def _part(query, key, value, allowed):
  """Attention over one set of keys, and log Σ exp of its logits.

  Args:
    query: shape `[B, S, N, H]`.
    key, value: shape `[B, S', K, H]`.
    allowed: which keys a query may read; where it may read none, its sum is as
      good as 0. Shape `[B or 1, S or 1, S']`.

  Returns:
    Shape `[B, S, N, H]` and `[B, S, N]`, at least float32.
  """
  *rows, num_heads, head_size = query.shape
  num_kv_heads = key.shape[2]
  grouped = query.reshape(
    *rows, num_kv_heads, num_heads // num_kv_heads, head_size
  )
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  product = functools.partial(jnp.einsum, preferred_element_type=dtype)
  logits = product("bskrh,btkh->bksrt", grouped, key) * head_size**-0.5
  # Not -inf: the largest logit of no key at all must be a number.
  lowest = 0.5 * jnp.finfo(dtype).min
  logits = jnp.where(allowed[:, None, :, None], logits, lowest)
  largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  weights = jnp.exp(logits - largest)
  total = jnp.sum(weights, axis=-1)
  attended = product("bksrt,btkh->bksrh", weights.astype(value.dtype), value)
  attended = attended / total[..., None]
  log_sum = largest[..., 0] + jnp.log(total)
  return (
    jnp.swapaxes(attended, 1, 2).reshape(*rows, num_heads, head_size),
    jnp.swapaxes(log_sum, 1, 2).reshape(*rows, num_heads),
  )


def by_platform(
  *, head_size: int, dtype: jax.typing.DTypeLike, has_cudnn: bool
) -> Mapping[str, Implementation]:
  """What `auto` takes on each platform; `xla` on those that are not named.

  Args:
    head_size: H.
    dtype: of queries, keys and values.
    has_cudnn: JAX traces the GPU's kernel only where it finds one.
  """
  found = {}
  if _problem("splash", head_size, dtype) is None:
    found["tpu"] = "splash"
  if has_cudnn and _problem("cudnn", head_size, dtype) is None:
    found["cuda"] = "cudnn"
  return found


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
  problem = _problem(implementation, head_size, dtype)
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


def _problem(
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
      sizes = f"a multiple of {_LANES}"
      is_right = head_size % _LANES == 0
    case _:
      return None
  if not is_right:
    return f"needs a head size that is {sizes}, got head_size={head_size}"
  if name not in types:
    return f"computes in {' or '.join(types)}, got compute_dtype={name}"
  return None


def _kernels() -> Mapping[str, _Kernel]:
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
  added = -length % (count * _LANES)
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
    for size in range(_LANES, min(part, _LARGEST_BLOCK) + 1, _LANES)
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
    earlier = _earlier(first + start, queries.shape[1], key.shape[1])
    return jax.nn.dot_product_attention(
      queries, key, value, mask=earlier[None, None], implementation="xla"
    )

  return _over_blocks(block, query)


def _earlier(first, count: int, length: int) -> jax.Array:
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
