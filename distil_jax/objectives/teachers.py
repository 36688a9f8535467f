"""What student and teacher have to say of each token: networks, then `ops`.

The teacher tells its distribution, or a list of tokens for each of the
student's; an outside expert's list takes the same place.
"""

import functools

import jax
from flax import nnx

from distil_jax.models import decoder, layers, sharding
from distil_jax.objectives import scoring
from distil_jax.ops import (
  chunking,
  fused_statistics,
  masking,
  teacher_candidates,
  token_statistics,
)
from distil_jax.ops.divergences import Divergence
from distil_jax.types import TrainBatch


def teacher_mask(batch: TrainBatch) -> jax.Array:
  """1 at the tokens that a teacher judges: the student's. Shape `[b, T]`.

  A sequence without teacher signal has none: its costs mean nothing, so they
  must not stand in the baseline of its group either.
  """
  return masking.counted_tokens(batch.student_tokens, batch.sample_mask)


def student_hidden_states(
  params: decoder.Params, batch: TrainBatch, *, graphdef: nnx.GraphDef
) -> jax.Array:
  """From which each token was chosen, on its own prompt. `[b, T, D]`."""
  hidden = scoring.completion_hidden_states(
    params,
    batch.prompt_ids,
    batch.prompt_mask,
    batch.completion_ids,
    batch.completion_mask,
    graphdef=graphdef,
  )
  return _keep(hidden)


def exact_source(
  params: decoder.Params,
  teacher_params: decoder.Params,
  batch: TrainBatch,
  *,
  graphdef: nnx.GraphDef,
  divergence: Divergence,
  trust_region_rate: float | None = None,
) -> fused_statistics.FusedStatistics:
  """Student and teacher on the student's tokens, from both distributions.

  With a trust region the teacher's logits are (1 − rate) times those of
  `teacher_params` plus rate times those of `params`, all on its own prompt.
  """
  return fused_statistics.compared(
    student_hidden_states(params, batch, graphdef=graphdef),
    _unembedding_of(params, batch),
    _teacher(params, teacher_params, batch, graphdef, trust_region_rate),
    batch.completion_ids,
    divergence,
    teacher_mask(batch),
    top_k_fn=_top_k_fn(params, batch),
  )


def list_source(
  params: decoder.Params,
  teacher_params: decoder.Params,
  batch: TrainBatch,
  *,
  graphdef: nnx.GraphDef,
  kind: token_statistics.ListKind,
  tail: bool,
) -> fused_statistics.FusedStatistics:
  """The same where of the teacher only a list of tokens is known."""
  del teacher_params
  return fused_statistics.listed(
    student_hidden_states(params, batch, graphdef=graphdef),
    _unembedding_of(params, batch),
    token_statistics.SparseTeacher(
      batch.teacher_candidate_ids,
      batch.teacher_candidate_log_probs,
      kind,
      tail,
    ),
    batch.completion_ids,
    teacher_mask(batch),
  )


def own_source(
  params: decoder.Params, batch: TrainBatch, *, graphdef: nnx.GraphDef
) -> fused_statistics.FusedStatistics:
  """The student on its tokens, without a teacher."""
  return fused_statistics.alone(
    student_hidden_states(params, batch, graphdef=graphdef),
    _unembedding_of(params, batch),
    batch.completion_ids,
  )


def layout(hidden: jax.Array, weights: jax.Array) -> chunking.Layout:
  """Of logits, on the mesh in use.

  Args:
    hidden: the states that they are made from. Shape `[b, T, D]`.
    weights: and the unembedding. Shape `[D, V]`.
  """
  batch, vocab = _logits_axes(hidden, weights)
  return _layout(
    batch, vocab, sharding.num_shards(batch), sharding.num_shards(vocab)
  )


@functools.cache
def _layout(
  batch: str, vocab: str, num_shards: int, num_vocab_shards: int
) -> chunking.Layout:
  """One object for equal settings: it is part of what is compiled."""

  def gather(chunk):
    others = (None,) * (chunk.ndim - 2)
    return sharding.constrain(chunk, None, batch, *others)

  return chunking.Layout(
    num_shards=num_shards,
    num_vocab_shards=num_vocab_shards,
    place=lambda sums: sharding.constrain(sums, batch, None, vocab),
    gather=gather,
    keep=_keep,
  )


def _keep(hidden: jax.Array) -> jax.Array:
  """Of all tokens on a device rather a part of each than all of a part.

  So a chunk of time is a slice everywhere.
  """
  return sharding.constrain(hidden, "batch", None, "embed_by_context")


def _unembedding_of(params: decoder.Params, batch: TrainBatch) -> jax.Array:
  """With whole columns on each device: they are moved once, not by chunk."""
  weights = layers.unembedding(params)
  _, vocab = _logits_axes(batch.completion_ids, weights)
  return sharding.constrain(weights, None, vocab)


def _logits_axes(tokens: jax.Array, weights: jax.Array) -> tuple[str, str]:
  batch_size, length = tokens.shape[:2]
  return sharding.for_logits(batch_size, length, weights.shape[-1])


def ask_teacher(
  params: decoder.Params,
  teacher_params: decoder.Params,
  batch: TrainBatch,
  keys: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  kind: token_statistics.ListKind,
  size: int,
  chunk_size: int | None = None,
  trust_region_rate: float | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The list of tokens that an expert would give for each state.

  Args:
    params, teacher_params: as for `exact_source`.
    batch: the states: the teacher's prompts and the student's tokens.
    keys: one for each sequence. Shape `[b]`.
    graphdef: from `qwen3.make`.
    kind: independent samples, or the most probable tokens.
    size: C, the length of the list.
    chunk_size: columns of time whose logits are in memory at once.
    trust_region_rate: as for `exact_source`.

  Returns:
    ids and log-probabilities, shape `[b, T, C]` each; they take the place of
    an outside expert's in the batch.
  """
  teacher = _teacher(params, teacher_params, batch, graphdef, trust_region_rate)
  settings = {
    "chunk_size": chunk_size,
    "layout": layout(teacher.hidden[0], teacher.unembedding[0]),
  }
  if kind == "top_k":
    return teacher_candidates.most_probable(
      teacher, size=size, top_k_fn=_top_k_fn(params, batch), **settings
    )
  shape = (batch.completion_ids.shape[1], size)
  uniforms = jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
  return teacher_candidates.samples(teacher, uniforms, **settings)


def _top_k_fn(
  params: decoder.Params, batch: TrainBatch
) -> fused_statistics.TopKFn:
  rows, columns = _logits_axes(batch.completion_ids, layers.unembedding(params))
  return functools.partial(sharding.top_k, batch=rows, vocab=columns)


def _teacher(
  params: decoder.Params,
  teacher_params: decoder.Params,
  batch: TrainBatch,
  graphdef: nnx.GraphDef,
  trust_region_rate: float | None,
) -> token_statistics.Expert:
  """Hidden states and unembeddings whose products make the logits."""
  prefix = None
  if batch.teacher_prefix_ids is not None:
    prefix = (batch.teacher_prefix_ids, batch.teacher_prefix_mask)

  def states(params):
    hidden = scoring.completion_hidden_states(
      params,
      batch.teacher_prompt_ids,
      batch.teacher_prompt_mask,
      batch.completion_ids,
      batch.completion_mask,
      graphdef=graphdef,
      prefix=prefix,
    )
    return _keep(hidden), _unembedding_of(params, batch)

  if trust_region_rate is None:
    hidden, weights = states(teacher_params)
    return token_statistics.Expert((hidden,), (weights,))
  hidden, weights = states(teacher_params)
  own_hidden, own_weights = states(jax.lax.stop_gradient(params))
  # Logits are linear in the hidden states, and so is their mixture.
  return token_statistics.Expert(
    ((1 - trust_region_rate) * hidden, trust_region_rate * own_hidden),
    (weights, own_weights),
  )
