"""Where a choice between two routes comes to rest under a frozen teacher.

p is the student's and q the teacher's probability of the good route. `pull` =
future_weight · (future cost of the poor route − that of the good one), nats:
the future credit's pull towards the good route. z = logit p is what a softmax
moves; a drift is −dL/dz of the expected loss, and > 0 where p rises.
"""

import math
from collections.abc import Callable

import numpy as np

from distil_jax.analysis.theory import Array

Drift = Callable[[Array], Array]


def logit(p: float | Array) -> Array:
  """log p / (1 − p)."""
  p = np.asarray(p, dtype=np.float64)
  return np.log(p) - np.log1p(-p)


def sigmoid(z: float | Array) -> Array:
  """1 / (1 + e^{−z}), without overflow."""
  return np.exp(-np.logaddexp(0.0, -np.asarray(z, dtype=np.float64)))


def cross_entropy_plateau(q: float | Array, pull: float | Array) -> Array:
  """The p that minimises −q ln p − (1−q) ln(1−p) − pull · p.

    q/p − (1−q)/(1−p) + pull = 0

  A rational compromise: 1 − p falls no faster than 1/pull.

  Args:
    q: in [0, 1].
    pull: nats; negative where the teacher's route costs more.

  Raises:
    ValueError: q outside [0, 1].
  """
  q, pull = np.asarray(q, dtype=np.float64), np.asarray(pull, dtype=np.float64)
  if np.any((q < 0) | (q > 1)):
    raise ValueError(f"q={q} is a probability: it is in [0, 1]")
  # pull·p² + (1 − pull) p − q = 0, by whichever form does not cancel.
  linear = 1 - pull
  root = np.sqrt(linear**2 + 4 * pull * q)
  # Both roots are 0 where q = 0 and pull = 1.
  safe = np.where((linear >= 0) & (linear + root > 0), linear + root, 1.0)
  steep = np.where(linear < 0, 2 * pull, 1.0)
  return np.where(linear >= 0, 2 * q / safe, (root - linear) / steep)


def reverse_kl_plateau(q: float | Array, pull: float | Array) -> Array:
  """The p that minimises KL(p‖q) − pull · p: sigmoid(logit q + pull).

  An exponential compromise: each nat of pull divides (1−p)/p by e. It holds
  back less than cross-entropy wherever it lies beyond both q and 1 − q; a weak
  pull towards a rare route moves cross-entropy further.
  """
  return sigmoid(logit(q) + pull)


def cross_entropy_drift(q: float, pull: float) -> Drift:
  """q − p + pull · p (1−p), as a function of p."""
  return lambda p: q - p + pull * p * (1 - p)


def reverse_kl_drift(q: float, pull: float) -> Drift:
  """p (1−p) (logit q − logit p + pull), as a function of p."""
  return lambda p: p * (1 - p) * (logit(q) - logit(p) + pull)


def failure_weighted(
  drift: Drift,
  success_good: float,
  success_poor: float,
  reward_drift: Drift,
) -> Drift:
  """(1 − J(p)) · drift(p) + reward_drift(p), as a function of p.

  The leave-one-out failure rate does not depend on the sample's own verdict,
  so that its expectation 1 − J = 1 − p·success_good − (1−p)·success_poor
  factors out. Alone it changes the speed and not the plateau. With a reward
  term beside it the anchor vanishes as the group succeeds: where the good route
  always succeeds and the poor one never, the drift of cross-entropy near p = 1
  is (1−p) (q − 1 + reward_weight κ), with κ = 1, or G/√(G−1) if advantages are
  standardised. Where the good route may fail too, some of the anchor is left.

  Args:
    drift: of the feedback: local cost and future credit.
    success_good: expected reward of the good route.
    success_poor: expected reward of the poor route.
    reward_drift: of the reward, see `reward_drift`.
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
  """Drift of group-relative advantages, as a function of p.

    reward_weight · p (1−p) (E[A | good] − E[A | poor])

  with A = r − mean of the others', for rewards 0 and 1. With a group size, A
  is divided by the group's standard deviation √(k/G (1 − k/G)), and the
  expectation runs over the number k of successes.

  Args:
    reward_weight: w.
    success_good: expected reward of the good route.
    success_poor: expected reward of the poor route.
    group_size: G ≥ 2; None leaves out the division.
  """
  gap = success_good - success_poor
  if group_size is None:
    return lambda p: reward_weight * p * (1 - p) * gap

  def _drift(p: Array) -> Array:
    mean = p * success_good + (1 - p) * success_poor
    scale = _standardised_gap(mean, group_size)
    return reward_weight * p * (1 - p) * gap * scale

  return _drift


def _standardised_gap(mean: Array, group_size: int) -> Array:
  """E[A | r = 1] − E[A | r = 0] over the G − 1 others' successes."""
  others = group_size - 1
  total = np.zeros_like(mean)
  for k in range(others + 1):
    chance = math.comb(others, k) * mean**k * (1 - mean) ** (others - k)
    for own, sign in ((1, 1), (0, -1)):
      share = (k + own) / group_size
      if 0 < share < 1:  # else all agree, and A = 0
        deviation = math.sqrt(share * (1 - share))
        total = total + chance * sign * (own - k / others) / deviation
  return total


def settle(drift: Drift, start: float, num_points: int = 4001) -> float:
  """Where a small-step learner that begins at `start` comes to rest.

  The nearest zero of the drift in the direction in which it points at the
  start, found on a grid of logits and then by bisection.

  Args:
    drift: as a function of p.
    start: in (0, 1).
    num_points: of the grid.

  Returns:
    p; 1.0 or 0.0 if nothing holds it within 30 nats.
  """
  direction = np.sign(drift(np.array([start])))[0]
  if direction == 0:
    return start
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
