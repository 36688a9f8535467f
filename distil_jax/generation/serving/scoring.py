"""Scores batches of whole sequences."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from distil_jax.models import decoder, layers, sharding
from distil_jax.objectives import logits_layout
from distil_jax.ops.token_scores import TokenScores, token_scores


@functools.partial(jax.jit, static_argnames=("graphdef", "size"))
def score(
  params: layers.Params,
  ids: jax.Array,
  mask: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  size: int,
) -> TokenScores:
  """Returns the scores of each token but the first, in the row before it.

  Args:
    params: of the network.
    ids: right-padded. Shape `[B, S]`.
    mask: 1 where the token counts. Shape `[B, S]`.
    graphdef: from `decoder.make`.
    size: C, most probable tokens at each place.

  Returns:
    Rows of padding, and the last of each sequence, mean nothing. `[B, S]` and
    `[B, S, C]`.
  """
  hidden = decoder.hidden_states(graphdef, params, ids, mask)
  weights = layers.unembedding(params)
  batch_size, length = ids.shape
  rows, columns = sharding.for_logits(batch_size, length, weights.shape[-1])
  return token_scores(
    hidden,
    weights,
    # The state of a column predicts the token in the next one.
    jnp.roll(ids, -1, axis=1),
    size=size,
    layout=logits_layout.layout(hidden, weights),
    vocab_size=layers.num_tokens(graphdef, params),
    top_k_fn=functools.partial(sharding.top_k, batch=rows, vocab=columns),
  )
