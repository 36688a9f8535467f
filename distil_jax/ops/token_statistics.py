"""Statistics of tokens that objectives are made of."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
from flax import struct

from distil_jax.ops import divergences, statistics_vjp
from distil_jax.ops.divergences import Divergence

ListKind = Literal["samples", "top_k"]


@struct.dataclass
class TokenStatistics:
  """Numbers of each token, nats, float32. Shape `[B, T]` each.

  Gradients flow through `costs`, `log_probs` and `entropies`; the others are
  numbers to compare with or to carry as credit, and constants.

  Attributes:
    costs: by the divergence.
    cross_entropies: of the teacher's distribution under the student's, on the
      divergence's support and at its temperature.
    teacher_entropies: the teacher's entropy there.
    log_probs: the student's log-probability of the token that was sampled, in
      the whole vocabulary at temperature 1; NaN for an id that is outside it,
      which can be no sample of the student's.
    entropies: the student's entropy, likewise.
    teacher_log_probs: the teacher's log-probability of that token, likewise.
  """

  costs: jax.Array
  cross_entropies: jax.Array
  teacher_entropies: jax.Array
  log_probs: jax.Array
  entropies: jax.Array
  teacher_log_probs: jax.Array


class OwnStatistics(NamedTuple):
  """What a policy says by itself, nats, float32. Shape `[B, T]` each.

  Attributes:
    log_probs: as in `TokenStatistics`.
    entropies: likewise.
  """

  log_probs: jax.Array
  entropies: jax.Array


class Expert(NamedTuple):
  """A teacher that tells its whole distribution.

  Attributes:
    hidden: shape `[B, T, E]` each; logits of several are summed.
    unembedding: shape `[E, V]` each.
  """

  hidden: Sequence[jax.Array]
  unembedding: Sequence[jax.Array]


class SparseTeacher(NamedTuple):
  """A teacher that is known by a short list of tokens at each state.

    samples   a₁ … a_C ~ π_T, of log-probability −log C each; duplicates are
              allowed. Cost −Σ p_c log π_θ(a_c), in the student's whole
              vocabulary: unbiased for the cross-entropy and its gradient.
    top_k     distinct tokens with the teacher's own log-probabilities. With a
              tail, one bucket on each side for all other tokens; without,
              both sides are renormalised over the list.

  A candidate of log-probability −inf is absent, whatever its id, so that lists
  may differ in length.

  A list does not say everything. `teacher_log_probs` is 0, and so is
  `teacher_entropies` of samples: costs and returns there are cross-entropies.
  The teacher's tail is 1 less the mass of the list, and 0 where rounding has
  taken that mass past 1. Without a tail, costs are NaN where a list is empty.

  Attributes:
    ids: shape `[B, T, C]`.
    log_probs: nats. Shape `[B, T, C]`.
    kind: what the list is.
    tail: of `top_k`; samples have none.
  """

  ids: jax.Array
  log_probs: jax.Array
  kind: ListKind
  tail: bool = False


def from_logits(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  token_ids: jax.Array,
  divergence: Divergence = Divergence(),  # noqa: B008 (frozen)
) -> TokenStatistics:
  """The same statistics from logits that fit into memory.

  Args:
    student_logits: float32 or wider. Shape `[..., V]`.
    teacher_logits: no gradient flows to them. Shape `[..., V]`.
    token_ids: shape `[...]`.
    divergence: the cost, and what it is taken on.

  Returns:
    shape `[...]` each.
  """
  teacher_logits = jax.lax.stop_gradient(teacher_logits)
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
    log_probs=statistics_vjp.pick(log_softmax, token_ids),
    entropies=divergences.entropy(log_softmax),
    teacher_log_probs=statistics_vjp.pick(
      jax.nn.log_softmax(teacher_logits), token_ids
    ),
  )
