"""Finds where a choice between two routes settles under a frozen teacher.

p is the student's and q the teacher's probability of the good route. `pull` is
the pull of future credit towards the good route, in nats: future_weight ·
(future cost of the poor route − that of the good one). A softmax moves
z = logit p. A drift is −dL/dz of the expected loss; p rises if it is > 0.
"""

import math
from collections.abc import Callable

import numpy as np

from distil_jax.analysis.theory import Array

Drift = Callable[[Array], Array]


def logit(p: float | Array) -> Array:
  """Returns log p / (1 − p)."""
  p = np.asarray(p, dtype=np.float64)
  return np.log(p) - np.log1p(-p)


def sigmoid(z: float | Array) -> Array:
  """Returns 1 / (1 + e^{−z}), without overflow."""
  return np.exp(-np.logaddexp(0.0, -np.asarray(z, dtype=np.float64)))


def cross_entropy_plateau(q: float | Array, pull: float | Array) -> Array:
  """Returns the p that minimizes −q ln p − (1−q) ln(1−p) − pull · p.

    q/p − (1−q)/(1−p) + pull = 0

  The compromise is rational: 1 − p falls no faster than 1/pull.

  Args:
    q: Probability in [0, 1].
    pull: Nats; negative if the teacher's route costs more.

  Raises:
    ValueError: q is outside [0, 1].
  """
  q, pull = np.asarray(q, dtype=np.float64), np.asarray(pull, dtype=np.float64)
  if np.any((q < 0) | (q > 1)):
    raise ValueError(f"q={q} is a probability, so it must be in [0, 1]")
  # Solve pull·p² + (1 − pull) p − q = 0 by the form that does not cancel.
  linear = 1 - pull
  root = np.sqrt(linear**2 + 4 * pull * q)
  # Both roots are 0 for q = 0 and pull = 1.
  safe = np.where((linear >= 0) & (linear + root > 0), linear + root, 1.0)
  steep = np.where(linear < 0, 2 * pull, 1.0)
  return np.where(linear >= 0, 2 * q / safe, (root - linear) / steep)


def reverse_kl_plateau(q: float | Array, pull: float | Array) -> Array:
  """Returns the p that minimizes KL(p‖q) − pull · p.

    p = sigmoid(logit q + pull)

  The compromise is exponential: each nat of pull divides (1−p)/p by e. It lies
  nearer to 1 than that of cross-entropy wherever it is beyond both q and 1 − q.
  A weak pull towards a rare route moves cross-entropy further.
  """
  return sigmoid(logit(q) + pull)


def cross_entropy_drift(q: float, pull: float) -> Drift:
  """Returns the drift q − p + pull · p (1−p), as a function of p."""
  return lambda p: q - p + pull * p * (1 - p)


def reverse_kl_drift(q: float, pull: float) -> Drift:
  """Returns the drift p (1−p) (logit q − logit p + pull)."""
  return lambda p: p * (1 - p) * (logit(q) - logit(p) + pull)


def failure_weighted(
  drift: Drift,
  success_good: float,
  success_poor: float,
  reward_drift: Drift,
) -> Drift:
  """Returns (1 − J(p)) · drift(p) + reward_drift(p), as a function of p.

  The leave-one-out failure rate does not depend on the sample's own verdict, so
  its expectation 1 − J = 1 − p·success_good − (1−p)·success_poor factors out.
  By itself it changes the speed but not the plateau. With a reward term the
  anchor vanishes as the group succeeds: if the good route always succeeds and
  the poor one never does, the drift of cross-entropy near p = 1 is (1−p) (q − 1
  + reward_weight κ), with κ = 1, or G/√(G−1) if advantages are standardized. If
  the good route may fail too, some of the anchor is left.

  Args:
    drift: Drift from feedback: local cost and future credit.
    success_good: Expected reward of the good route.
    success_poor: Expected reward of the poor route.
    reward_drift: Drift from rewards, see `reward_drift`.
  """

  def _drift(p: Array) -> Array:
    failure = p * (1 - success_good) + (1 - p) * (1 - success_poor)
    return failure * drift(p) + reward_drift(p)

  return _drift


def reward_drift(
  reward_weight: float,
  success_good: float,
  success_poor: float,
  group_size: int | None = None,
) -> Drift:
  """Returns the drift of group-relative advantages, as a function of p.

    reward_weight · p (1−p) (E[A | good] − E[A | poor])

  A is r minus the mean of the others' rewards, which are 0 or 1. With a group
  size, A is divided by the group's standard deviation √(k/G (1 − k/G)), and the
  expectation is taken over the number k of successes.

  Args:
    reward_weight: w.
    success_good: Expected reward of the good route.
    success_poor: Expected reward of the poor route.
    group_size: G ≥ 2. None means no division.
  """
  gap = success_good - success_poor
  if group_size is None:
    return lambda p: reward_weight * p * (1 - p) * gap

  def _drift(p: Array) -> Array:
    mean = p * success_good + (1 - p) * success_poor
    scale = _standardized_gap(mean, group_size)
    return reward_weight * p * (1 - p) * gap * scale

  return _drift


def _standardized_gap(mean: Array, group_size: int) -> Array:
  """Returns E[A | r = 1] − E[A | r = 0] over the others' successes."""
  others = group_size - 1
  total = np.zeros_like(mean)
  for k in range(others + 1):
    chance = math.comb(others, k) * mean**k * (1 - mean) ** (others - k)
    for own, sign in ((1, 1), (0, -1)):
      share = (k + own) / group_size
      if 0 < share < 1:  # otherwise all rewards are equal, and A = 0
        deviation = math.sqrt(share * (1 - share))
        total = total + chance * sign * (own - k / others) / deviation
  return total


def settle(drift: Drift, start: float, num_points: int = 4001) -> float:
  """Returns the p at which a learner with small steps settles.

  This is the nearest zero of the drift in the direction in which it points at
  the start. It is found on a grid of logits and then by bisection.

  Args:
    drift: Drift as a function of p.
    start: Initial p in (0, 1).
    num_points: Points of the grid.

  Returns:
    p; 1.0 or 0.0 if there is no zero within 30 nats.
  """
  direction = np.sign(drift(np.array([start])))[0]
  if direction == 0:
    return start
  # In logits, where the ends 0 and 1 are far away and a zero near them is
  # found.
  grid = np.linspace(float(logit(start)), 30.0 * direction, num_points)
  turned = np.flatnonzero(direction * drift(sigmoid(grid)) < 0)
  if not turned.size:
    return float(direction > 0)
  low, high = grid[turned[0] - 1], grid[turned[0]]
  for _ in range(60):
    middle = (low + high) / 2
    if direction * drift(sigmoid(np.array([middle])))[0] > 0:
      low = middle
    else:
      high = middle
  return float(sigmoid(low))
