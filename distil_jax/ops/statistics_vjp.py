"""Computes token statistics from a tile of logits, and their vjp by hand.

A tile holds the logits of student and teacher for a few tokens. Every
statistic is a sum over V and every gradient is made entry by entry, so that a
vocabulary that is cut over devices stays where it is. The two passes share
only a few numbers a token, the residuals. Autodiff of
`token_statistics.from_logits` gives the same gradients.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distil_jax.ops import divergences, vocabulary
from distil_jax.ops.divergences import Divergence, TopKFn


class _Norm(NamedTuple):
  """Holds log Σ exp of some logits in two parts, whose sum would be rounded.

  Attributes:
    largest: shape `[..., 1]`.
    rest: the logarithm of the sum over exp(logits − largest); −inf where no
      entry has mass. Shape `[..., 1]`.
  """

  largest: jax.Array
  rest: jax.Array

  def log_probs(self, logits: jax.Array) -> jax.Array:
    """Returns the log-probabilities of entries, nats. Shape `[..., V]`."""
    # In this order large numbers cancel before the small one is subtracted.
    return (logits - self.largest) - self.rest


class _Side(NamedTuple):
  """Describes one distribution, the student's or the teacher's, on the support.

  Attributes:
    norm: over the support.
    others: over the tokens that are not kept; None if all are kept, or if the
      others are left out.
    tail: log-probability of all those, nats, `[..., 1]`; None likewise.
  """

  norm: _Norm
  others: _Norm | None
  tail: jax.Array | None


class Residuals(NamedTuple):
  """Holds what `vjp` needs from `read`, besides the tile itself.

  Attributes:
    threshold: the smallest logit that is kept, and the last index of those
      equal to it, `[..., 1]` each; None means that all are kept.
    student, teacher: the two distributions on the support.
    whole: the student's norm over the whole vocabulary at temperature 1.
    entropies: the student's entropy there, nats. Shape `[..., 1]`.
  """

  threshold: tuple[jax.Array, jax.Array] | None
  student: _Side
  teacher: _Side
  whole: _Norm
  entropies: jax.Array


def read(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  token_ids: jax.Array,
  divergence: Divergence,
  top_k_fn: TopKFn = jax.lax.top_k,
) -> tuple[dict[str, jax.Array], Residuals]:
  """Returns the fields of `TokenStatistics`, and what `vjp` needs.

  Args:
    student_logits: float32 or wider. Shape `[..., V]`.
    teacher_logits: shape `[..., V]`.
    token_ids: shape `[...]`.
    divergence: the cost, and what it is taken on.
    top_k_fn: finds the largest logits if only these are kept.

  Returns:
    The statistics, nats, `[...]` each, and the residuals.
  """
  student_logits, teacher_logits = _of_tokens(
    divergence, student_logits, teacher_logits
  )
  student_scaled, teacher_scaled = _scaled(
    divergence, student_logits, teacher_logits
  )
  threshold = _threshold(student_scaled, teacher_scaled, divergence, top_k_fn)
  kept = _kept(student_scaled, teacher_scaled, threshold, divergence)
  student = _side(student_scaled, kept, divergence)
  teacher = _side(teacher_scaled, kept, divergence)
  # If nothing is left out at temperature 1, the support's norm is already that
  # of the whole vocabulary, and a second pass over V is saved.
  whole, teacher_whole = student.norm, teacher.norm
  is_renormalised = kept is not None and not divergence.tail
  if is_renormalised or divergence.temperature != 1:
    whole, teacher_whole = _norm(student_logits), _norm(teacher_logits)
  log_student = student.norm.log_probs(student_scaled)
  log_teacher = teacher.norm.log_probs(teacher_scaled)

  def total(function):
    """Returns the sum over the support, the tail's bucket included."""
    values = function(log_student, log_teacher)
    if kept is not None:
      # A masked sum, not a gather of the kept tokens: a gather would bring
      # together a vocabulary that is cut over devices.
      values = jnp.where(kept, values, 0.0)
    sums = jnp.sum(values, axis=-1)
    if student.tail is not None and teacher.tail is not None:
      sums = sums + function(student.tail, teacher.tail)[..., 0]
    return sums

  log_softmax = whole.log_probs(student_logits)
  entropies = divergences.entropy(log_softmax)
  statistics = {
    "costs": total(lambda s, t: divergences.summands(s, t, divergence)),
    "cross_entropies": total(lambda s, t: -divergences.product(jnp.exp(t), s)),
    "teacher_entropies": total(
      lambda _, t: -divergences.product(jnp.exp(t), t)
    ),
    "log_probs": vocabulary.pick(log_softmax, token_ids),
    "entropies": entropies,
    "teacher_log_probs": vocabulary.pick(
      teacher_whole.log_probs(teacher_logits), token_ids
    ),
  }
  return statistics, Residuals(
    threshold, student, teacher, whole, entropies[..., None]
  )


def vjp(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  token_ids: jax.Array,
  divergence: Divergence,
  residuals: Residuals,
  *,
  costs: jax.Array,
  log_probs: jax.Array,
  entropies: jax.Array,
) -> jax.Array:
  """Returns the gradient with respect to the student's logits.

    cost        (gᵥ − sᵥ Σ g) / temperature     g: gradients of the summands;
                                                the tail's is shared by its
                                                tokens
    log π(y)    1[v = y] − πᵥ
    entropy     −πᵥ (log πᵥ + H)

  Args:
    student_logits, teacher_logits, token_ids, divergence: as for `read`.
    residuals: from `read`.
    costs, log_probs, entropies: cotangents of these statistics, `[...]` each.

  Returns:
    The sum of the three, each times its cotangent. Shape `[..., V]`.
  """
  r = residuals
  costs = costs[..., None]
  # Scaled logits and who is kept are made again, because they are as large as
  # the tile; the residuals are a few numbers for each token.
  student_logits, teacher_logits = _of_tokens(
    divergence, student_logits, teacher_logits
  )
  student_scaled, teacher_scaled = _scaled(
    divergence, student_logits, teacher_logits
  )
  # The threshold decides again who is kept, so that the search for the k
  # largest runs in the forward pass only.
  kept = _kept(student_scaled, teacher_scaled, r.threshold, divergence)
  log_student = r.student.norm.log_probs(student_scaled)
  own = divergences.gradients(
    log_student, r.teacher.norm.log_probs(teacher_scaled), divergence
  )
  probs = jnp.exp(log_student)
  if kept is None:
    total = jnp.sum(own, axis=-1, keepdims=True)
  else:
    total = jnp.sum(jnp.where(kept, own, 0.0), axis=-1, keepdims=True)
    tail, share = _tail_gradients(r, student_scaled, divergence)
    # The derivative of a log Σ exp is a softmax: each token of the bucket gets
    # the bucket's gradient in proportion to its share of the bucket.
    own = jnp.where(kept, own, divergences.product(share, tail))
    total = total + tail
    # With a tail the norm is that of the whole vocabulary, and every token has
    # a probability. Without one, dropped tokens have none.
    if not divergence.tail:
      probs = jnp.where(kept, probs, 0.0)
  # The softmax's own derivative: raising one logit lowers all other entries.
  gradient = costs * (own - probs * total) / divergence.temperature
  log_softmax = r.whole.log_probs(student_logits)
  return gradient + _own_gradients(
    log_softmax, token_ids, r.entropies, log_probs, entropies
  )


def _tail_gradients(r: Residuals, scaled, divergence: Divergence):
  """Returns the bucket's gradient `[..., 1]` and tokens' shares `[..., V]`."""
  others = r.student.others
  if others is None or r.student.tail is None or r.teacher.tail is None:
    return jnp.float32(0.0), jnp.zeros_like(scaled)
  # If the others have no mass there is nothing to share.
  has_mass = others.rest != -jnp.inf
  share = jnp.where(has_mass, jnp.exp(others.log_probs(scaled)), 0.0)
  return divergences.gradients(
    r.student.tail, r.teacher.tail, divergence
  ), share


def read_own(
  logits: jax.Array, token_ids: jax.Array, vocab_size: int | None = None
) -> tuple[tuple[jax.Array, jax.Array], Any]:
  """Returns each token's log-probability and the entropy, without a teacher.

  Args:
    logits: shape `[..., V]`.
    token_ids: shape `[...]`.
    vocab_size: see `Divergence`.

  Returns:
    Nats, `[...]` each, and what `own_vjp` needs.
  """
  logits = vocabulary.only_tokens(logits, vocab_size)
  norm = _norm(logits)
  log_softmax = norm.log_probs(logits)
  entropies = divergences.entropy(log_softmax)
  found = (vocabulary.pick(log_softmax, token_ids), entropies)
  return found, (norm, entropies[..., None])


def own_vjp(
  logits: jax.Array,
  token_ids: jax.Array,
  residuals: Any,
  vocab_size: int | None = None,
  *,
  log_probs: jax.Array,
  entropies: jax.Array,
) -> jax.Array:
  """Returns the gradient with respect to the logits, `[..., V]`; see `vjp`."""
  logits = vocabulary.only_tokens(logits, vocab_size)
  norm, own_entropies = residuals
  return _own_gradients(
    norm.log_probs(logits), token_ids, own_entropies, log_probs, entropies
  )


def _own_gradients(log_softmax, token_ids, own_entropies, log_probs, entropies):
  """Returns the gradient of log-probabilities and entropies.

  `own_entropies` are the values, `[..., 1]`; `log_probs` and `entropies` the
  cotangents, `[...]`.
  """
  softmax = jnp.exp(log_softmax)
  is_token = jnp.where(vocabulary.is_token(softmax, token_ids), 1.0, 0.0)
  # An id outside the vocabulary has the value NaN; its gradient must be 0, or
  # NaN at padding would reach the weights.
  log_probs = jnp.where(
    vocabulary.is_in_vocabulary(softmax, token_ids), log_probs, 0
  )
  # `product` keeps 0 · −inf of excluded tokens out of the gradient.
  spread = divergences.product(softmax, log_softmax + own_entropies)
  return (
    log_probs[..., None] * (is_token - softmax) - entropies[..., None] * spread
  )


def _of_tokens(divergence: Divergence, *logits: jax.Array):
  """Returns each of the logits without padding of the vocabulary."""
  return (vocabulary.only_tokens(x, divergence.vocab_size) for x in logits)


def _scaled(divergence: Divergence, student, teacher):
  """Returns both logits at the divergence's temperature."""
  if divergence.temperature == 1:
    return student, teacher
  return student / divergence.temperature, teacher / divergence.temperature


def _norm(logits: jax.Array, where: jax.Array | None = None) -> _Norm:
  """Returns the norm of all entries, or of some of them."""
  if where is not None:
    logits = jnp.where(where, logits, -jnp.inf)
  largest = jnp.max(logits, axis=-1, keepdims=True)
  # With nothing but −inf, −inf − (−inf) would be NaN.
  largest = jnp.where(largest == -jnp.inf, 0.0, largest)
  return _Norm(
    largest,
    jnp.log(jnp.sum(jnp.exp(logits - largest), axis=-1, keepdims=True)),
  )


def _side(logits, kept, divergence: Divergence) -> _Side:
  """Returns one distribution on the support that `kept` describes."""
  if kept is None:
    return _Side(_norm(logits), None, None)
  if not divergence.tail:
    return _Side(_norm(logits, kept), None, None)
  norm, others = _norm(logits), _norm(logits, ~kept)
  # The two large numbers are subtracted before the small one is added, so that
  # no digits of it are lost.
  return _Side(norm, others, norm.log_probs(others.largest) + others.rest)


def _chooser(student, teacher, divergence: Divergence) -> jax.Array:
  return student if divergence.top_k_of == "student" else teacher


def _threshold(student, teacher, divergence: Divergence, top_k_fn: TopKFn):
  if divergence.top_k is None or divergence.top_k >= student.shape[-1]:
    return None
  chooser = _chooser(student, teacher, divergence)
  return divergences.threshold(chooser, divergence.top_k, top_k_fn)


def _kept(student, teacher, threshold, divergence: Divergence):
  """Returns True for tokens that are in the support themselves, not its tail.

  None means that all are.
  """
  if threshold is None:
    return None
  return divergences.is_kept(_chooser(student, teacher, divergence), *threshold)
