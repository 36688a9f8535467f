"""Draws a short list of tokens from a teacher's distribution.

As in `fused_linear`, the logits of all tokens are never in memory at once.
"""

import chex
import jax
import jax.numpy as jnp

from distil_jax.ops import fused_linear, token_sampling, vocabulary
from distil_jax.ops.chunking import Layout
from distil_jax.ops.divergences import TopKFn
from distil_jax.ops.token_statistics import DenseTeacher, TeacherLists


def samples(
  teacher: DenseTeacher,
  uniforms: jax.Array,
  *,
  chunk_size: int | None = None,
  layout: Layout = Layout(),  # noqa: B008 (frozen)
  vocab_size: int | None = None,
) -> TeacherLists:
  """Draws C independent tokens from each distribution; one may come twice.

  Args:
    teacher: holds the distributions.
    uniforms: in [0, 1), one for each draw. Shape `[B, T, C]`.
    chunk_size: columns of time at once; None chooses by memory.
    layout: how arrays are sharded.
    vocab_size: as in `Divergence`: the tokens that a list may name.

  Returns:
    The ids, and −log C for each: together they are the empirical distribution.
    Shape `[B, T, C]` each. The student's tokens are not looked at.
  """
  chex.assert_equal_shape_prefix([*teacher.hidden, uniforms], 2)

  def draw(logits, uniforms):
    # All draws read the same tile, each with a random number of its own.
    return jax.vmap(token_sampling.sample, (None, -1), -1)(logits, uniforms)

  draw_tokens = _of_tokens(draw, vocab_size)
  ids = _chosen(draw_tokens, teacher, uniforms, chunk_size, layout)
  share = -jnp.log(jnp.float32(uniforms.shape[-1]))
  return TeacherLists(ids, jnp.full(ids.shape, share))


def most_probable(
  teacher: DenseTeacher,
  token_ids: jax.Array,
  *,
  size: int,
  chunk_size: int | None = None,
  layout: Layout = Layout(),  # noqa: B008 (frozen)
  vocab_size: int | None = None,
  top_k_fn: TopKFn = jax.lax.top_k,
) -> TeacherLists:
  """Returns the C most probable tokens of each distribution.

  Args:
    teacher: holds the distributions.
    token_ids: the student's tokens. Shape `[B, T]`.
    size: C, from 1 to V.
    chunk_size: columns of time at once; None chooses by memory.
    layout: how arrays are sharded.
    vocab_size: as in `Divergence`: the tokens that a list may name.
    top_k_fn: finds them in `[t, B, V]`.

  Returns:
    The ids, and their log-probabilities in the whole vocabulary, nats, `[B, T,
    C]` each; and those of the student's tokens, NaN for an id outside it.

  Raises:
    ValueError: a size that is not above 0, or more than there are tokens.
  """
  num_tokens = vocab_size or teacher.unembedding[0].shape[-1]
  if size < 1:
    raise ValueError(f"a list of {size} tokens says nothing; ask for 1 or more")
  if size > num_tokens:
    raise ValueError(
      f"a list of {size} tokens was asked for, but the vocabulary has "
      f"{num_tokens}; lower teacher.top_k"
    )

  def choose(logits, token_ids):
    # Normalised before the list is cut: a tail is 1 less the mass of the list,
    # so the list's probabilities must be those in the whole vocabulary.
    log_softmax = jax.nn.log_softmax(logits, axis=-1)
    log_probs, ids = top_k_fn(log_softmax, size)
    return TeacherLists(ids, log_probs, vocabulary.pick(log_softmax, token_ids))

  choose_tokens = _of_tokens(choose, vocab_size)
  token_ids = token_ids.astype(jnp.int32)
  return _chosen(choose_tokens, teacher, token_ids, chunk_size, layout)


def _of_tokens(choose, vocab_size: int | None):
  """Returns `choose` of logits without padding."""
  return lambda logits, rows: choose(
    vocabulary.only_tokens(logits, vocab_size), rows
  )


def _chosen(choose, teacher: DenseTeacher, rows, chunk_size, layout):
  """Returns `choose(logits, rows)` of every tile; nothing is differentiable.

  The first product of the teacher takes the place of the student's; those of a
  trust region's second network are prepared beside it.
  """

  def prepare(unembeddings, rows):
    states, rows = rows
    return tuple(map(fused_linear.logits, states, unembeddings)), rows

  def read(logits, tile):
    other_logits, rows = tile
    return choose(sum(other_logits, start=logits), rows), None

  teacher = jax.lax.stop_gradient(teacher)
  first, *others = zip(teacher.hidden, teacher.unembedding, strict=True)
  source = fused_linear.FusedStatistics(
    fused_linear.Reader(read, prepare=prepare),
    *first,
    constants=tuple(unembedding for _, unembedding in others),
    rows=(tuple(hidden for hidden, _ in others), rows),
    chunk_size=chunk_size,
    layout=layout,
  )
  return source.statistics()
