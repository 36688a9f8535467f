"""Measures how far the student is from its teacher at one state.

Everything here is a function of log-probabilities over a *support*: the whole
vocabulary, or a few tokens and possibly one bucket for all others. Gradients
flow through the sum over the support. An excluded token (log-probability −inf)
contributes 0, to the gradient too.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp

# `(logits [..., V], k) -> (values, indices)`, as `jax.lax.top_k` does it.
TopKFn = Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]
Kind = Literal[
  "forward_cross_entropy", "forward_kl", "reverse_kl", "sdpo", "opsd"
]


@dataclasses.dataclass(frozen=True)
class Divergence:
  """Names a cost and the support that it is taken on; static under jit.

  Attributes:
    kind: which cost.
    weight: α of `sdpo` or β of `opsd`, in [0, 1]; None for the others.
    token_clip: `opsd` only: no token of the vocabulary may contribute more
      than this, nats. None means no limit.
    top_k: number of tokens in the support. None, or V and more, means the
      whole vocabulary, and no tail.
    top_k_of: whose most probable tokens these are.
    tail: one more bucket for the mass of all other tokens, of student and
      teacher each; without it both are renormalised over what is kept.
    temperature: divides both logits before the softmax.
    vocab_size: entries behind the first so many are padding and left out of
      both distributions. None means that all entries are tokens.
  """

  kind: Kind = "forward_cross_entropy"
  weight: float | None = None
  token_clip: float | None = None
  top_k: int | None = None
  top_k_of: Literal["student", "teacher"] = "student"
  tail: bool = True
  temperature: float = 1.0
  vocab_size: int | None = None

  def __post_init__(self):
    if self.kind not in get_args(Kind):
      raise ValueError(f"kind={self.kind!r} is none of {get_args(Kind)}")
    if self.kind in ("sdpo", "opsd"):
      if self.weight is None or not 0 <= self.weight <= 1:
        raise ValueError(
          f"kind={self.kind!r} needs a weight in [0, 1], got {self.weight}"
        )
    elif self.weight is not None:
      raise ValueError(
        f"weight={self.weight} has no meaning for kind={self.kind!r}; leave it "
        "out, or take 'sdpo' or 'opsd'"
      )
    if self.token_clip is not None and self.kind != "opsd":
      raise ValueError(
        f"token_clip={self.token_clip} is for kind='opsd', not {self.kind!r}; "
        "leave it out"
      )
    if self.token_clip is not None and not self.token_clip > 0:
      raise ValueError(
        f"token_clip={self.token_clip} must be above 0; None for no clip"
      )
    if self.top_k is not None and (
      not isinstance(self.top_k, numbers.Integral) or self.top_k < 1
    ):
      raise ValueError(
        f"top_k={self.top_k} must be at least 1, a whole number; None for "
        "the whole vocabulary"
      )
    if self.top_k_of not in ("student", "teacher"):
      raise ValueError(
        f"top_k_of={self.top_k_of!r} is neither 'student' nor 'teacher'"
      )
    if not self.temperature > 0:
      raise ValueError(f"temperature={self.temperature} must be above 0")


def log_probs_on_support(
  student_logits: jax.Array, teacher_logits: jax.Array, divergence: Divergence
) -> tuple[jax.Array, jax.Array]:
  """Returns log-probabilities of student and teacher over the support.

  Which tokens are kept carries no gradient. The mass of the others is the sum
  over them, not 1 less the kept mass: it stays exact where the kept mass
  rounds to 1, and is −inf where nothing is left.

  Args:
    student_logits: −inf excludes a token; a divergence's `vocab_size` is the
      caller's to apply, by `vocabulary.only_tokens`. Shape `[..., V]`.
    teacher_logits: shape `[..., V]`.
    divergence: its support and temperature.

  Returns:
    The student's and the teacher's, nats, at least float32. Shape `[..., C]`
    each: C is V, or the number of kept tokens, the tail's bucket included.
  """
  # At least float32: bfloat16 keeps fewer than three digits of a logit.
  student, teacher = (
    logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    / divergence.temperature
    for logits in (student_logits, teacher_logits)
  )
  top_k = divergence.top_k
  if top_k is None or top_k >= student.shape[-1]:
    return jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
  chooser = student if divergence.top_k_of == "student" else teacher
  chooser = jax.lax.stop_gradient(chooser)
  _, indices = _top_k(chooser, top_k)
  others = ~is_kept(chooser, *threshold(chooser, top_k))
  return (
    _on_kept(student, indices, others, tail=divergence.tail),
    _on_kept(teacher, indices, others, tail=divergence.tail),
  )


def threshold(
  logits: jax.Array, top_k: int, top_k_fn: TopKFn = jax.lax.top_k
) -> tuple[jax.Array, jax.Array]:
  """Returns what separates the k largest logits from the others.

  Args:
    logits: shape `[..., V]`.
    top_k: at most V.
    top_k_fn: finds them.

  Returns:
    The smallest of the k and the last index of those equal to it, for
    `is_kept`: of equal logits top-k takes those with lower indices. Shape
    `[..., 1]` each.
  """
  values, indices = _top_k(logits, top_k, top_k_fn)
  # Reduced, not sliced at the last: XLA takes a top-k of which only a slice is
  # used for a sort of the whole vocabulary.
  smallest = jnp.min(values, axis=-1, keepdims=True)
  last_index = jnp.max(
    jnp.where(values == smallest, indices, -1), axis=-1, keepdims=True
  )
  return smallest, last_index


def is_kept(
  logits: jax.Array, smallest: jax.Array, last_index: jax.Array
) -> jax.Array:
  """Returns True for the k largest logits, without a scatter over them.

  Args:
    logits: shape `[..., V]`.
    smallest, last_index: from `threshold`. Shape `[..., 1]` each.

  Returns:
    Bool. Shape `[..., V]`.
  """
  vocabulary = jax.lax.broadcasted_iota(
    last_index.dtype, logits.shape, logits.ndim - 1
  )
  return (logits > smallest) | (
    (logits == smallest) & (vocabulary <= last_index)
  )


def log_sum(logits: jax.Array, where: jax.Array) -> jax.Array:
  """Returns log Σ exp over some entries; −inf, without gradient, if no mass.

  Args:
    logits: shape `[..., V]`.
    where: True for the entries. Shape `[..., V]`.

  Returns:
    Shape `[..., 1]`.
  """
  has_mass = jnp.any(where & (logits != -jnp.inf), axis=-1, keepdims=True)
  # The logarithm of an empty sum has no finite gradient, so another sum takes
  # its place before the logarithm.
  chosen = jnp.where(where, logits, -jnp.inf)
  chosen = jnp.where(has_mass, chosen, 0.0)
  total = jax.nn.logsumexp(chosen, axis=-1, keepdims=True)
  return jnp.where(has_mass, total, -jnp.inf)


def product(probs: jax.Array, values: jax.Array) -> jax.Array:
  """Returns p · x with 0 · anything = 0: an excluded token costs nothing.

  The choice is made before the product, so that 0 · −inf is not in the gradient
  either, and p = NaN stays NaN.
  """
  return probs * jnp.where(probs == 0, 0.0, values)


def entropy(log_probs: jax.Array) -> jax.Array:
  """Returns −Σ p log p, nats. `[..., C]` to `[...]`."""
  return -jnp.sum(product(jnp.exp(log_probs), log_probs), axis=-1)


def forward_cross_entropy(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Returns −Σ t log s of log-probabilities `[..., C]`; nats, `[...]`."""
  return -jnp.sum(product(jnp.exp(teacher), student), axis=-1)


def forward_kl(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Returns KL(t‖s) of log-probabilities `[..., C]`; nats, `[...]`."""
  return jnp.sum(_relative_entropies(teacher, student), axis=-1)


def reverse_kl(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Returns KL(s‖t) of log-probabilities `[..., C]`; nats, `[...]`."""
  return jnp.sum(_relative_entropies(student, teacher), axis=-1)


def sdpo(student: jax.Array, teacher: jax.Array, *, alpha: float) -> jax.Array:
  """Returns SDPO's divergence between the two KLs (arXiv:2601.20802).

    α = 0   KL(t‖s)
    else    (1−α) KL(s‖m) + α KL(t‖m),  m = (1−α) s + α t
    α = 1   KL(s‖t)

  The ends are not limits of what is between them, which goes to 0 there.

  Args:
    student: log-probabilities. Shape `[..., C]`.
    teacher: log-probabilities. Shape `[..., C]`.
    alpha: in [0, 1].

  Returns:
    Nats. Shape `[...]`.
  """
  return jnp.sum(_jensen_shannon(student, teacher, alpha), axis=-1)


def opsd(
  student: jax.Array,
  teacher: jax.Array,
  *,
  beta: float,
  token_clip: float | None = None,
) -> jax.Array:
  """Returns OPSD's Jensen-Shannon divergence (arXiv:2601.18734).

    β = 0   KL(t‖s)
    else    β KL(t‖m) + (1−β) KL(s‖m),  m = (1−β) s + β t
    β = 1   KL(s‖t)

  Args:
    student: log-probabilities. Shape `[..., C]`.
    teacher: log-probabilities. Shape `[..., C]`.
    beta: in [0, 1].
    token_clip: upper limit of each token's summand, before they are summed.

  Returns:
    Nats. Shape `[...]`.
  """
  divergence = Divergence("opsd", weight=beta, token_clip=token_clip)
  return cost(student, teacher, divergence)


def cost(
  student: jax.Array, teacher: jax.Array, divergence: Divergence
) -> jax.Array:
  """Returns the divergence of log-probabilities over a support.

  Args:
    student: from `log_probs_on_support`. Shape `[..., C]`.
    teacher: shape `[..., C]`.
    divergence: whose kind is taken.

  Returns:
    Nats. Shape `[...]`.
  """
  return jnp.sum(summands(student, teacher, divergence), axis=-1)


def summands(
  student: jax.Array, teacher: jax.Array, divergence: Divergence
) -> jax.Array:
  """Returns what each token of the support contributes to the divergence.

  Args:
    student: log-probabilities, any shape.
    teacher: the same shape.
    divergence: whose kind, weight and clip are taken.

  Returns:
    Nats, the same shape.
  """
  clip = divergence.token_clip
  if divergence.kind == "forward_cross_entropy":
    return -product(jnp.exp(teacher), student)
  if clip is not None:
    # A clipped summand has no gradient, but 0 · inf would be NaN.
    # A quarter of the least number, so that differences of two stay finite.
    floor = jnp.finfo(student.dtype).min / 4
    student, teacher = jnp.maximum(student, floor), jnp.maximum(teacher, floor)
  whole = _jensen_shannon(student, teacher, _weight(divergence))
  return whole if clip is None else jnp.minimum(whole, clip)


def gradients(
  student: jax.Array, teacher: jax.Array, divergence: Divergence
) -> jax.Array:
  """Returns each summand's derivative in the student's log-probability.

    forward   −t        reverse   s (log s − log t + 1)
    between   (1−w) s (log s − log m)       0 if the summand is clipped

  In the last, what m owes to s cancels the 1 of the first term.

  Args:
    student, teacher, divergence: as for `summands`.

  Returns:
    The shape of both.
  """
  weight = _weight(divergence)
  if weight == 0:
    result = -jnp.exp(teacher)
  elif weight == 1:
    result = product(jnp.exp(student), student - teacher + 1)
  else:
    mixture = _log_mixture(student, teacher, weight)
    result = (1 - weight) * product(jnp.exp(student), student - mixture)
  if divergence.token_clip is None:
    return result
  is_free = summands(student, teacher, divergence) < divergence.token_clip
  return jnp.where(is_free, result, 0.0)


def _weight(divergence: Divergence) -> float:
  """Returns a kind's place between KL(t‖s), at 0, and KL(s‖t), at 1."""
  if divergence.weight is not None:
    return divergence.weight
  return 1.0 if divergence.kind == "reverse_kl" else 0.0


def _relative_entropies(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """Returns the summands p (log p − log q) of KL(p‖q)."""
  return product(jnp.exp(log_p), log_p - log_q)


def _jensen_shannon(
  student: jax.Array, teacher: jax.Array, weight: float
) -> jax.Array:
  """Returns summands of the Jensen-Shannon family. Shape `[..., C]`."""
  # The ends are defined as KLs, and the mixture would take the logarithm of a
  # weight that is 0 there.
  if weight == 0:
    return _relative_entropies(teacher, student)
  if weight == 1:
    return _relative_entropies(student, teacher)
  mixture = _log_mixture(student, teacher, weight)
  to_student = _relative_entropies(student, mixture)
  to_teacher = _relative_entropies(teacher, mixture)
  return (1 - weight) * to_student + weight * to_teacher


def _log_mixture(
  student: jax.Array, teacher: jax.Array, weight: float
) -> jax.Array:
  """Returns log m, m = (1−w) s + w t; any number where both are 0."""
  # The logarithm of 0 + 0 has no finite gradient. Such a token has weight 0, so
  # that any finite number may take its place.
  both_exclude = (student == -jnp.inf) & (teacher == -jnp.inf)
  return jnp.logaddexp(
    jnp.where(both_exclude, 0.0, student) + math.log1p(-weight),
    jnp.where(both_exclude, 0.0, teacher) + math.log(weight),
  )


def _top_k(
  logits: jax.Array, top_k: int, top_k_fn: TopKFn = jax.lax.top_k
) -> tuple[jax.Array, jax.Array]:
  # Top-k puts 0.0 before −0.0, but a comparison takes them as equal.
  return top_k_fn(jnp.where(logits == 0, 0.0, logits), top_k)


def _on_kept(
  logits: jax.Array, indices: jax.Array, others: jax.Array, *, tail: bool
) -> jax.Array:
  """Returns log-probabilities of the kept tokens, and of the others' bucket."""
  kept = jnp.take_along_axis(logits, indices, axis=-1)
  if not tail:
    return jax.nn.log_softmax(kept)
  rest = log_sum(logits, others)
  return jax.nn.log_softmax(jnp.concatenate([kept, rest], axis=-1))
