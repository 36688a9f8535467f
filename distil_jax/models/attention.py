"""Causal attention over whole sequences.

Rows are packed: a row's tokens stand in front and its padding after them. A
causal mask is therefore enough, and kernels that know no other mask are
correct.

With context parallelism each device has a part of the queries and all keys and
values of its sequences. With few key-value heads these are the smaller part,
and they are gathered once a layer. Later parts of a sequence attend to more
keys, so the device with the last part sets the pace.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from distil_jax.models import sharding
from distil_jax.models.kernels.sequence_attention import (
  LANES,
  LARGEST_BLOCK,
  Implementation,
  by_platform,
  check,
  check_platform,
  has_cudnn,
  splash_kernel,
)

# (query, key, value) -> the attention output.
_Kernel = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# The longest row for which plain XLA holds all logits at once, in tokens.
_LARGEST_WHOLE = 2048


def causal(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  implementation: Implementation = "auto",
) -> jax.Array:
  """Returns attention of each token to itself and to the tokens before it.

  Args:
    query: Shape `[B, S, N, H]`.
    key, value: Each head serves N / K query heads. Shape `[B, S, K, H]`.
    implementation: `auto` takes the platform's kernel if it supports the head
      size and the type, and `xla` otherwise.

  Returns:
    Shape `[B, S, N, H]`.

  Raises:
    ValueError: The named implementation cannot run.
  """
  head_size, dtype = query.shape[-1], query.dtype
  if implementation != "auto":
    check(implementation, head_size=head_size, dtype=dtype)
    return select_kernel()[implementation](query, key, value)
  kernels = {
    platform: select_kernel()[name]
    for platform, name in by_platform(
      head_size=head_size, dtype=dtype, has_cudnn=has_cudnn()
    ).items()
  }
  if not kernels:
    return xla(query, key, value)
  # The platform is known only when the program is lowered: a machine that has
  # CPUs alone may compile for another one.
  return jax.lax.platform_dependent(query, key, value, default=xla, **kernels)


def after_shared(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  shared_key: jax.Array,
  shared_value: jax.Array,
  lengths: jax.Array,
) -> jax.Array:
  """Returns attention to a shared prefix and, causally, to the row itself.

  Each prefix serves n = B / P rows. Computed in plain XLA on every platform, a
  block of queries at a time, so that all logits of a long row are never in
  memory at once.

  Args:
    query: Rows with the same prefix stand next to each other. Shape
      `[B, S, N, H]`.
    key, value: Shape `[B, S, K, H]`.
    shared_key, shared_value: Keys and values of the prefixes, read without
      repeating them. Shape `[P, S0, K, H]`.
    lengths: Number of columns of each prefix that count; may be 0. Shape `[P]`.

  Returns:
    Shape `[B, S, N, H]`.
  """
  batch_size, length = query.shape[:2]
  counted = jnp.arange(shared_key.shape[1])[None] < lengths[:, None]

  def block(first, queries):
    earlier = is_earlier(first, queries.shape[1], length)
    own = _attend_to(queries, key, value, earlier[None])
    # All rows of a prefix attend to it as one long row, so its keys and values
    # are not repeated for each of them.
    by_prefix = queries.reshape(len(lengths), -1, *queries.shape[2:])
    shared = _attend_to(by_prefix, shared_key, shared_value, counted[:, None])
    shared = (x.reshape(batch_size, -1, *x.shape[2:]) for x in shared)
    merged = merge_parts(*zip(own, shared, strict=True))
    return merged.astype(query.dtype)

  return _over_blocks(block, query)


def padding(length: int) -> int:
  """Returns how many columns to add so that a sequence is cut evenly.

  Long sequences are padded to parts that suit the TPU kernel, because this
  costs little there.
  """
  count = sharding.num_shards("sequence")
  step = count
  if count > 1 and length >= 8 * count * LANES:
    step = count * LANES
  return -length % step


def merge_parts(
  attended: Sequence[jax.Array], log_sums: Sequence[jax.Array]
) -> jax.Array:
  """Merges attention over disjoint sets of keys into attention over all.

  Args:
    attended: Attention output of each set of keys. Shape `[..., H]` each.
    log_sums: log Σ exp of the logits of each set. Shape `[...]` each.

  Returns:
    Shape `[..., H]`, at least float32.
  """
  shares = jax.nn.softmax(jnp.stack(log_sums), axis=0)
  return jnp.sum(shares[..., None] * jnp.stack(attended), axis=0)


def _attend_to(query, key, value, allowed):
  """Returns attention over one set of keys, and log Σ exp of its logits.

  Args:
    query: Shape `[B, S, N, H]`.
    key, value: Shape `[B, S', K, H]`.
    allowed: True where a query may read a key; a query that may read none gets
      a sum that is as good as 0. Shape `[B or 1, S or 1, S']`.

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
  # Finite rather than -inf: with no key at all the largest logit must still be
  # a number, or its difference to itself is NaN.
  lowest = 0.5 * jnp.finfo(dtype).min
  logits = jnp.where(allowed[:, None, :, None], logits, lowest)
  # The shift cancels in the result, so no gradient has to pass through it.
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


def select_kernel() -> Mapping[str, _Kernel]:
  """Returns the implementations by name."""
  return {"xla": xla, "cudnn": cudnn, "splash": splash}


def xla(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Computes causal attention in plain XLA, on every platform.

  Long rows are computed a block of queries at a time. Arguments and result are
  as for `causal`.
  """
  if _num_parts(query) > 1:
    # Left to its own partitioning, XLA would gather the logits.
    return _on_devices(_xla_from, query, key, value)
  if query.shape[1] > _LARGEST_WHOLE:
    return _xla_from(query, key, value, 0)
  return jax.nn.dot_product_attention(
    query, key, value, is_causal=True, implementation="xla"
  )


def cudnn(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Computes causal attention with cuDNN, on CUDA GPUs.

  With context parallelism plain XLA is used instead. Arguments and result are
  as for `causal`.
  """
  if not has_cudnn():
    check_platform("cudnn", jax.default_backend())
  if _num_parts(query) > 1:
    # The kernel assumes that its queries begin where its keys begin.
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
  """Computes causal attention with the Pallas kernel, on TPUs.

  Args:
    query, key, value: As for `causal`.
    interpret: Interprets the kernel, slowly, on any platform.

  Returns:
    Shape `[B, S, N, H]`.
  """
  length, head_size = query.shape[1], query.shape[-1]
  count = _num_parts(query)
  added = -length % (count * LANES)
  if added:
    query, key, value = (
      jnp.pad(x, ((0, 0), (0, added), (0, 0), (0, 0)))
      for x in (query, key, value)
    )
  # The kernel does not scale the logits.
  query = query * jnp.asarray(head_size**-0.5, query.dtype)
  num_head_shards = sharding.num_shards("heads")
  kernel = splash_kernel(
    length + added,
    query.shape[2] // num_head_shards,
    count,
    interpret=interpret,
  )

  def attend(kernel, query, key, value):
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    attended = jax.vmap(lambda *x: kernel(*x))(*heads_first)
    return jnp.swapaxes(jnp.asarray(attended), 1, 2)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return attend(kernel, query, key, value)[:, :length]
  # XLA cannot partition a kernel and would gather whole arrays for it, so each
  # device is given its own part by hand.
  query_spec, key_spec = _partition_specs(query)
  if count > 1:
    key, value = _gathered(key), _gathered(value)
  kernel_spec = sharding.partition_spec((None, "sequence"))
  attended = jax.shard_map(
    attend,
    in_specs=(
      kernel.manual_sharding_spec(
        jax.sharding.NamedSharding(mesh, kernel_spec)
      ),
      query_spec,
      key_spec,
      key_spec,
    ),
    out_specs=query_spec,
    check_vma=False,  # a kernel does not say over which axes it varies
  )(kernel, query, key, value)
  return attended[:, :length]


def _num_parts(query: jax.Array) -> int:
  """Returns how many devices share a sequence's queries; 1 if not evenly."""
  count = sharding.num_shards("sequence")
  return count if query.shape[1] % count == 0 else 1


def _partition_specs(query: jax.Array):
  """Returns the specs of queries, and of keys and values.

  Keys and values are whole along time.
  """
  batch = None if len(query) % sharding.num_shards("batch") else "batch"
  sequence = None if _num_parts(query) == 1 else "sequence"
  return (
    sharding.partition_spec((batch, sequence, "heads", "head_size")),
    sharding.partition_spec((batch, None, "kv_heads", "head_size")),
  )


def _gathered(x: jax.Array) -> jax.Array:
  """Pins keys or values to the devices that make them, before the gather.

  Otherwise XLA would gather the hidden states that they are made from, and
  have each device make the keys and values of the whole sequence.
  """
  batch = None if len(x) % sharding.num_shards("batch") else "batch"
  return sharding.constrain(x, batch, "sequence", "kv_heads", None)


def _on_devices(attend, query, key, value):
  """Runs attention of each device's queries to all keys of their sequences.

  Args:
    attend: `(query, key, value, first)`, with the column of the first query.
    query, key, value: As for `causal`.
  """
  query_spec, key_spec = _partition_specs(query)

  def attend_locally(query, key, value):
    index = jax.lax.axis_index(sharding.RULES["sequence"])
    return attend(query, key, value, index * query.shape[1])

  return jax.shard_map(
    attend_locally,
    in_specs=(query_spec, key_spec, key_spec),
    out_specs=query_spec,
  )(query, _gathered(key), _gathered(value))


def _xla_from(query, key, value, first):
  """Attends with queries that begin at column `first`, block by block."""

  def block(start, queries):
    earlier = is_earlier(first + start, queries.shape[1], key.shape[1])
    return jax.nn.dot_product_attention(
      queries, key, value, mask=earlier[None, None], implementation="xla"
    )

  return _over_blocks(block, query)


def is_earlier(first, count: int, length: int) -> jax.Array:
  """Returns the causal mask of `count` queries from column `first` on.

  Args:
    first: Column of the first query.
    count: Number of queries.
    length: Number of keys.

  Returns:
    True where the query may read the key. Shape `[count, length]`.
  """
  columns = jnp.arange(count)[:, None] + first
  return columns >= jnp.arange(length)[None]


def _over_blocks(block, query: jax.Array) -> jax.Array:
  """Returns `block(start, queries)` of all queries, one block after another.

  Args:
    block: Attention of some queries, given the column of the first.
    query: Shape `[B, S, N, H]`.
  """
  batch_size, length = query.shape[:2]
  if length <= LARGEST_BLOCK:
    return block(0, query)
  num_blocks = -(-length // LARGEST_BLOCK)
  added = num_blocks * LARGEST_BLOCK - length
  blocks = jnp.pad(query, ((0, 0), (0, added), (0, 0), (0, 0)))
  blocks = blocks.reshape(
    batch_size, num_blocks, LARGEST_BLOCK, *query.shape[2:]
  )
  starts = jnp.arange(num_blocks) * LARGEST_BLOCK
  # The backward pass recomputes the logits of a block, so that those of all
  # blocks are not kept for it.
  attended = jax.lax.map(
    jax.checkpoint(lambda inputs: block(*inputs)),
    (starts, jnp.moveaxis(blocks, 1, 0)),
  )
  attended = jnp.moveaxis(attended, 0, 1)
  return attended.reshape(batch_size, -1, *query.shape[2:])[:, :length]
