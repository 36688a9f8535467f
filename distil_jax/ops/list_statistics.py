"""Computes token statistics from a tile of logits and a teacher's lists.

A list names a few tokens of the teacher's distribution. Of the student only
the logits of these tokens and log Σ exp over the others are read.
"""

from typing import Any

import jax
import jax.numpy as jnp

from distil_jax.ops import divergences, vocabulary
from distil_jax.ops.divergences import Divergence

# The teacher's tail is 1 less a sum of float32 probabilities, so that below
# this it is rounding. A reverse KL to a tail of 0 would be infinite.
LEAST_TAIL = 1e-6


def check(kind: str, divergence: Divergence) -> None:
  """Refuses what a list does not tell.

  Args:
    kind: what the lists hold, see `SparseTeacher`.
    divergence: the cost.

  Raises:
    ValueError: an unknown kind of list, or a cost that needs more than it has.
  """
  if kind not in ("samples", "top_k"):
    raise ValueError(f"kind={kind!r} is neither 'samples' nor 'top_k'")
  if divergence.top_k is not None:
    raise ValueError(
      f"top_k={divergence.top_k} chooses from the vocabulary, but of this "
      "teacher only lists are known; set top_k=None"
    )
  if kind == "samples" and divergence.kind != "forward_cross_entropy":
    raise ValueError(
      f"kind={divergence.kind!r} needs the teacher's probabilities, and "
      "samples tell only which tokens it drew; take 'forward_cross_entropy', "
      "or lists of kind 'top_k'"
    )
  if divergence.temperature != 1 and (kind == "samples" or divergence.tail):
    raise ValueError(
      f"temperature={divergence.temperature} needs the teacher's probability "
      "of every token, unless both sides are renormalised over a list of kind "
      "'top_k'; set temperature=1, or tail=False"
    )


def read(
  logits: jax.Array, tile: Any, *, kind: str, divergence: Divergence
) -> dict[str, Any]:
  """Returns the fields of `TokenStatistics`, whose gradient autodiff finds.

  Args:
    logits: the student's, float32 or wider. Shape `[..., V]`.
    tile: the student's tokens `[...]`; ids and log-probabilities of the lists,
      `[..., C]` each; the teacher's log-probabilities of the student's tokens,
      or None; weights of what compares with the lists, or None, `[...]` each.
    kind: what the lists hold, see `SparseTeacher`.
    divergence: the cost, and what it is taken on.

  Returns:
    Nats, `[...]` each.
  """
  token_ids, ids, log_probs, token_log_probs, weights = tile
  known = vocabulary.only_tokens(logits, divergence.vocab_size)
  if kind == "samples":
    found = _of_samples(known, ids, log_probs)
  else:
    student, teacher = _on_list(known, ids, log_probs, divergence)
    found = (
      divergences.cost(student, teacher, divergence),
      divergences.forward_cross_entropy(student, teacher),
      divergences.entropy(teacher),
    )
  # An id outside the vocabulary must not be hidden, and a compiled exp of NaN
  # may be 0.
  is_known = vocabulary.is_in_vocabulary(known, ids) | (log_probs == -jnp.inf)
  found = [
    jnp.where(jnp.all(is_known, axis=-1), values, jnp.nan) for values in found
  ]
  if weights is not None:
    found = [values * weights for values in found]
  costs, cross_entropies, entropies = found
  log_softmax = jax.nn.log_softmax(known, axis=-1)
  return {
    "costs": costs,
    # Carried as credit, which is a constant weight of the score function.
    "cross_entropies": jax.lax.stop_gradient(cross_entropies),
    "teacher_entropies": jax.lax.stop_gradient(entropies),
    "log_probs": vocabulary.pick(log_softmax, token_ids),
    "entropies": divergences.entropy(log_softmax),
    "teacher_log_probs": token_log_probs,
  }


def _of_samples(
  logits: jax.Array, ids: jax.Array, log_probs: jax.Array
) -> tuple[jax.Array, ...]:
  """Returns −Σ p log π_θ over samples twice, and 0 for the entropy, unknown."""
  log_softmax = jax.nn.log_softmax(logits, axis=-1)
  candidates = jnp.take_along_axis(log_softmax, ids, axis=-1)
  costs = divergences.forward_cross_entropy(candidates, log_probs)
  return costs, costs, jnp.zeros_like(costs)


def _on_list(
  logits: jax.Array,
  ids: jax.Array,
  log_probs: jax.Array,
  divergence: Divergence,
) -> tuple[jax.Array, jax.Array]:
  """Returns both log-probabilities on a list, and on its tail if it has one.

  Shape `[..., C]` each, or `[..., C + 1]`.
  """
  # An absent candidate may carry any id, so the logit that stands there must
  # not enter the student's normalisation.
  is_listed = log_probs != -jnp.inf
  kept = jnp.where(
    is_listed, jnp.take_along_axis(logits, ids, axis=-1), -jnp.inf
  )
  if not divergence.tail:
    # Over the list alone, log-probabilities are logits: divided by a
    # temperature and renormalised they are the teacher's at that temperature.
    kept, log_probs = (x / divergence.temperature for x in (kept, log_probs))
  else:
    # XLA fuses the comparison into its reduction: [..., C, V] is never in
    # memory.
    tokens = jnp.arange(logits.shape[-1]).reshape((1,) * log_probs.ndim + (-1,))
    hits = (ids[..., None] == tokens) & is_listed[..., None]
    others = ~jnp.any(hits, axis=-2)
    if divergence.vocab_size is not None:
      # Padding has no mass, but it would make a bucket that is empty look full.
      others &= tokens[0] < divergence.vocab_size
    kept = jnp.concatenate([kept, divergences.log_sum(logits, others)], axis=-1)
    log_probs = jnp.concatenate([log_probs, _rest(log_probs, others)], axis=-1)
  return (
    jax.nn.log_softmax(kept, axis=-1),
    jax.nn.log_softmax(log_probs, axis=-1),
  )


def _rest(log_probs: jax.Array, others: jax.Array) -> jax.Array:
  """Returns log(1 − Σ p), the teacher's tail; −inf if no token is left."""
  mass = jnp.sum(jnp.exp(log_probs), axis=-1, keepdims=True)
  # If the list holds the whole vocabulary, all that is left is rounding.
  has_others = jnp.any(others, axis=-1, keepdims=True)
  return jnp.log(jnp.where(has_others, jnp.maximum(1 - mass, LEAST_TAIL), 0.0))
