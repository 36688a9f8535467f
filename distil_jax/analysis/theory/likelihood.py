"""Bounds the probability of success, and Pass@N, by imitation of successes."""

import numpy as np

from distil_jax.analysis.theory import Array, bandits


def success_probability(completions: Array, is_success: Array) -> Array:
  """Returns P(success) = Σ_y π(y) 1[y succeeds]. Shape `[...]`.

  Args:
    completions: π(y). Shape `[..., Y]`.
    is_success: 1 for successes. Shape `[..., Y]`.
  """
  return np.sum(completions * is_success, axis=-1)


def success_posterior(completions: Array, is_success: Array) -> Array:
  """Returns π(y | success), the ideal teacher. Shape `[..., Y]`."""
  chance = success_probability(completions, is_success)
  return completions * is_success / chance[..., None]


def likelihood_bound(completions: Array, teacher: Array) -> Array:
  """Returns Σ_y q(y) [log π(y) − log q(y)], nats. Shape `[...]`.

    log P(success) = bound + KL(q ‖ π(·|success))  ≥  bound

  for every teacher q that only writes successes. So its cross-entropy bounds
  −log P(success) up to the teacher's own entropy.

  Args:
    completions: π(y). Shape `[..., Y]`.
    teacher: q(y), 0 at failures. Shape `[..., Y]`.
  """
  written = teacher > 0
  # 0 · log 0 is 0: what the teacher never writes drops out of the sum.
  ratio = np.where(written, completions, 1.0) / np.where(written, teacher, 1.0)
  return np.sum(teacher * np.log(ratio), axis=-1)


def pass_at(chance: float | Array, num_samples: int | Array) -> Array:
  """Returns Pass@N = 1 − (1−p)^N."""
  # For small p, 1 − (1 − p)^N would lose most of its digits.
  return -np.expm1(num_samples * np.log1p(-np.asarray(chance)))


def pass_at_bound(bound: float | Array, num_samples: int | Array) -> Array:
  """Returns the bound on Pass@N from a likelihood bound: 1 − (1 − e^b)^N."""
  return pass_at(np.exp(bound), num_samples)


def harmonic_mixture(chance: float | Array, num_terms: int) -> Array:
  """Returns Σ_{k=1}^{K} (1−p)^k / k, which tends to −log p, nats.

  So log-likelihood weighs the failures (1−p)^k of all Pass@k, each by 1/k,
  while expected reward counts only k = 1. The remainder lies between 0 and
  (1−p)^{K+1} / ((K+1) p).

  Args:
    chance: p in (0, 1].
    num_terms: K.
  """
  failure = 1 - np.asarray(chance, dtype=np.float64)
  orders = np.arange(1, num_terms + 1)
  return np.sum(failure[..., None] ** orders / orders, axis=-1)


def posterior_gap(
  completions: Array, teacher: Array, is_success: Array
) -> Array:
  """Returns KL(q ‖ π(·|success)), the gap of the bound, nats. Shape `[...]`.

  Args:
    completions: π(y). Shape `[..., Y]`.
    teacher: q(y) > 0 at successes and 0 at failures. Shape `[..., Y]`.
    is_success: 1 for successes. Shape `[..., Y]`.
  """
  posterior = success_posterior(completions, is_success)
  succeeds = np.asarray(is_success, dtype=bool)
  return bandits.kl(
    np.where(succeeds, teacher, 1.0), np.where(succeeds, posterior, 1.0)
  )
