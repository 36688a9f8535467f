"""KV caches of prompts and of samples in flight.

Letters besides those of `types`: D parts of the batch, each with R prompts and
W samples in flight; here S and T are the columns of a cache.

A layer with a sliding window keeps no more columns than its window can reach,
so S and T are smaller there.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from distil_jax.models import sharding

Windows = tuple[int | None, ...]


@struct.dataclass
class LayerCaches:
  """Holds keys and values of every layer, in a tuple of L arrays each.

  An array has shape `[D * R, K, S, H]` for prompts and `[D * W, K, T, H]` for
  completions. (With a separate axis for the parts, XLA would copy the arrays on
  a CPU for each product.)
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]


@struct.dataclass
class PromptCache:
  """Holds the keys and values of prompts, once for all samples of a group.

  Attributes:
    cache: Column i holds the prompt's i-th token; with fewer columns than the
      prompt has tokens, the last ones. `[D * R, K, S, H]` a layer.
    lengths: Number of tokens; may be 0. Shape `[D, R]`.
    windows: Sliding window of each layer; None means that it has none.
  """

  cache: LayerCaches
  lengths: jax.Array
  windows: Windows = struct.field(pytree_node=False)


@struct.dataclass
class KVCache:
  """Holds the keys and values of the samples in flight, in a circular buffer.

  Attributes:
    cache: The columns written last, up to `write_index`. `[D * W, K, T, H]` a
      layer.
    write_index: Column of the next token, the same for all samples, modulo the
      columns of a layer. Scalar.
    length: T of layers without a sliding window.
    windows: Sliding window of each layer; None means that it has none.
  """

  cache: LayerCaches
  write_index: jax.Array
  length: int = struct.field(pytree_node=False)
  windows: Windows = struct.field(pytree_node=False)


@struct.dataclass
class PromptAssignment:
  """Tells which sample in flight reads which prompt, in both directions.

  Samples are arranged in a table with one row a prompt and M columns, so that
  one batched product serves all samples of a prompt.

  Attributes:
    table_index: Index of each sample in the flattened table; R * M for a sample
      that is not in it. Shape `[D, W]`.
    samples: Sample at each index of the table; arbitrary where there is none.
      Shape `[D, R * M]`.
  """

  table_index: jax.Array
  samples: jax.Array


def prompt_columns(length: int, window: int | None) -> int:
  """Returns how many columns of prompts a layer keeps.

  Args:
    length: S, tokens of the longest prompt.
    window: Of the layer; its own token is one of those that it reads.
  """
  return length if window is None else min(length, max(window - 1, 1))


def first_columns(prompts: PromptCache, layer: int) -> jax.Array:
  """Returns the token in column 0 of each prompt of a layer. Shape `[D, R]`."""
  return jnp.maximum(prompts.lengths - prompts.cache.keys[layer].shape[2], 0)


def empty_cache(prompts: PromptCache, width: int, length: int) -> KVCache:
  """Returns an empty KV cache for samples in flight.

  Args:
    prompts: Prompts of the samples.
    width: W, samples in flight in each part.
    length: T, tokens of a completion that the cache can hold.
  """
  num_parts = prompts.lengths.shape[0]

  def empty(buffer, window):
    _, num_kv_heads, _, head_size = buffer.shape
    num_columns = length if window is None else min(length, window)
    shape = (num_parts * width, num_kv_heads, num_columns, head_size)
    return constrain_cache(jnp.zeros(shape, buffer.dtype))

  return KVCache(
    cache=LayerCaches(
      keys=tuple(map(empty, prompts.cache.keys, prompts.windows)),
      values=tuple(map(empty, prompts.cache.values, prompts.windows)),
    ),
    write_index=jnp.zeros((), jnp.int32),
    length=length,
    windows=prompts.windows,
  )


def resize_cache(kv_cache: KVCache, samples: jax.Array, length: int) -> KVCache:
  """Returns the KV cache of some samples, with another length.

  Args:
    kv_cache: Of W samples with T columns.
    samples: Samples to keep. Shape `[D, W']`.
    length: New number of columns; no sample in flight may need more.
  """
  # The oldest column that is kept comes first, so that a longer buffer has its
  # free columns after the newest one.
  write_index = min(kv_cache.length, length)

  def resize(buffer, window):
    old = buffer.shape[2]
    new = length if window is None else min(length, window)
    age = (write_index - 1 - jnp.arange(new)) % new
    columns = (kv_cache.write_index - 1 - age) % old
    taken = jnp.take(take(buffer, samples), columns, axis=2)
    is_kept = age < min(old, new)
    return constrain_cache(jnp.where(is_kept[None, None, :, None], taken, 0))

  caches, windows = kv_cache.cache, kv_cache.windows
  return KVCache(
    cache=LayerCaches(
      keys=tuple(map(resize, caches.keys, windows)),
      values=tuple(map(resize, caches.values, windows)),
    ),
    windows=windows,
    write_index=jnp.asarray(write_index, jnp.int32),
    length=length,
  )


def keep_prompts(prompts: PromptCache, index: jax.Array) -> PromptCache:
  """Returns the cache of some prompts of each part.

  Args:
    prompts: R in each part.
    index: Prompts to keep. Shape `[D, R']`.
  """
  return dataclasses.replace(
    prompts,
    cache=jax.tree.map(
      lambda x: constrain_cache(take(x, index)), prompts.cache
    ),
    lengths=jnp.take_along_axis(prompts.lengths, index, axis=1),
  )


def assign_prompts(
  prompt_index: jax.Array,
  is_alive: jax.Array,
  *,
  num_prompts: int,
  num_columns: int,
) -> PromptAssignment:
  """Gives each sample in flight a column in the row of its prompt.

  Args:
    prompt_index: Prompt that each sample reads. Shape `[D, W]`.
    is_alive: True for samples in flight; others get no column. Shape `[D, W]`.
    num_prompts: R.
    num_columns: M, at least the samples in flight of any prompt.
  """
  width = prompt_index.shape[1]
  # A sample's column is the number of earlier samples of the same prompt.
  same = prompt_index[:, :, None] == prompt_index[:, None, :]
  earlier = jnp.tri(width, k=-1, dtype=bool)
  counts = same & earlier[None] & is_alive[:, None, :]
  columns = jnp.sum(counts, axis=2, dtype=jnp.int32)
  table_size = num_prompts * num_columns
  table_index = jnp.where(
    is_alive, prompt_index * num_columns + columns, table_size
  )

  is_taken = table_index[:, None, :] == jnp.arange(table_size)[None, :, None]
  samples = jnp.argmax(is_taken, axis=2).astype(jnp.int32)
  return PromptAssignment(table_index=table_index, samples=samples)


def take(buffer: jax.Array, index: jax.Array) -> jax.Array:
  """Returns some rows of each part.

  Args:
    buffer: Shape `[D * R, ...]`.
    index: Rows of each part. Shape `[D, R']`.

  Returns:
    Shape `[D * R', ...]`.
  """
  parts = buffer.reshape(index.shape[0], -1, *buffer.shape[1:])
  rows = index.reshape(*index.shape, *[1] * (buffer.ndim - 1))
  taken = jnp.take_along_axis(parts, rows, axis=1)
  return taken.reshape(-1, *buffer.shape[1:])


def constrain_cache(buffer: jax.Array) -> jax.Array:
  """Pins one layer's keys or values to the mesh: by batch and by head."""
  return sharding.constrain(buffer, "batch", "kv_heads", None, None)
