"""Defines the statistics of tokens that objectives are made of."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
from flax import struct

from distil_jax.ops import divergences, vocabulary
from distil_jax.ops.divergences import Divergence

ListKind = Literal["samples", "top_k"]


@struct.dataclass
class TokenStatistics:
  """Holds what a loss needs of each token. Nats, float32, `[B, T]` each.

  Gradients flow through `costs`, `log_probs` and `entropies`. The others are
  constants, to compare with or to carry as credit.

  Attributes:
    costs: the divergence from the teacher.
    cross_entropies: of the teacher's distribution under the student's, on the
      divergence's support and at its temperature.
    teacher_entropies: the teacher's entropy there.
    log_probs: the student's log-probability of the token that was sampled, in
      the whole vocabulary at temperature 1; −inf for padding of it and NaN for
      an id outside it, which the student cannot have sampled.
    entropies: the student's entropy, in the whole vocabulary at temperature 1.
    teacher_log_probs: the teacher's log-probability of that token, likewise.
      None if the teacher is known by lists that do not tell it.
  """

  costs: jax.Array
  cross_entropies: jax.Array
  teacher_entropies: jax.Array
  log_probs: jax.Array
  entropies: jax.Array
  teacher_log_probs: jax.Array | None


class OwnStatistics(NamedTuple):
  """Holds what a policy alone says of each token. Nats, float32, `[B, T]`.

  Attributes:
    log_probs: as in `TokenStatistics`.
    entropies: as in `TokenStatistics`.
  """

  log_probs: jax.Array
  entropies: jax.Array


class DenseTeacher(NamedTuple):
  """A teacher whose whole distribution is known.

  Attributes:
    hidden: hidden states, shape `[B, T, E]` each; the logits of several are
      summed.
    unembedding: shape `[E, V]` each.
    is_used: False for a summand that is 0 everywhere and need not be computed,
      scalars; None means that all are needed.
  """

  hidden: Sequence[jax.Array]
  unembedding: Sequence[jax.Array]
  is_used: Sequence[jax.Array] | None = None


class TeacherLists(NamedTuple):
  """Holds what a teacher that is known by lists says of each token.

  Attributes:
    ids: C tokens for each of the student's. Shape `[B, T, C]`.
    log_probs: of these tokens, nats. Shape `[B, T, C]`.
    token_log_probs: the teacher's log-probability of the student's token
      itself, nats, whether it is listed or not; None if that is not known.
      Shape `[B, T]`.
  """

  ids: jax.Array
  log_probs: jax.Array
  token_log_probs: jax.Array | None = None


class SparseTeacher(NamedTuple):
  """A teacher of whom a short list of tokens is known at each state.

    samples   a₁ … a_C ~ π_T, of log-probability −log C each; duplicates are
              allowed. Cost −Σ p_c log π_θ(a_c), in the student's whole
              vocabulary: unbiased for the cross-entropy and its gradient.
    top_k     distinct tokens with the teacher's own log-probabilities. Any
              divergence is taken on the C tokens and, with a tail, on one
              bucket on each side for all other tokens; without, both sides are
              renormalised over the list. It is that of
              `Divergence(top_k=C, top_k_of="teacher")`.

  A candidate of log-probability −inf is absent, whatever its id, so that lists
  may differ in length.

  A list does not tell everything. `teacher_entropies` of samples are 0: costs
  and returns there are cross-entropies. The teacher's tail is 1 less the mass
  of the list, but at least `list_statistics.LEAST_TAIL`. Without a tail, costs
  are NaN if a list is empty.

  Attributes:
    ids: shape `[B, T, C]`.
    log_probs: nats. Shape `[B, T, C]`.
    kind: what the list holds.
    token_log_probs: see `TeacherLists`.
  """

  ids: jax.Array
  log_probs: jax.Array
  kind: ListKind
  token_log_probs: jax.Array | None = None


def from_logits(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  token_ids: jax.Array,
  divergence: Divergence = Divergence(),  # noqa: B008 (frozen)
) -> TokenStatistics:
  """Returns the statistics from logits that fit into memory.

  Args:
    student_logits: float32 or wider. Shape `[..., V]`.
    teacher_logits: no gradient flows to them. Shape `[..., V]`.
    token_ids: shape `[...]`.
    divergence: the cost, and what it is taken on.

  Returns:
    The statistics. Shape `[...]` each.
  """
  # The teacher's distribution is a label: the student must not move it.
  teacher_logits = jax.lax.stop_gradient(teacher_logits)
  student_logits, teacher_logits = (
    vocabulary.only_tokens(logits, divergence.vocab_size)
    for logits in (student_logits, teacher_logits)
  )
  student, teacher = divergences.log_probs_on_support(
    student_logits, teacher_logits, divergence
  )
  log_softmax = jax.nn.log_softmax(student_logits, axis=-1)
  return TokenStatistics(
    costs=divergences.cost(student, teacher, divergence),
    # Carried as credit, which is a constant weight of the score function.
    cross_entropies=jax.lax.stop_gradient(
      divergences.forward_cross_entropy(student, teacher)
    ),
    teacher_entropies=divergences.entropy(teacher),
    log_probs=vocabulary.pick(log_softmax, token_ids),
    entropies=divergences.entropy(log_softmax),
    teacher_log_probs=vocabulary.pick(
      jax.nn.log_softmax(teacher_logits), token_ids
    ),
  )
