"""Attention of whole sequences, by the kernel that suits the platform.

Rows are packed: a row's tokens stand in front, padding after them. So being
causal is mask enough, and kernels that know no other mask are right.
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

  def block(inputs):
    first, queries = inputs
    columns = jnp.arange(queries.shape[1])[:, None] + first
    earlier = columns >= jnp.arange(length)[None]
    own = _part(queries, key, value, earlier[None])
    # All queries to what they share, as if of one long row.
    by_prefix = queries.reshape(len(lengths), -1, *queries.shape[2:])
    shared = _part(by_prefix, shared_key, shared_value, counted[:, None])
    shared = (x.reshape(batch_size, -1, *x.shape[2:]) for x in shared)
    merged = merge_parts(*zip(own, shared, strict=True))
    return merged.astype(query.dtype)

  if length <= _LARGEST_BLOCK:
    return block((0, query))
  num_blocks = -(-length // _LARGEST_BLOCK)
  padding = num_blocks * _LARGEST_BLOCK - length
  blocks = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))
  blocks = blocks.reshape(
    batch_size, num_blocks, _LARGEST_BLOCK, *query.shape[2:]
  )
  firsts = jnp.arange(num_blocks) * _LARGEST_BLOCK
  attended = jax.lax.map(
    jax.checkpoint(block), (firsts, jnp.moveaxis(blocks, 1, 0))
  )
  attended = jnp.moveaxis(attended, 0, 1)
  return attended.reshape(batch_size, -1, *query.shape[2:])[:, :length]


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
  """On every platform; holds the logits of all pairs of tokens."""
  return jax.nn.dot_product_attention(
    query, key, value, is_causal=True, implementation="xla"
  )


def cudnn(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """On CUDA GPUs, block by block."""
  if not has_cudnn():
    check_platform("cudnn", jax.default_backend())
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
  attend = functools.partial(_splash, interpret=interpret)
  if jax.sharding.get_abstract_mesh().empty:
    return attend(query, key, value)
  # A kernel is a closed box to XLA: it would gather whole arrays for it.
  batch = None if len(query) % sharding.num_shards("batch") else "batch"
  heads = sharding.partition_spec((batch, None, "heads", "head_size"))
  kv_heads = sharding.partition_spec((batch, None, "kv_heads", "head_size"))
  return jax.shard_map(
    attend,
    in_specs=(heads, kv_heads, kv_heads),
    out_specs=heads,
    check_vma=False,  # a kernel does not say over which axes it varies
  )(query, key, value)


def _splash(query, key, value, *, interpret: bool):
  """Of one device. Shapes as for `causal`."""
  length, num_heads, head_size = query.shape[1:]
  padded = -(-length // _LANES) * _LANES
  block = max(
    size
    for size in range(_LANES, min(padded, _LARGEST_BLOCK) + 1, _LANES)
    if padded % size == 0
  )
  mask = pallas_splash.CausalMask((padded, padded))
  kernel = pallas_splash.make_splash_mha(
    pallas_splash.MultiHeadMask([mask] * num_heads),
    block_sizes=_blocks(block),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )

  def heads_first(x):
    x = jnp.pad(x, ((0, 0), (0, padded - length), (0, 0), (0, 0)))
    return jnp.swapaxes(x, 1, 2)

  scaled = query * jnp.asarray(head_size**-0.5, query.dtype)
  attended = jax.vmap(kernel)(*map(heads_first, (scaled, key, value)))
  return jnp.swapaxes(jnp.asarray(attended), 1, 2)[:, :length]


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
