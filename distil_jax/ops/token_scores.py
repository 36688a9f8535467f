"""Scores given tokens, and names the most probable ones beside them.

As in `fused_linear`, the logits of all tokens are never in memory at once.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from distil_jax.ops import fused_linear, vocabulary
from distil_jax.ops.chunking import Layout
from distil_jax.ops.divergences import TopKFn


class TokenScores(NamedTuple):
  """Holds what a policy says of given tokens; nats.

  Attributes:
    log_probs: of the tokens; NaN for an id outside the vocabulary. `[B, T]`.
    ranks: 1 for the most probable token; equal ones share a rank. `[B, T]`.
    top_ids: the most probable tokens, in order. `[B, T, C]`.
    top_log_probs: their log-probabilities. `[B, T, C]`.
  """

  log_probs: jax.Array
  ranks: jax.Array
  top_ids: jax.Array
  top_log_probs: jax.Array


def token_scores(
  hidden: jax.Array,
  unembedding: jax.Array,
  token_ids: jax.Array,
  *,
  size: int,
  layout: Layout = Layout(),  # noqa: B008 (frozen)
  vocab_size: int | None = None,
  top_k_fn: TopKFn = jax.lax.top_k,
) -> TokenScores:
  """Reads the scores of each token; nothing is differentiable.

  Args:
    hidden: the states that chose the tokens. Shape `[B, T, D]`.
    unembedding: shape `[D, V]`.
    token_ids: shape `[B, T]`.
    size: C, from 1 to the number of tokens.
    layout: how arrays are sharded.
    vocab_size: as in `Divergence`: entries that stand for tokens.
    top_k_fn: finds the largest in `[t, B, V]`.
  """
  chex.assert_equal_shape_prefix([hidden, token_ids], 2)

  def read(logits, ids):
    known = vocabulary.only_tokens(logits, vocab_size)
    log_softmax = jax.nn.log_softmax(known, axis=-1)
    own = vocabulary.pick(log_softmax, ids)
    ranks = 1 + jnp.sum(log_softmax > own[..., None], axis=-1)
    top_log_probs, top_ids = top_k_fn(log_softmax, size)
    return TokenScores(own, ranks, top_ids, top_log_probs), None

  source = fused_linear.FusedStatistics(
    fused_linear.Reader(read),
    jax.lax.stop_gradient(hidden),
    jax.lax.stop_gradient(unembedding),
    rows=token_ids.astype(jnp.int32),
    layout=layout,
  )
  return source.statistics()
