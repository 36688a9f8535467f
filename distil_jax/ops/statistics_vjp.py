"""What is read off a tile of logits, and how it pulls on them, in closed form.

A tile has the logits of student and teacher for some tokens. Every number here
is a sum over V and every slope is made entry by entry, so that a vocabulary
that is cut over devices stays where it is; what the two passes share is a few
numbers a token. Autodiff of `unembedding.from_logits` gives the same.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distil_jax.ops import divergences
from distil_jax.ops.divergences import Divergence, TopKFn


class _Norm(NamedTuple):
  """log Σ exp of some logits, in two parts: a sum of both would be rounded.

  Attributes:
    largest: shape `[..., 1]`.
    rest: the logarithm of the sum over exp(logits − largest); −inf where no
      entry has mass. Shape `[..., 1]`.
  """

  largest: jax.Array
  rest: jax.Array

  def of(self, logits: jax.Array) -> jax.Array:
    """Log-probabilities of entries. Shape `[..., V]`."""
    return (logits - self.largest) - self.rest


class _Side(NamedTuple):
  """One distribution on the support.

  Attributes:
    norm: over the support.
    others: over the tokens that are not kept; None where all are, or where
      they are left out.
    tail: log-probability of all those, `[..., 1]`; None likewise.
  """

  norm: _Norm
  others: _Norm | None
  tail: jax.Array | None


class Residuals(NamedTuple):
  """What `pull` needs of `read`, besides the tile itself.

  Attributes:
    threshold: the least logit that is kept, and the last index of those equal
      to it, `[..., 1]` each; None: all are kept.
    student, teacher: on the support.
    whole: the student's, over the whole vocabulary at temperature 1.
    entropies: the student's, there. Shape `[..., 1]`.
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
  """The fields of `unembedding.TokenStatistics`, and what `pull` needs.

  Args:
    student_logits: float32 or wider. Shape `[..., V]`.
    teacher_logits: shape `[..., V]`.
    token_ids: shape `[...]`.
    divergence: the cost, and what it is taken on.
    top_k_fn: finds the largest logits where only these are kept.

  Returns:
    nats, `[...]` each, and the residuals.
  """
  student_scaled, teacher_scaled = _scaled(
    student_logits, teacher_logits, divergence
  )
  threshold = _threshold(student_scaled, teacher_scaled, divergence, top_k_fn)
  kept = _kept(student_scaled, teacher_scaled, threshold, divergence)
  student = _side(student_scaled, kept, divergence)
  teacher = _side(teacher_scaled, kept, divergence)
  # The same sums where nothing is left out at temperature 1.
  whole, teacher_whole = student.norm, teacher.norm
  is_renormalised = kept is not None and not divergence.tail
  if is_renormalised or divergence.temperature != 1:
    whole, teacher_whole = _norm(student_logits), _norm(teacher_logits)
  log_student = student.norm.of(student_scaled)
  log_teacher = teacher.norm.of(teacher_scaled)

  def total(function):
    """Σ over the support."""
    values = function(log_student, log_teacher)
    if kept is not None:
      values = jnp.where(kept, values, 0.0)
    sums = jnp.sum(values, axis=-1)
    if student.tail is not None and teacher.tail is not None:
      sums = sums + function(student.tail, teacher.tail)[..., 0]
    return sums

  log_softmax = whole.of(student_logits)
  entropies = divergences.entropy(log_softmax)
  statistics = {
    "costs": total(lambda s, t: divergences.summands(s, t, divergence)),
    "cross_entropies": total(lambda s, t: -divergences.product(jnp.exp(t), s)),
    "teacher_entropies": total(
      lambda _, t: -divergences.product(jnp.exp(t), t)
    ),
    "log_probs": pick(log_softmax, token_ids),
    "entropies": entropies,
    "teacher_log_probs": pick(teacher_whole.of(teacher_logits), token_ids),
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
  """Slopes of the student's logits.

    cost        (gᵥ − sᵥ Σ g) / temperature     g: slopes of the summands; the
                                                tail's is shared by its tokens
    log π(y)    1[v = y] − πᵥ
    entropy     −πᵥ (log πᵥ + H)

  Args:
    student_logits, teacher_logits, token_ids, divergence: as in `read`.
    residuals: from there.
    costs, log_probs, entropies: cotangents of these statistics, `[...]` each.

  Returns:
    Shape `[..., V]`.
  """
  r = residuals
  costs = costs[..., None]
  student_scaled, teacher_scaled = _scaled(
    student_logits, teacher_logits, divergence
  )
  kept = _kept(student_scaled, teacher_scaled, r.threshold, divergence)
  log_student = r.student.norm.of(student_scaled)
  own = divergences.gradients(
    log_student, r.teacher.norm.of(teacher_scaled), divergence
  )
  probs = jnp.exp(log_student)
  if kept is None:
    total = jnp.sum(own, axis=-1, keepdims=True)
  else:
    total = jnp.sum(jnp.where(kept, own, 0.0), axis=-1, keepdims=True)
    tail, share = _tail_slopes(r, student_scaled, divergence)
    own = jnp.where(kept, own, divergences.product(share, tail))
    total = total + tail
    if not divergence.tail:
      probs = jnp.where(kept, probs, 0.0)
  slopes = costs * (own - probs * total) / divergence.temperature
  log_softmax = r.whole.of(student_logits)
  return slopes + _own_slopes(
    log_softmax, token_ids, r.entropies, log_probs, entropies
  )


def _tail_slopes(r: Residuals, scaled, divergence: Divergence):
  """Slope of the bucket, `[..., 1]`, and each token's share, `[..., V]`."""
  others = r.student.others
  if others is None or r.student.tail is None or r.teacher.tail is None:
    return jnp.float32(0.0), jnp.zeros_like(scaled)
  # Where the others have no mass there is nothing to share.
  has_mass = others.rest != -jnp.inf
  share = jnp.where(has_mass, jnp.exp(others.of(scaled)), 0.0)
  return divergences.gradients(
    r.student.tail, r.teacher.tail, divergence
  ), share


def read_own(
  logits: jax.Array, token_ids: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], Any]:
  """Log-probability of each token and entropy, where there is no teacher.

  Args:
    logits: shape `[..., V]`.
    token_ids: shape `[...]`.

  Returns:
    nats, `[...]` each, and what `pull_own` needs.
  """
  norm = _norm(logits)
  log_softmax = norm.of(logits)
  entropies = divergences.entropy(log_softmax)
  found = (pick(log_softmax, token_ids), entropies)
  return found, (norm, entropies[..., None])


def own_vjp(
  logits: jax.Array,
  token_ids: jax.Array,
  residuals: Any,
  *,
  log_probs: jax.Array,
  entropies: jax.Array,
) -> jax.Array:
  """Slopes of the logits, `[..., V]`; see `pull`."""
  norm, of_state = residuals
  return _own_slopes(norm.of(logits), token_ids, of_state, log_probs, entropies)


def _own_slopes(log_softmax, token_ids, of_state, log_probs, entropies):
  """Of log-probabilities and entropies, whose values are `of_state`."""
  softmax = jnp.exp(log_softmax)
  is_token = jnp.where(_is_token(softmax, token_ids), 1.0, 0.0)
  log_probs = jnp.where(_is_word(softmax, token_ids), log_probs, 0)
  spread = divergences.product(softmax, log_softmax + of_state)
  return (
    log_probs[..., None] * (is_token - softmax) - entropies[..., None] * spread
  )


def pick(values: jax.Array, ids: jax.Array) -> jax.Array:
  """values[..., ids] as a masked sum: V may be sharded without a gather.

  NaN for an id outside the vocabulary: the empty sum would be a probability
  of 1.
  """
  picked = jnp.sum(jnp.where(_is_token(values, ids), values, 0.0), axis=-1)
  return jnp.where(_is_word(values, ids), picked, jnp.nan)


def _is_word(values: jax.Array, ids: jax.Array) -> jax.Array:
  return (ids >= 0) & (ids < values.shape[-1])


def _is_token(values: jax.Array, ids: jax.Array) -> jax.Array:
  vocabulary = jax.lax.broadcasted_iota(
    jnp.int32, values.shape, values.ndim - 1
  )
  return vocabulary == ids[..., None]


def _scaled(student, teacher, divergence: Divergence):
  if divergence.temperature == 1:
    return student, teacher
  return student / divergence.temperature, teacher / divergence.temperature


def _norm(logits: jax.Array, where: jax.Array | None = None) -> _Norm:
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
  if kept is None:
    return _Side(_norm(logits), None, None)
  if not divergence.tail:
    return _Side(_norm(logits, kept), None, None)
  norm, others = _norm(logits), _norm(logits, ~kept)
  return _Side(norm, others, norm.of(others.largest) + others.rest)


def _chooser(student, teacher, divergence: Divergence) -> jax.Array:
  return student if divergence.top_k_of == "student" else teacher


def _threshold(student, teacher, divergence: Divergence, top_k_fn: TopKFn):
  if divergence.top_k is None or divergence.top_k >= student.shape[-1]:
    return None
  chooser = _chooser(student, teacher, divergence)
  return divergences.threshold(chooser, divergence.top_k, top_k_fn)


def _kept(student, teacher, threshold, divergence: Divergence):
  """Which tokens are in the support by themselves; None: all of them."""
  if threshold is None:
    return None
  return divergences.is_kept(_chooser(student, teacher, divergence), *threshold)
