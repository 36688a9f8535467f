"""Runs student and teacher on the student's tokens, up to their statistics.

The teacher gives its distribution, or a list of tokens for each of the
student's; the list of an outside teacher takes the same place.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from distil_jax.models import decoder, experts, layers
from distil_jax.objectives import logits_layout, scoring, teacher_turns
from distil_jax.objectives.base import ForwardPasses, teacher_mask
from distil_jax.ops import fused_statistics, teacher_candidates
from distil_jax.ops.divergences import Divergence
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
      student's, and as many of these are tokens. None if it runs elsewhere and
      its lists are in the batch.
  """

  graphdef: nnx.GraphDef | None


# One teacher, or several; None is the student's own network.
TeacherNetwork = OtherNetwork | tuple[OtherNetwork | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Network:
  """The networks of student and teacher, mostly one, and how they are run.

  Attributes:
    graphdef: the student's, from `decoder.make`.
    teacher: the teacher's, if that is another model; None means the same. Of
      a tuple `TrainBatch.teacher_index` chooses one for each sequence, and the
      teachers' parameters are a tuple too.
    chunk_size: columns of time whose logits are in memory at once; None
      chooses by memory.
    trust_region_rate: makes the teacher's logits (1 − rate) times those of the
      teacher's parameters plus rate times those of the student's, all on the
      teacher's prompt. None takes the teacher's alone.
  """

  graphdef: nnx.GraphDef
  teacher: TeacherNetwork = None
  chunk_size: int | None = None
  trust_region_rate: float | None = None

  def num_tokens(self, params: decoder.Params) -> int | None:
    """Returns the entries of the logits that are tokens; None means all.

    Every teacher has the student's tokenizer, so that it knows the same ones.

    Args:
      params: the student's.
    """
    return layers.num_tokens(self.graphdef, params)


def forward_passes(
  network: Network,
  *,
  access: Literal["probabilities", "samples", "top_k"] = "probabilities",
  list_size: int = 0,
  teacher_names: tuple[str, ...] = (),
) -> ForwardPasses:
  """Binds the network, and how the teacher is asked.

  Args:
    network: of student and teacher.
    access: what the teacher gives: its distribution, or lists of samples or of
      its most probable tokens.
    list_size: C, the length of such a list.
    teacher_names: of several teachers.
  """
  own_fn = functools.partial(own_statistics, network=network)
  if access == "probabilities":
    return ForwardPasses(
      own_fn=own_fn,
      compare_fn=functools.partial(dense_statistics, network=network),
      teacher_names=teacher_names,
    )
  return ForwardPasses(
    own_fn=own_fn,
    compare_fn=functools.partial(
      sparse_statistics, network=network, kind=access
    ),
    ask_fn=functools.partial(
      ask_teacher, network=network, kind=access, size=list_size
    ),
    teacher_names=teacher_names,
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
  weights = logits_layout.sharded_unembedding(params, batch)
  source = fused_statistics.compared(
    hidden,
    weights,
    _dense_teacher(params, teacher_params, batch, network),
    batch.completion_ids,
    dataclasses.replace(divergence, vocab_size=network.num_tokens(params)),
    teacher_mask(batch),
    top_k_fn=logits_layout.top_k_fn(params, batch),
  )
  source = source.tiled(
    network.chunk_size, logits_layout.layout(hidden, weights)
  )
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
  weights = logits_layout.sharded_unembedding(params, batch)
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
    dataclasses.replace(divergence, vocab_size=network.num_tokens(params)),
    teacher_mask(batch),
    batch.teacher_weights,
  )
  source = source.tiled(
    network.chunk_size, logits_layout.layout(hidden, weights)
  )
  return source._replace(loads=loads)


def own_statistics(
  params: decoder.Params, batch: TrainBatch, *, network: Network
) -> FusedStatistics:
  """Reads a policy on the student's prompts and tokens, without a teacher."""
  hidden, loads = student_states(params, batch, network=network)
  weights = logits_layout.sharded_unembedding(params, batch)
  source = fused_statistics.alone(
    hidden, weights, batch.completion_ids, network.num_tokens(params)
  )
  source = source.tiled(
    network.chunk_size, logits_layout.layout(hidden, weights)
  )
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
    "layout": logits_layout.layout(teacher.hidden[0], teacher.unembedding[0]),
    "vocab_size": network.num_tokens(params),
  }
  if kind == "top_k":
    return teacher_candidates.most_probable(
      teacher,
      batch.completion_ids,
      size=size,
      top_k_fn=logits_layout.top_k_fn(params, batch),
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
  return logits_layout.shard_states(hidden), loads


def _dense_teacher(
  params: decoder.Params,
  teacher_params: Any,
  batch: TrainBatch,
  network: Network,
) -> DenseTeacher:
  """Returns hidden states and unembeddings whose products make the logits."""
  if not isinstance(network.teacher, tuple):
    hidden, unembeddings, _ = _parts(
      params, teacher_params, batch, network, network.teacher
    )
    return DenseTeacher(hidden, unembeddings)
  # The logits of several parts are summed, and in the rows of another teacher
  # they are 0.
  parts = [
    _parts(
      params, own_params, batch, network, other, batch.teacher_index == number
    )
    for number, (own_params, other) in enumerate(
      zip(teacher_params, network.teacher, strict=True)
    )
  ]
  return DenseTeacher(*(sum(x, ()) for x in zip(*parts, strict=True)))


def _parts(
  params: decoder.Params,
  teacher_params: decoder.Params,
  batch: TrainBatch,
  network: Network,
  other: OtherNetwork | None,
  is_own: jax.Array | None = None,
) -> tuple[tuple[jax.Array, ...], ...]:
  """Returns what `DenseTeacher` has of one teacher.

  Its hidden states are 0 but where `is_own`, `[b]`, is True; None means that
  all rows are its own.
  """
  graphdef = network.graphdef if other is None else other.graphdef
  assert graphdef is not None, "a teacher elsewhere gives lists"
  passes, rate = [(teacher_params, graphdef, None)], network.trust_region_rate
  if rate is not None and other is None:
    # The student's share of its own teacher is a label like the rest of it.
    # Logits are linear in the hidden states, and so is their mixture.
    own = jax.lax.stop_gradient(params)
    passes = [(teacher_params, graphdef, 1 - rate)]
    passes.append((own, network.graphdef, rate))

  def states():
    found = (
      _teacher_states(params, batch, graphdef, share)
      for params, graphdef, share in passes
    )
    if is_own is None:
      return tuple(found)
    # Chosen, not weighed: what it says of other rows may be NaN.
    counts = is_own[:, None, None]
    return tuple(jnp.where(counts, x, jnp.zeros_like(x)) for x in found)

  weights = tuple(
    logits_layout.sharded_unembedding(params, batch) for params, *_ in passes
  )
  if is_own is None:
    return states(), weights, ()
  shapes = jax.eval_shape(states)
  # A teacher that no sequence here asks makes no pass.
  is_asked = jnp.any(is_own & (batch.sample_mask > 0))
  hidden = jax.lax.cond(is_asked, states, functools.partial(_zeros, shapes))
  return hidden, weights, (is_asked,) * len(passes)


def _zeros(shapes):
  """Returns hidden states whose logits are 0."""
  return tuple(
    logits_layout.shard_states(jnp.zeros(x.shape, x.dtype)) for x in shapes
  )


def _teacher_states(
  params: decoder.Params,
  batch: TrainBatch,
  graphdef: nnx.GraphDef,
  share: jax.Array | float | None,
) -> jax.Array:
  """Returns hidden states on the teacher's prompts times a share of logits.

  The share may be traced; None means all.
  """
  prefix = None
  if batch.teacher_prefix_ids is not None:
    prefix = (batch.teacher_prefix_ids, batch.teacher_prefix_mask)

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
  hidden = logits_layout.shard_states(hidden)
  return hidden if share is None else share * hidden
