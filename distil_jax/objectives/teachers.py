"""Runs student and teacher on the student's tokens, up to their statistics.

The teacher gives its distribution, or a list of tokens for each of the
student's; the list of an outside teacher takes the same place.
"""

import dataclasses
import functools
from typing import Literal

import jax
from flax import nnx

from distil_jax.models import decoder, experts, layers, sharding
from distil_jax.objectives import scoring, teacher_turns
from distil_jax.objectives.base import ForwardPasses, teacher_mask
from distil_jax.ops import fused_statistics, teacher_candidates
from distil_jax.ops.chunking import Layout
from distil_jax.ops.divergences import Divergence, TopKFn
from distil_jax.ops.fused_linear import FusedStatistics
from distil_jax.ops.token_statistics import (
  DenseTeacher,
  ListKind,
  SparseTeacher,
  TeacherLists,
)
from distil_jax.types import TrainBatch


@dataclasses.dataclass(frozen=True)
class OtherNetwork:
  """The network of a teacher that is another model.

  Attributes:
    graphdef: from `decoder.make`. Its logits have as many entries as the
      student's. None if it runs elsewhere and its lists are in the batch.
    vocab_size: the number of tokens that both know, see `Divergence`; None
      means all entries of the logits.
  """

  graphdef: nnx.GraphDef | None
  vocab_size: int | None = None


@dataclasses.dataclass(frozen=True)
class Network:
  """The networks of student and teacher, mostly one, and how they are run.

  Attributes:
    graphdef: the student's, from `decoder.make`.
    teacher: the teacher's, if that is another model; None means the same.
    chunk_size: columns of time whose logits are in memory at once; None
      chooses by memory.
    trust_region_rate: makes the teacher's logits (1 − rate) times those of the
      teacher's parameters plus rate times those of the student's, all on the
      teacher's prompt. None takes the teacher's alone.
  """

  graphdef: nnx.GraphDef
  teacher: "OtherNetwork | None" = None
  chunk_size: int | None = None
  trust_region_rate: float | None = None

  @property
  def vocab_size(self) -> int | None:
    """Tokens that student and teacher know; None means all entries."""
    return self.teacher and self.teacher.vocab_size


def forward_passes(
  network: Network,
  *,
  access: Literal["probabilities", "samples", "top_k"] = "probabilities",
  list_size: int = 0,
) -> ForwardPasses:
  """Binds the network, and how the teacher is asked.

  Args:
    network: of student and teacher.
    access: what the teacher gives: its distribution, or lists of samples or of
      its most probable tokens.
    list_size: C, the length of such a list.
  """
  own_fn = functools.partial(own_statistics, network=network)
  if access == "probabilities":
    return ForwardPasses(
      own_fn=own_fn,
      compare_fn=functools.partial(dense_statistics, network=network),
    )
  return ForwardPasses(
    own_fn=own_fn,
    compare_fn=functools.partial(
      sparse_statistics, network=network, kind=access
    ),
    ask_fn=functools.partial(
      ask_teacher, network=network, kind=access, size=list_size
    ),
  )


def dense_statistics(
  params: decoder.Params,
  teacher_params: decoder.Params,
  batch: TrainBatch,
  *,
  network: Network,
  divergence: Divergence,
) -> FusedStatistics:
  """Compares the student with a teacher whose distribution is computed.

  Args:
    params: the student's.
    teacher_params: the teacher's.
    batch: whose tokens both score, each on its own prompt.
    network: of both.
    divergence: the cost, and what it is taken on.
  """
  hidden, loads = student_states(params, batch, network=network)
  weights = _sharded_unembedding(params, batch)
  source = fused_statistics.compared(
    hidden,
    weights,
    _dense_teacher(params, teacher_params, batch, network),
    batch.completion_ids,
    dataclasses.replace(divergence, vocab_size=network.vocab_size),
    teacher_mask(batch),
    top_k_fn=_top_k_fn(params, batch),
  )
  source = source.tiled(network.chunk_size, layout(hidden, weights))
  return source._replace(loads=loads)


def sparse_statistics(
  params: decoder.Params,
  teacher_params: decoder.Params,
  batch: TrainBatch,
  *,
  network: Network,
  divergence: Divergence,
  kind: ListKind,
) -> FusedStatistics:
  """Compares the student with the lists of tokens in the batch.

  Args:
    params: the student's.
    teacher_params: not read: the teacher has answered already.
    batch: with `teacher_candidate_ids` and `teacher_candidate_log_probs`.
    network: the student's.
    divergence: the cost; the lists are its support.
    kind: what the lists hold.
  """
  del teacher_params
  hidden, loads = student_states(params, batch, network=network)
  weights = _sharded_unembedding(params, batch)
  teacher = SparseTeacher(
    batch.teacher_candidate_ids,
    batch.teacher_candidate_log_probs,
    kind,
    batch.teacher_log_probs,
  )
  source = fused_statistics.compared_with_list(
    hidden,
    weights,
    teacher,
    batch.completion_ids,
    dataclasses.replace(divergence, vocab_size=network.vocab_size),
    teacher_mask(batch),
    batch.teacher_weights,
  )
  source = source.tiled(network.chunk_size, layout(hidden, weights))
  return source._replace(loads=loads)


def own_statistics(
  params: decoder.Params, batch: TrainBatch, *, network: Network
) -> FusedStatistics:
  """Reads a policy on the student's prompts and tokens, without a teacher."""
  hidden, loads = student_states(params, batch, network=network)
  weights = _sharded_unembedding(params, batch)
  source = fused_statistics.alone(hidden, weights, batch.completion_ids)
  source = source.tiled(network.chunk_size, layout(hidden, weights))
  return source._replace(loads=loads)


def ask_teacher(
  params: decoder.Params,
  teacher_params: decoder.Params,
  batch: TrainBatch,
  keys: jax.Array,
  *,
  network: Network,
  kind: ListKind,
  size: int,
) -> TeacherLists:
  """Returns the list of tokens that the teacher gives for each state.

  Args:
    params: the student's; read by a trust region.
    teacher_params: the teacher's.
    batch: the states: the teacher's prompts and the student's tokens.
    keys: one for each sequence. Shape `[b]`.
    network: of both.
    kind: independent samples, or the most probable tokens.
    size: C, the length of a list.

  Returns:
    What takes the place of an outside teacher's answers in the batch, see
    `base.with_lists`.
  """
  teacher = _dense_teacher(params, teacher_params, batch, network)
  settings = {
    "chunk_size": network.chunk_size,
    "layout": layout(teacher.hidden[0], teacher.unembedding[0]),
    "vocab_size": network.vocab_size,
  }
  if kind == "top_k":
    return teacher_candidates.most_probable(
      teacher,
      batch.completion_ids,
      size=size,
      top_k_fn=_top_k_fn(params, batch),
      **settings,
    )
  shape = (batch.completion_ids.shape[1], size)
  # A key for each sequence, so that its list does not depend on how the batch
  # is cut.
  uniforms = jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
  return teacher_candidates.samples(teacher, uniforms, **settings)


def student_states(
  params: decoder.Params, batch: TrainBatch, *, network: Network
) -> tuple[jax.Array, experts.Loads | None]:
  """Returns the states that chose each token, on the student's prompt.

  Returns:
    Shape `[b, T, D]`, and how the tokens use the experts; None without any.
  """
  run, loads = scoring.completion_hidden_states, None
  if "router" in params["layers"]:
    run = scoring.completion_states_and_loads
  hidden = run(
    params,
    batch.prompt_ids,
    batch.prompt_mask,
    batch.completion_ids,
    batch.completion_mask,
    graphdef=network.graphdef,
  )
  if isinstance(hidden, tuple):
    hidden, loads = hidden
  return _shard_states(hidden), loads


def _dense_teacher(
  params: decoder.Params,
  teacher_params: decoder.Params,
  batch: TrainBatch,
  network: Network,
) -> DenseTeacher:
  """Returns hidden states and unembeddings whose products make the logits."""
  prefix = None
  if batch.teacher_prefix_ids is not None:
    prefix = (batch.teacher_prefix_ids, batch.teacher_prefix_mask)

  def run(params, graphdef):
    def score(prompt_ids, prompt_mask, prefix=None):
      return scoring.completion_hidden_states(
        params,
        prompt_ids,
        prompt_mask,
        batch.completion_ids,
        batch.completion_mask,
        graphdef=graphdef,
        prefix=prefix,
      )

    hidden = score(batch.teacher_prompt_ids, batch.teacher_prompt_mask, prefix)
    if batch.turn_numbers is not None:
      hidden = teacher_turns.states_by_turn(hidden, batch, score)
    return _shard_states(hidden), _sharded_unembedding(params, batch)

  other = network.teacher
  graphdef = network.graphdef if other is None else other.graphdef
  assert graphdef is not None, "a teacher elsewhere gives lists"
  hidden, weights = run(teacher_params, graphdef)
  rate = network.trust_region_rate
  if rate is None:
    return DenseTeacher((hidden,), (weights,))
  # The student's share of its own teacher is a label like the rest of it.
  own_hidden, own_weights = run(jax.lax.stop_gradient(params), network.graphdef)
  # Logits are linear in the hidden states, and so is their mixture.
  return DenseTeacher(
    ((1 - rate) * hidden, rate * own_hidden), (weights, own_weights)
  )


def _top_k_fn(params: decoder.Params, batch: TrainBatch) -> TopKFn:
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
    shard_states=_shard_states,
  )


def _shard_states(hidden: jax.Array) -> jax.Array:
  """Gives each device a part of the width of all tokens.

  So a chunk of time is a slice on every device, and nothing is moved for it.
  """
  return sharding.constrain(hidden, "batch", None, "embed_by_context")


def _sharded_unembedding(
  params: decoder.Params, batch: TrainBatch
) -> jax.Array:
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
