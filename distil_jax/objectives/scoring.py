"""Runs a policy over given tokens, whoever wrote them (teacher forcing)."""

import jax
import jax.numpy as jnp
from flax import nnx

from distil_jax.models import decoder, experts


def completion_hidden_states(
  params: decoder.Params,
  prompt_ids: jax.Array,
  prompt_mask: jax.Array,
  completion_ids: jax.Array,
  completion_mask: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  prefix: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
  """Returns the hidden states from which each completion token is predicted.

  Args:
    params: student's or teacher's.
    prompt_ids: left-padded. Shape `[B, S]`.
    prompt_mask: 1 where the token counts. Shape `[B, S]`.
    completion_ids: right-padded. Shape `[B, T]`.
    completion_mask: 1 where the token counts. Shape `[B, T]`.
    graphdef: from `decoder.make`.
    prefix: ids and mask of what stands before the prompts, each of the P for
      B / P of them in a row; read once. None means nothing. `[P, S0]` each.

  Returns:
    Shape `[B, T, D]`: row t has seen the prompt and the tokens before t.
  """
  ids = jnp.concatenate([prompt_ids, completion_ids], axis=1)
  mask = jnp.concatenate([prompt_mask, completion_mask], axis=1)
  read = prefix and decoder.read_prefix(graphdef, params, *prefix)
  return decoder.hidden_states(
    graphdef, params, ids, mask, columns=_before(prompt_ids), prefix=read
  )


def completion_states_and_loads(
  params: decoder.Params,
  prompt_ids: jax.Array,
  prompt_mask: jax.Array,
  completion_ids: jax.Array,
  completion_mask: jax.Array,
  *,
  graphdef: nnx.GraphDef,
) -> tuple[jax.Array, experts.Loads]:
  """Returns `completion_hidden_states`, and how its tokens use the experts.

  Args:
    params: of a network with experts.
    prompt_ids: see `completion_hidden_states`.
    prompt_mask: see `completion_hidden_states`.
    completion_ids: see `completion_hidden_states`.
    completion_mask: see `completion_hidden_states`.
    graphdef: see `completion_hidden_states`.
  """
  ids = jnp.concatenate([prompt_ids, completion_ids], axis=1)
  mask = jnp.concatenate([prompt_mask, completion_mask], axis=1)
  return decoder.states_and_loads(
    graphdef, params, ids, mask, columns=_before(prompt_ids)
  )


def _before(prompt_ids: jax.Array) -> slice:
  """Returns the columns whose states predict the completion's tokens."""
  # The state in a column predicts the token in the next one.
  return slice(prompt_ids.shape[1] - 1, -1)
