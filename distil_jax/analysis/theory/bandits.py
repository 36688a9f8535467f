"""One decision: what a step towards a teacher does to the expected reward.

A policy π and a teacher π_T over A arms, a reward r for each. A divergence D
between them has the gradient gₐ = ∂D/∂πₐ, and the natural policy gradient
(NPG) step on D is

  π' = π − η π (g − E_π g)        dJ/dη = −Cov_π(r, g)

Constants in g drop out. Leading dimensions are instances; A is the last axis.
"""

import numpy as np

from distil_jax.analysis.theory import Array


def expected_reward(policy: Array, rewards: Array) -> Array:
  """J = E_π r. Shape `[...]`."""
  return np.sum(policy * rewards, axis=-1)


def covariance(policy: Array, first: Array, second: Array) -> Array:
  """Cov_π(first, second). Shape `[...]`."""
  centred = first - np.sum(policy * first, axis=-1, keepdims=True)
  return np.sum(policy * centred * second, axis=-1)


def cross_entropy(policy: Array, teacher: Array) -> Array:
  """H×(π_T, π) = −Σ π_T log π, nats. Shape `[...]`."""
  return -np.sum(teacher * np.log(policy), axis=-1)


def cross_entropy_gradient(policy: Array, teacher: Array) -> Array:
  """∂/∂π of the forward cross-entropy: −π_T / π. Shape `[..., A]`."""
  return -teacher / policy


def kl(first: Array, second: Array) -> Array:
  """KL(first‖second), nats. Reverse KL is `kl(policy, teacher)`. `[...]`."""
  return np.sum(first * np.log(first / second), axis=-1)


def reverse_kl_gradient(policy: Array, teacher: Array) -> Array:
  """∂/∂π of KL(π‖π_T): log(π / π_T) + 1. Shape `[..., A]`."""
  return np.log(policy / teacher) + 1


def jensen_shannon(policy: Array, teacher: Array, weight: float = 0.5) -> Array:
  """w KL(π_T‖m) + (1 − w) KL(π‖m) with m = (1 − w) π + w π_T, nats. `[...]`."""
  mixture = (1 - weight) * policy + weight * teacher
  return weight * kl(teacher, mixture) + (1 - weight) * kl(policy, mixture)


def jensen_shannon_gradient(
  policy: Array, teacher: Array, weight: float = 0.5
) -> Array:
  """∂/∂π of `jensen_shannon`: (1 − w) log(π / m). Shape `[..., A]`."""
  mixture = (1 - weight) * policy + weight * teacher
  return (1 - weight) * np.log(policy / mixture)


def npg_direction(policy: Array, gradient: Array) -> Array:
  """dπ/dη = −π (g − E_π g). Shape `[..., A]`; it sums to 0."""
  mean = np.sum(policy * gradient, axis=-1, keepdims=True)
  # Were π's rounded sum taken for 1, repeated steps would blow its error up.
  mean = mean / np.sum(policy, axis=-1, keepdims=True)
  return -policy * (gradient - mean)


def reward_slope(policy: Array, rewards: Array, gradient: Array) -> Array:
  """dJ/dη = −Cov_π(r, g), exact for every η as π' is linear. `[...]`."""
  return -covariance(policy, rewards, gradient)


def largest_rate(policy: Array, gradient: Array) -> Array:
  """Largest η that leaves every probability ≥ 0; inf if all do. `[...]`."""
  fall = -npg_direction(policy, gradient)
  falling = fall > 0
  ratios = np.where(falling, policy / np.where(falling, fall, 1.0), np.inf)
  return np.min(ratios, axis=-1)


def npg_step(policy: Array, gradient: Array, rate: float | Array) -> Array:
  """π' = π − η π (g − E_π g).

  Args:
    policy: π. Shape `[..., A]`.
    gradient: g = ∂D/∂π. Shape `[..., A]`.
    rate: η, one or of shape `[...]`.

  Returns:
    π'. Shape `[..., A]`.

  Raises:
    ValueError: η is past the largest that leaves a policy.
  """
  rate = np.asarray(rate, dtype=np.float64)
  limit = largest_rate(policy, gradient)
  # A step to the very edge may miss it by the rounding of one division.
  if np.any(rate > limit * (1 + 1e-12)):
    raise ValueError(
      f"rate={np.max(rate)} makes a probability negative: the largest valid "
      f"step here is {np.min(limit)} (largest_rate)"
    )
  return policy + rate[..., None] * npg_direction(policy, gradient)


def exponentiated_step(
  policy: Array, teacher: Array, rate: float | Array
) -> Array:
  """π' ∝ π (π_T / π)^η, the mirror-descent form of reverse KL. `[..., A]`."""
  rate = np.asarray(rate, dtype=np.float64)[..., None]
  unnormalised = policy ** (1 - rate) * teacher**rate
  return unnormalised / unnormalised.sum(axis=-1, keepdims=True)


def softmax_gradient_descent(
  policy: Array, teacher: Array, learning_rate: float, num_steps: int
) -> Array:
  """Plain gradient descent on the logits of the forward cross-entropy.

    θ ← θ − learning_rate (π − π_T)

  This is not the NPG step: it moves arms in proportion to nothing but their
  error, so that J may fall on the way to a better teacher.

  Args:
    policy: where it begins. Shape `[..., A]`.
    teacher: π_T. Shape `[..., A]`.
    learning_rate: of the logits.
    num_steps: N.

  Returns:
    every policy, the first included. Shape `[N + 1, ..., A]`.
  """
  logits = np.log(policy)
  policies = [policy]
  for _ in range(num_steps):
    logits = logits - learning_rate * (policies[-1] - teacher)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    policies.append(weights / weights.sum(axis=-1, keepdims=True))
  return np.stack(policies)


def adverse_rewards(policy: Array, teacher: Array, gradient: Array) -> Array:
  """Rewards in [0, 1] for which the teacher is better and the step worse.

  With u = π_T − π and d the NPG direction, r = u/|u| − d/|d| has

    J_T − J = ⟨r, u⟩ = |u| (1 − cos(u, d)) > 0
    dJ/dη   = ⟨r, d⟩ = |d| (cos(u, d) − 1) < 0

  unless d points straight at the teacher. So a divergence never lowers the
  reward under a better teacher only if its step is the one of forward
  cross-entropy, up to length.

  Args:
    policy: π. Shape `[..., A]`.
    teacher: π_T ≠ π. Shape `[..., A]`.
    gradient: g = ∂D/∂π. Shape `[..., A]`.

  Returns:
    r. Shape `[..., A]`.

  Raises:
    ValueError: the step points straight at the teacher: there are none.
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
