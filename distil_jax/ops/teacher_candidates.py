"""A short list of tokens in place of a distribution over the vocabulary.

As in `unembedding`, the logits of all tokens are never in memory at once.
"""

import chex
import jax
import jax.numpy as jnp

from distil_jax.ops import chunking, fused_linear, sampling
from distil_jax.ops.divergences import TopKFn
from distil_jax.ops.token_statistics import Expert


def samples(
  teacher: Expert,
  uniforms: jax.Array,
  *,
  chunk_size: int | None = None,
  layout: chunking.Layout = chunking.Layout(),  # noqa: B008 (frozen)
) -> tuple[jax.Array, jax.Array]:
  """C independent draws from each distribution; a token may come twice.

  Args:
    teacher: whose distributions these are.
    uniforms: in [0, 1), one for each draw. Shape `[B, T, C]`.
    chunk_size: columns of time at once; None chooses by memory.
    layout: how arrays lie on the devices.

  Returns:
    ids, and −log C for each: together they are the empirical distribution.
    Shape `[B, T, C]` each.
  """
  chex.assert_equal_shape_prefix([*teacher.hidden, uniforms], 2)

  def draw(logits, uniforms):
    return jax.vmap(sampling.sample, (None, -1), -1)(logits, uniforms)

  ids = _chosen(draw, teacher, uniforms, chunk_size, layout)
  share = -jnp.log(jnp.float32(uniforms.shape[-1]))
  return ids, jnp.full(ids.shape, share)


def most_probable(
  teacher: Expert,
  *,
  size: int,
  chunk_size: int | None = None,
  layout: chunking.Layout = chunking.Layout(),  # noqa: B008 (frozen)
  top_k_fn: TopKFn = jax.lax.top_k,
) -> tuple[jax.Array, jax.Array]:
  """The C most probable tokens of each distribution.

  Args:
    teacher: whose distributions these are.
    size: C, at least 1 and at most V: a list of all tokens.
    chunk_size: columns of time at once; None chooses by memory.
    layout: how arrays lie on the devices.
    top_k_fn: finds them in `[t, B, V]`.

  Returns:
    ids, and their log-probabilities in the whole vocabulary, nats. Shape
    `[B, T, C]` each.

  Raises:
    ValueError: a size that is not above 0, or more than there are tokens.
  """
  vocab_size = teacher.unembedding[0].shape[-1]
  if size < 1:
    raise ValueError(f"a list of {size} tokens says nothing; ask for 1 or more")
  if size > vocab_size:
    raise ValueError(
      f"a list of {size} tokens was asked for, but the vocabulary has "
      f"{vocab_size}; lower teacher.top_k"
    )

  def choose(logits, _):
    log_softmax = jax.nn.log_softmax(logits, axis=-1)
    log_probs, ids = top_k_fn(log_softmax, size)
    return ids, log_probs

  return _chosen(choose, teacher, None, chunk_size, layout)


def _chosen(choose, teacher: Expert, rows, chunk_size, layout):
  """`choose(logits, rows)` of every tile; nothing here is differentiable."""

  def prepare(others, both):
    states, rows = both
    return tuple(map(fused_linear.logits, states, others)), rows

  def read(logits, tile):
    more, rows = tile
    return choose(sum(more, start=logits), rows), None

  teacher = jax.lax.stop_gradient(teacher)
  first, *others = zip(teacher.hidden, teacher.unembedding, strict=True)
  return fused_linear.statistics(
    fused_linear.Reader(read, prepare=prepare),
    *first,
    tuple(unembedding for _, unembedding in others),
    (tuple(hidden for hidden, _ in others), rows),
    size=chunk_size,
    layout=layout,
  )
