"""What student and teacher have to say of each token: networks, then `ops`.

The teacher tells its distribution, or a list of tokens for each of the
student's; an outside expert's list takes the same place.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from distil_jax import scoring
from distil_jax.models import qwen3
from distil_jax.ops import candidates, masking, unembedding
from distil_jax.ops.divergences import Divergence
from distil_jax.records import Batch

ListKind = Literal["samples", "top_k"]


def judged_tokens(batch: Batch) -> jax.Array:
  """1 at the tokens that a teacher judges. Shape `[b, T]`.

  A sequence without teacher signal has none: its costs mean nothing, so they
  must not stand in the baseline of its group either.
  """
  return masking.counted_tokens(batch.completion_mask, batch.sample_mask)


def student_hidden_states(
  params: qwen3.Params, batch: Batch, *, graphdef: nnx.GraphDef
) -> jax.Array:
  """From which each token was chosen, on its own prompt. `[b, T, D]`."""
  return scoring.completion_hidden_states(
    params,
    batch.prompt_ids,
    batch.prompt_mask,
    batch.completion_ids,
    batch.completion_mask,
    graphdef=graphdef,
  )


def exact_statistics(
  params: qwen3.Params,
  teacher_params: qwen3.Params,
  batch: Batch,
  *,
  graphdef: nnx.GraphDef,
  divergence: Divergence,
  chunk_size: int | None = None,
  trust_region_rate: float | None = None,
) -> unembedding.TokenStatistics:
  """Student and teacher on the student's tokens, from both distributions.

  With a trust region the teacher's logits are (1 − rate) times those of
  `teacher_params` plus rate times those of `params`, all on its own prompt.
  """
  teacher, teacher_unembedding = _teacher(
    params, teacher_params, batch, graphdef, trust_region_rate
  )
  return unembedding.token_statistics(
    student_hidden_states(params, batch, graphdef=graphdef),
    qwen3.unembedding(params),
    teacher,
    teacher_unembedding,
    batch.completion_ids,
    divergence=divergence,
    mask=judged_tokens(batch),
    chunk_size=chunk_size,
  )


def list_statistics(
  params: qwen3.Params,
  teacher_params: qwen3.Params,
  batch: Batch,
  *,
  graphdef: nnx.GraphDef,
  kind: ListKind,
  tail: bool,
  chunk_size: int | None = None,
) -> unembedding.TokenStatistics:
  """The same where of the teacher only a list of tokens is known."""
  del teacher_params
  return unembedding.sparse_token_statistics(
    student_hidden_states(params, batch, graphdef=graphdef),
    qwen3.unembedding(params),
    batch.teacher_candidate_ids,
    batch.teacher_candidate_log_probs,
    batch.completion_ids,
    kind=kind,
    tail=tail,
    mask=judged_tokens(batch),
    chunk_size=chunk_size,
  )


def ask_teacher(
  params: qwen3.Params,
  teacher_params: qwen3.Params,
  batch: Batch,
  keys: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  kind: ListKind,
  size: int,
  chunk_size: int | None = None,
  trust_region_rate: float | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The list of tokens that an expert would give for each state.

  Args:
    params, teacher_params: as for `exact_statistics`.
    batch: the states: the teacher's prompts and the student's tokens.
    keys: one for each sequence. Shape `[b]`.
    graphdef: from `qwen3.make`.
    kind: independent samples, or the most probable tokens.
    size: C, the length of the list.
    chunk_size: columns of time whose logits are in memory at once.
    trust_region_rate: as for `exact_statistics`.

  Returns:
    ids and log-probabilities, shape `[b, T, C]` each; they take the place of
    an outside expert's in the batch.
  """
  hidden, weights = _teacher(
    params, teacher_params, batch, graphdef, trust_region_rate
  )
  if kind == "top_k":
    return candidates.most_probable(
      hidden, weights, size=size, chunk_size=chunk_size
    )
  shape = (batch.completion_ids.shape[1], size)
  uniforms = jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
  return candidates.samples(hidden, weights, uniforms, chunk_size=chunk_size)


def _teacher(
  params: qwen3.Params,
  teacher_params: qwen3.Params,
  batch: Batch,
  graphdef: nnx.GraphDef,
  trust_region_rate: float | None,
) -> tuple[jax.Array, jax.Array]:
  """Hidden states and unembedding whose product are the teacher's logits."""

  def states(params):
    hidden = scoring.completion_hidden_states(
      params,
      batch.teacher_prompt_ids,
      batch.teacher_prompt_mask,
      batch.completion_ids,
      batch.completion_mask,
      graphdef=graphdef,
    )
    return hidden, qwen3.unembedding(params)

  if trust_region_rate is None:
    return states(teacher_params)
  hidden, weights = states(teacher_params)
  own_hidden, own_weights = states(jax.lax.stop_gradient(params))
  # Logits are linear in the hidden states: one product gives their mixture.
  parts = [(1 - trust_region_rate) * hidden, trust_region_rate * own_hidden]
  return (
    jnp.concatenate(parts, axis=-1),
    jnp.concatenate([weights, own_weights], axis=0),
  )
