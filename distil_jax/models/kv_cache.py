"""KV caches of prompts and of samples in flight."""

import jax
import jax.numpy as jnp
from flax import struct

from distil_jax.models import sharding


@struct.dataclass
class LayerCaches:
  """Of every layer: a tuple of L arrays each.

  Of prompts `[D * R, K, S, H]`, of completions `[D * W, K, T, H]`, where D is
  the number of parts that the batch is cut into, R the prompts of a part and W
  the samples in flight there. (With an axis of its own for the parts, XLA on a
  CPU would copy them for each product.)
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]


@struct.dataclass
class PromptCache:
  """What samples of a group share.

  Attributes:
    cache: column i holds the prompt's i-th token. `[D * R, K, S, H]` a
      layer.
    lengths: how many columns count; may be 0. Shape `[D, R]`.
  """

  cache: LayerCaches
  lengths: jax.Array


@struct.dataclass
class KVCache:
  """What each sample in flight has for itself.

  Attributes:
    cache: the last columns written, up to `write_index`. `[D * W, K, T, H]` a
      layer.
    write_index: where the next token is written. Scalar.
  """

  cache: LayerCaches
  write_index: jax.Array


@struct.dataclass
class PromptAssignment:
  """Which sample in flight reads which prompt, both ways round.

  Attributes:
    places: of each sample, in a table of M lanes a prompt; R * M and more
      where it is in none. Shape `[D, W]`.
    samples: the sample in each lane; any where there is none. `[D, R * M]`.
  """

  places: jax.Array
  samples: jax.Array


def empty_cache(prompts: PromptCache, width: int, length: int) -> KVCache:
  """Room for samples in flight.

  Args:
    prompts: whose completions they are.
    width: W, samples in flight in each part.
    length: T, tokens of one of them that can be looked back at.
  """
  num_parts = prompts.lengths.shape[0]
  _, num_kv_heads, _, head_size = prompts.cache.keys[0].shape
  shape = (num_parts * width, num_kv_heads, length, head_size)
  return KVCache(
    cache=jax.tree.map(
      lambda x: placed(jnp.zeros(shape, x.dtype)), prompts.cache
    ),
    write_index=jnp.zeros((), jnp.int32),
  )


def resize_cache(kv_cache: KVCache, samples: jax.Array, length: int) -> KVCache:
  """Keeps some samples, with more or less to look back at.

  Args:
    kv_cache: of W samples with T columns.
    samples: which to keep. Shape `[D, W']`.
    length: columns from now on; no sample in flight may need more.
  """
  old = kv_cache.cache.keys[0].shape[2]
  # The oldest column first, so that what is new follows what is newest.
  order = (kv_cache.write_index + jnp.arange(old)) % old
  kept = order[max(old - length, 0) :]

  def resize(buffer):
    taken = jnp.take(take(buffer, samples), kept, axis=2)
    room = [(0, 0)] * 2 + [(0, length - len(kept)), (0, 0)]
    return placed(jnp.pad(taken, room))

  return KVCache(
    cache=jax.tree.map(resize, kv_cache.cache),
    write_index=jnp.asarray(len(kept) % length, jnp.int32),
  )


def keep_prompts(prompts: PromptCache, which: jax.Array) -> PromptCache:
  """Those that are still read. `which` has shape `[D, R']`."""
  return PromptCache(
    cache=jax.tree.map(lambda x: placed(take(x, which)), prompts.cache),
    lengths=jnp.take_along_axis(prompts.lengths, which, axis=1),
  )


def assign_prompts(
  prompt_index: jax.Array,
  is_alive: jax.Array,
  *,
  num_prompts: int,
  num_lanes: int,
) -> PromptAssignment:
  """Gives each sample in flight a lane of its prompt.

  Args:
    prompt_index: the prompt that each sample reads. Shape `[D, W]`.
    is_alive: others take no lane. Shape `[D, W]`.
    num_prompts: R.
    num_lanes: M; no prompt has more samples in flight.
  """
  width = prompt_index.shape[1]
  same = prompt_index[:, :, None] == prompt_index[:, None, :]
  earlier = jnp.tri(width, k=-1, dtype=bool)
  counts = same & earlier[None] & is_alive[:, None, :]
  lanes = jnp.sum(counts, axis=2, dtype=jnp.int32)
  nowhere = num_prompts * num_lanes
  places = jnp.where(is_alive, prompt_index * num_lanes + lanes, nowhere)

  taken = places[:, None, :] == jnp.arange(nowhere)[None, :, None]
  samples = jnp.argmax(taken, axis=2).astype(jnp.int32)
  return PromptAssignment(places=places, samples=samples)


def take(buffer: jax.Array, which: jax.Array) -> jax.Array:
  """Rows of each part.

  Args:
    buffer: shape `[D * R, ...]`.
    which: shape `[D, R']`.

  Returns:
    shape `[D * R', ...]`.
  """
  parts = buffer.reshape(which.shape[0], -1, *buffer.shape[1:])
  rows = which.reshape(*which.shape, *[1] * (buffer.ndim - 1))
  taken = jnp.take_along_axis(parts, rows, axis=1)
  return taken.reshape(-1, *buffer.shape[1:])


def placed(buffer: jax.Array) -> jax.Array:
  return sharding.constrain(buffer, "batch", "kv_heads", None, None)
