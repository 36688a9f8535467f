"""Says how the logits of student and teacher are sharded on the mesh in use."""

import functools

import jax

from distil_jax.models import decoder, layers, sharding
from distil_jax.ops.chunking import Layout
from distil_jax.ops.divergences import TopKFn
from distil_jax.types import TrainBatch


def top_k_fn(params: decoder.Params, batch: TrainBatch) -> TopKFn:
  """Returns what finds the largest logits, each device those of its part."""
  rows, columns = _logits_axes(batch.completion_ids, layers.unembedding(params))
  # XLA would gather all logits to find the largest. Here each device finds
  # those of its own part, and only these are exchanged.
  return functools.partial(sharding.top_k, batch=rows, vocab=columns)


def layout(hidden: jax.Array, weights: jax.Array) -> Layout:
  """Returns how logits are sharded on the mesh in use.

  Args:
    hidden: the states that they are made from. Shape `[b, T, D]`.
    weights: the unembedding. Shape `[D, V]`.
  """
  batch, vocab = _logits_axes(hidden, weights)
  return _layout(
    batch, vocab, sharding.num_shards(batch), sharding.num_shards(vocab)
  )


@functools.cache
def _layout(
  batch: str, vocab: str, num_shards: int, num_vocab_shards: int
) -> Layout:
  # Cached, because functions are compared by identity and the layout is a
  # static argument: another object would compile the step again.
  def shard_chunk(chunk):
    others = (None,) * (chunk.ndim - 2)
    return sharding.constrain(chunk, None, batch, *others)

  return Layout(
    num_shards=num_shards,
    num_vocab_shards=num_vocab_shards,
    shard_sums=lambda sums: sharding.constrain(sums, batch, None, vocab),
    shard_chunk=shard_chunk,
    shard_states=shard_states,
  )


def shard_states(hidden: jax.Array) -> jax.Array:
  """Gives each device a part of the width of all tokens.

  So a chunk of time is a slice on every device, and nothing is moved for it.
  """
  return sharding.constrain(hidden, "batch", None, "embed_by_context")


def sharded_unembedding(params: decoder.Params, batch: TrainBatch) -> jax.Array:
  """Returns the unembedding with whole columns on each device.

  So it is moved once, and not again for every chunk of time.
  """
  weights = layers.unembedding(params)
  _, vocab = _logits_axes(batch.completion_ids, weights)
  return sharding.constrain(weights, None, vocab)


def _logits_axes(tokens: jax.Array, weights: jax.Array) -> tuple[str, str]:
  """Returns the logical axes of the logits' batch and vocabulary."""
  batch_size, length = tokens.shape[:2]
  return sharding.for_logits(batch_size, length, weights.shape[-1])
