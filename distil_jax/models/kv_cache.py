"""KV caches of prompts and of samples in flight.

Letters besides those of `types`: D parts of the batch, each with R prompts and
W samples in flight; here S and T are the columns of a cache.
"""

import jax
import jax.numpy as jnp
from flax import struct

from distil_jax.models import sharding


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
    cache: Column i holds the prompt's i-th token. `[D * R, K, S, H]` a layer.
    lengths: Number of columns that count; may be 0. Shape `[D, R]`.
  """

  cache: LayerCaches
  lengths: jax.Array


@struct.dataclass
class KVCache:
  """Holds the keys and values of the samples in flight, in a circular buffer.

  Attributes:
    cache: The columns written last, up to `write_index`. `[D * W, K, T, H]` a
      layer.
    write_index: Column of the next token, the same for all samples. Scalar.
  """

  cache: LayerCaches
  write_index: jax.Array


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


def empty_cache(prompts: PromptCache, width: int, length: int) -> KVCache:
  """Returns an empty KV cache for samples in flight.

  Args:
    prompts: Prompts of the samples.
    width: W, samples in flight in each part.
    length: T, tokens of a completion that the cache can hold.
  """
  num_parts = prompts.lengths.shape[0]
  _, num_kv_heads, _, head_size = prompts.cache.keys[0].shape
  shape = (num_parts * width, num_kv_heads, length, head_size)
  return KVCache(
    cache=jax.tree.map(
      lambda x: constrain_cache(jnp.zeros(shape, x.dtype)), prompts.cache
    ),
    write_index=jnp.zeros((), jnp.int32),
  )


def resize_cache(kv_cache: KVCache, samples: jax.Array, length: int) -> KVCache:
  """Returns the KV cache of some samples, with another length.

  Args:
    kv_cache: Of W samples with T columns.
    samples: Samples to keep. Shape `[D, W']`.
    length: New number of columns; no sample in flight may need more.
  """
  old = kv_cache.cache.keys[0].shape[2]
  # The buffer is unrolled with the oldest column first, so that the added
  # columns follow the newest one.
  order = (kv_cache.write_index + jnp.arange(old)) % old
  kept = order[max(old - length, 0) :]

  def resize(buffer):
    taken = jnp.take(take(buffer, samples), kept, axis=2)
    padding = [(0, 0)] * 2 + [(0, length - len(kept)), (0, 0)]
    return constrain_cache(jnp.pad(taken, padding))

  return KVCache(
    cache=jax.tree.map(resize, kv_cache.cache),
    write_index=jnp.asarray(len(kept) % length, jnp.int32),
  )


def keep_prompts(prompts: PromptCache, index: jax.Array) -> PromptCache:
  """Returns the cache of some prompts of each part.

  Args:
    prompts: R in each part.
    index: Prompts to keep. Shape `[D, R']`.
  """
  return PromptCache(
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
