"""Enumerates a small tree of completions for the exact gradient's two terms.

V words and T tokens give V^T completions. A state is a prefix; states are in
order of their lengths: (), 0, 1, 00, 01, … Student and teacher are tables of
shape `[..., N, V]` over the N states shorter than T.

  ∇ E_y Σₜ Hₜ = E_y Σₜ [ ∇Hₜ + ∇log π(yₜ|sₜ) Rₜ ]        Rₜ = Σ_{i>t} Hᵢ
"""

import itertools

import numpy as np

from distil_jax.analysis.theory import Array


def completions(num_words: int, length: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns every completion and the states that it passes.

  Returns:
    Token ids, and the row of the table at which each token is chosen; shape
    `[V^T, T]` each.
  """
  ids = np.array(list(itertools.product(range(num_words), repeat=length)))
  states = np.zeros_like(ids)
  for t in range(1, length):
    # As in a heap, the children of state s are V s + 1 to V s + V.
    states[:, t] = num_words * states[:, t - 1] + 1 + ids[:, t - 1]
  return ids, states


def num_states(num_words: int, length: int) -> int:
  """Returns N = 1 + V + … + V^{T−1}."""
  return sum(num_words**t for t in range(length))


def softmax(logits: Array) -> Array:
  """Returns the softmax over the last axis."""
  weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return weights / weights.sum(axis=-1, keepdims=True)


def state_costs(logits: Array, teacher: Array) -> Array:
  """Returns H×(π_T, π) at every state, nats. Shape `[..., N]`."""
  return -np.sum(teacher * np.log(softmax(logits)), axis=-1)


def chances(logits: Array, length: int) -> Array:
  """Returns π(y) of every completion. Shape `[..., V^T]`."""
  ids, states = completions(logits.shape[-1], length)
  return np.prod(softmax(logits)[..., states, ids], axis=-1)


def expected_cost(logits: Array, teacher: Array, length: int) -> Array:
  """Returns L = E_y Σₜ Hₜ, nats. Shape `[...]`.

  Args:
    logits: Logits of the student. Shape `[..., N, V]`.
    teacher: π_T, as probabilities. Shape `[..., N, V]`.
    length: T.
  """
  _, states = completions(logits.shape[-1], length)
  summed = state_costs(logits, teacher)[..., states].sum(axis=-1)
  return np.sum(chances(logits, length) * summed, axis=-1)


def future_costs(
  logits: Array, teacher: Array, length: int, *, normalize: bool = False
) -> Array:
  """Returns Rₜ of every completion, nats. Shape `[..., V^T, T]`.

  Args:
    logits, teacher, length: See `expected_cost`.
    normalize: True divides by the number of tokens still to come.
  """
  _, states = completions(logits.shape[-1], length)
  costs = state_costs(logits, teacher)[..., states]
  after = costs.sum(axis=-1, keepdims=True) - np.cumsum(costs, axis=-1)
  if normalize:
    after = after / np.maximum(length - 1 - np.arange(length), 1)
  return after


def local_term(logits: Array, teacher: Array, length: int) -> Array:
  """Returns π(y) Σₜ ∇Hₜ of every completion. Shape `[..., V^T, N, V]`.

  With respect to the logits of its state, ∇H = π − π_T.
  """
  _, states = completions(logits.shape[-1], length)
  visits = _indicator(states, logits.shape[-2]).sum(axis=1)
  error = softmax(logits) - teacher
  chance = chances(logits, length)[..., None, None]
  return chance * visits[..., None] * error[..., None, :, :]


def score_term(
  logits: Array, teacher: Array, length: int, *, normalize: bool = False
) -> Array:
  """Returns π(y) Σₜ ∇log π(yₜ|sₜ) Rₜ of every completion.

  With respect to the logits of its state, ∇log π(yₜ|sₜ) = 1[yₜ] − π. The shape
  is `[..., V^T, N, V]`.
  """
  num_words = logits.shape[-1]
  ids, states = completions(num_words, length)
  after = future_costs(logits, teacher, length, normalize=normalize)
  scores = _indicator(ids, num_words) - softmax(logits)[..., states, :]
  rows = _indicator(states, logits.shape[-2])
  weighted = np.einsum("...yt,ytn,...ytv->...ynv", after, rows, scores)
  return chances(logits, length)[..., None, None] * weighted


def _indicator(indices: np.ndarray, size: int) -> Array:
  """Returns one-hot vectors of shape `[..., size]`."""
  return np.eye(size)[indices]
