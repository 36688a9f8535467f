"""Computes how a step towards a teacher changes the reward of one decision.

A policy π and a teacher π_T choose among A arms with rewards r. A divergence D
between them has the gradient gₐ = ∂D/∂πₐ, and the natural policy gradient
(NPG) step on D is

  π' = π − η π (g − E_π g)        dJ/dη = −Cov_π(r, g)

Constants in g cancel. Leading dimensions are instances; A is the last axis.
"""

import numpy as np

from distil_jax.analysis.theory import Array


def expected_reward(policy: Array, rewards: Array) -> Array:
  """Returns J = E_π r. Shape `[...]`."""
  return np.sum(policy * rewards, axis=-1)


def covariance(policy: Array, first: Array, second: Array) -> Array:
  """Returns Cov_π(first, second). Shape `[...]`."""
  centred = first - np.sum(policy * first, axis=-1, keepdims=True)
  return np.sum(policy * centred * second, axis=-1)


def cross_entropy(policy: Array, teacher: Array) -> Array:
  """Returns H×(π_T, π) = −Σ π_T log π, nats. Shape `[...]`."""
  return -np.sum(teacher * np.log(policy), axis=-1)


def cross_entropy_gradient(policy: Array, teacher: Array) -> Array:
  """Returns −π_T / π, the gradient of forward cross-entropy."""
  return -teacher / policy


def kl(first: Array, second: Array) -> Array:
  """Returns KL(first‖second), nats; reverse KL is `kl(policy, teacher)`."""
  return np.sum(first * np.log(first / second), axis=-1)


def reverse_kl_gradient(policy: Array, teacher: Array) -> Array:
  """Returns log(π / π_T) + 1, the gradient of KL(π‖π_T). `[..., A]`."""
  return np.log(policy / teacher) + 1


def jensen_shannon(policy: Array, teacher: Array, weight: float = 0.5) -> Array:
  """Returns the Jensen-Shannon divergence of weight w, nats. Shape `[...]`.

  w KL(π_T‖m) + (1 − w) KL(π‖m)        m = (1 − w) π + w π_T
  """
  mixture = (1 - weight) * policy + weight * teacher
  return weight * kl(teacher, mixture) + (1 - weight) * kl(policy, mixture)


def jensen_shannon_gradient(
  policy: Array, teacher: Array, weight: float = 0.5
) -> Array:
  """Returns (1 − w) log(π / m), the gradient of `jensen_shannon`."""
  mixture = (1 - weight) * policy + weight * teacher
  return (1 - weight) * np.log(policy / mixture)


def npg_direction(policy: Array, gradient: Array) -> Array:
  """Returns dπ/dη = −π (g − E_π g). Shape `[..., A]`; it sums to 0."""
  mean = np.sum(policy * gradient, axis=-1, keepdims=True)
  # The sum of π is not exactly 1. Without this division, repeated steps would
  # amplify the rounding error.
  mean = mean / np.sum(policy, axis=-1, keepdims=True)
  return -policy * (gradient - mean)


def reward_slope(policy: Array, rewards: Array, gradient: Array) -> Array:
  """Returns dJ/dη = −Cov_π(r, g); exact for every η, as π' is linear."""
  return -covariance(policy, rewards, gradient)


def largest_rate(policy: Array, gradient: Array) -> Array:
  """Returns the largest η that keeps all probabilities ≥ 0, or infinity."""
  fall = -npg_direction(policy, gradient)
  falling = fall > 0
  # Only a probability that falls limits the step.
  ratios = np.where(falling, policy / np.where(falling, fall, 1.0), np.inf)
  return np.min(ratios, axis=-1)


def npg_step(policy: Array, gradient: Array, rate: float | Array) -> Array:
  """Returns π' = π − η π (g − E_π g).

  Args:
    policy: π. Shape `[..., A]`.
    gradient: g = ∂D/∂π. Shape `[..., A]`.
    rate: η, a scalar or of shape `[...]`.

  Returns:
    π'. Shape `[..., A]`.

  Raises:
    ValueError: η is larger than `largest_rate`.
  """
  rate = np.asarray(rate, dtype=np.float64)
  limit = largest_rate(policy, gradient)
  # A step of exactly the largest rate may exceed it by rounding.
  if np.any(rate > limit * (1 + 1e-12)):
    raise ValueError(
      f"rate={np.max(rate)} makes a probability negative: the largest valid "
      f"step here is {np.min(limit)} (largest_rate)"
    )
  return policy + rate[..., None] * npg_direction(policy, gradient)


def exponentiated_step(
  policy: Array, teacher: Array, rate: float | Array
) -> Array:
  """Returns π' ∝ π (π_T / π)^η, mirror descent on reverse KL. `[..., A]`."""
  rate = np.asarray(rate, dtype=np.float64)[..., None]
  unnormalised = policy ** (1 - rate) * teacher**rate
  return unnormalised / unnormalised.sum(axis=-1, keepdims=True)


def softmax_gradient_descent(
  policy: Array, teacher: Array, learning_rate: float, num_steps: int
) -> Array:
  """Runs plain gradient descent on the logits of forward cross-entropy.

    θ ← θ − learning_rate (π − π_T)

  This is not the NPG step: it moves each logit in proportion to the error of
  its arm alone, so J may fall on the way to a better teacher.

  Args:
    policy: Initial policy. Shape `[..., A]`.
    teacher: π_T. Shape `[..., A]`.
    learning_rate: Step size on the logits.
    num_steps: N.

  Returns:
    All policies, including the initial one. Shape `[N + 1, ..., A]`.
  """
  logits = np.log(policy)
  policies = [policy]
  for _ in range(num_steps):
    logits = logits - learning_rate * (policies[-1] - teacher)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    policies.append(weights / weights.sum(axis=-1, keepdims=True))
  return np.stack(policies)


def adverse_rewards(policy: Array, teacher: Array, gradient: Array) -> Array:
  """Returns rewards for which the teacher is better and the step worse.

  With u = π_T − π and d the NPG direction, r = u/|u| − d/|d| has

    J_T − J = ⟨r, u⟩ = |u| (1 − cos(u, d)) > 0
    dJ/dη   = ⟨r, d⟩ = |d| (cos(u, d) − 1) < 0

  unless d points straight at the teacher. So the only step that never lowers
  the reward under a better teacher is that of forward cross-entropy, up to its
  length.

  Args:
    policy: π. Shape `[..., A]`.
    teacher: π_T ≠ π. Shape `[..., A]`.
    gradient: g = ∂D/∂π. Shape `[..., A]`.

  Returns:
    r in [0, 1]. Shape `[..., A]`.

  Raises:
    ValueError: The step points straight at the teacher, so there are none.
  """
  towards = teacher - policy
  step = npg_direction(policy, gradient)
  rewards = towards / np.linalg.norm(towards, axis=-1, keepdims=True)
  rewards = rewards - step / np.linalg.norm(step, axis=-1, keepdims=True)
  rewards = rewards - rewards.min(axis=-1, keepdims=True)
  highest = rewards.max(axis=-1, keepdims=True)
  if np.any(highest < 1e-9):
    raise ValueError(
      "the step points straight at the teacher, so it raises whatever reward "
      "the teacher raises; give the gradient of another divergence"
    )
  return rewards / highest
